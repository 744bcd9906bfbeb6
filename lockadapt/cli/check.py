"""`lockadapt check`: check a recipe without training, and show what is learned, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def check(
    recipe: Path = typer.Argument(None, help="YAML recipe; not needed with --vlm."),
    overrides: list[str] = typer.Argument(
        None, metavar="[key.path=value]…", help="Override values of the recipe."
    ),
    structure_only: bool = typer.Option(
        False, "--structure", help="Check only the recipe: no models, no data."
    ),
    vlm: str = typer.Option(
        None, "--vlm", help="Measure a checkpoint alone, by drawn pictures: folder or Hub id."
    ),
    samples: int = typer.Option(3, "--samples", min=0, help="Number of samples to show for each objective."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Check recipe, models, rows, images, tokens and labels. Exit code 0 means ready to train."""
    if vlm is not None:
        from lockadapt.console import Reporter
        from lockadapt.planning.admission import check_vlm

        measured = check_vlm(vlm, Reporter())
        emit(json.dumps(measured) if as_json else f"{vlm}: {measured['class']} can be trained")
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe, or a checkpoint with --vlm")
    from lockadapt.cli.recipe_file import read_recipe

    loaded = read_recipe(recipe, overrides)
    if structure_only:
        emit(json.dumps({"recipe": str(recipe), "ok": True}) if as_json else f"{recipe}: the recipe is valid")
        return
    from lockadapt.console import Reporter
    from lockadapt.planning.check import check_recipe

    report = check_recipe(loaded.recipe, Reporter(), samples)
    emit(json.dumps(report) if as_json else f"{recipe}: ready to train")
