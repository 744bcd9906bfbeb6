"""`lockadapt train`: train a recipe into a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from lockadapt import processes
from lockadapt.console import emit
from lockadapt.errors import RecipeError


def train(
    recipe: Path = typer.Argument(help="YAML recipe."),
    overrides: list[str] = typer.Argument(
        None, metavar="[key.path=value]…", help="Override values of the recipe."
    ),
    output: Path = typer.Option(None, "--output", "-o", help="Run folder."),
    resume: bool = typer.Option(False, "--resume", help="Resume from the last checkpoint in the run folder."),
    blind: bool = typer.Option(False, "--blind", help="Replace every image by the mean image."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Run all checks without training."),
    print_config: bool = typer.Option(
        False, "--print-config", help="Print every value and where it comes from, then exit."
    ),
    count: int = typer.Option(
        None,
        "--processes",
        min=1,
        max=1024,
        help="Train in several processes on this machine, one a GPU; for several machines use torchrun.",
    ),
    restarts: int = typer.Option(
        0,
        "--max-restarts",
        min=0,
        max=1000,
        help="With --processes: how often all processes go on from the last checkpoint where one ended.",
    ),
    allow_reward_code: bool = typer.Option(
        False, "--allow-reward-code", help="Let the recipe's rewards.function run code from a file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> int:
    """Train projector and LoRA adapters on a recipe, and write a run folder."""
    from lockadapt.cli.recipe_file import read_recipe
    from lockadapt.recipe.explain import print_config as shown

    changes = [
        *(overrides or ()),
        *(["blind=true"] if blind else ()),
        *([f"output={output}"] if output else ()),
    ]
    loaded = read_recipe(recipe, changes)
    if print_config:
        emit(shown(loaded))
        return 0
    if dry_run:
        from lockadapt.console import Reporter
        from lockadapt.planning.check import check_recipe

        check_recipe(loaded.recipe, Reporter(quiet))
        return 0
    if loaded.recipe.output is None:
        raise RecipeError("no run folder given", where=str(recipe), fix="add --output FOLDER")
    if count is not None and count > 1:
        from lockadapt.cli.launching import launch

        return launch(sys.argv[1:], count, restarts)
    if restarts:
        raise RecipeError("needs --processes", where="--max-restarts", fix="add --processes 2, or more")
    from lockadapt.api.steps import train as run

    result = run(loaded, resume=resume, quiet=quiet, allow_reward_code=allow_reward_code)
    if processes.is_first():
        emit(json.dumps(result.to_json()) if as_json else result.output)
    return 0
