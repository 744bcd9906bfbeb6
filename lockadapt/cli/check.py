"""`lockadapt check`: check a recipe without training, and show what is learned, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def check(
    recipe: Path = typer.Argument(help="YAML recipe."),
    overrides: list[str] = typer.Argument(
        None, metavar="[key.path=value]…", help="Override values of the recipe."
    ),
    structure_only: bool = typer.Option(
        False, "--structure", help="Check only the recipe: no models, no data."
    ),
    samples: int = typer.Option(3, "--samples", min=0, help="Number of samples to show for each objective."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Check recipe, models, rows, images, tokens and labels. Exit code 0 means ready to train."""
    from lockadapt.cli.recipe_file import read_recipe

    loaded = read_recipe(recipe, overrides)
    if structure_only:
        emit(json.dumps({"recipe": str(recipe), "ok": True}) if as_json else f"{recipe}: the recipe is valid")
        return
    from lockadapt.console import Reporter
    from lockadapt.planning.check import check_recipe

    found = check_recipe(loaded.recipe, Reporter(), samples)
    emit(json.dumps(found) if as_json else f"{recipe}: ready to train")
