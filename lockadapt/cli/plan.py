"""`lockadapt plan`: estimate memory, tokens and time before loading any weights."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def plan(
    recipe: Path = typer.Argument(help="YAML recipe."),
    overrides: list[str] = typer.Argument(
        None, metavar="[key.path=value]…", help="Override values of the recipe."
    ),
    memory: str = typer.Option(
        None,
        "--memory",
        metavar="SIZE",
        help="GPU memory the run must fit into, such as 8GB; exit code 5 if it does not.",
    ),
    count: int = typer.Option(
        1, "--processes", min=1, max=1024, help="Plan for several processes, one a GPU."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Estimate memory, tokens, cache size, time and the GPUs that fit a run, without loading weights."""
    from lockadapt.cli.recipe_file import read_recipe

    loaded = read_recipe(recipe, overrides)
    from lockadapt.console import Reporter
    from lockadapt.planning.plan import parse_size, plan_recipe, refuse_unless_fits
    from lockadapt.planning.text import plan_text

    limit = None if memory is None else parse_size(memory)
    estimate = plan_recipe(loaded.recipe, Reporter(quiet), limit, count)
    emit(json.dumps(estimate) if as_json else plan_text(estimate))
    if limit is not None:
        refuse_unless_fits(estimate, limit)
