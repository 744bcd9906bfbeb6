"""`lockadapt cache`: cache the frozen tower's outputs for all images of a recipe on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from lockadapt.console import emit
from lockadapt.processes import is_first


def cache(
    recipe: Path = typer.Argument(help="YAML recipe."),
    overrides: list[str] = typer.Argument(
        None, metavar="[key.path=value]…", help="Override values of the recipe."
    ),
    count: int = typer.Option(
        None, "--processes", min=1, max=1024, help="Compute in several processes on this machine, one a GPU."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> int:
    """Compute the frozen tower's outputs once, or check that they are cached.

    Continues an interrupted run.
    """
    from lockadapt.cli.recipe_file import read_recipe

    loaded = read_recipe(recipe, overrides)
    if count is not None and count > 1:
        from lockadapt.cli.launching import launch

        return launch(sys.argv[1:], count)
    from lockadapt.building.cache import cache_recipe
    from lockadapt.console import Reporter

    report = cache_recipe(loaded.recipe, Reporter(quiet))
    if not is_first():
        return 0
    if as_json:
        emit(json.dumps(report))
        return 0
    drift = report["drift"]
    emit(
        f"{report['folder']}: {report['images']:,} images ({report['computed']:,} computed now), "
        f"{report['bytes'] / 2**20:,.1f} MiB, {report['seconds']:.0f} s; {report['stored']}: "
        f"largest difference {drift['largest']:.2g}, relative {drift['relative']:.2g}"
    )
    return 0
