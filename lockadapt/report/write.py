"""Writes one self-contained HTML file about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockadapt.files import write_text
from lockadapt.report.pictures import Thumbnails
from lockadapt.report.read import read_runs
from lockadapt.report.sections import sections_of

REPORT = "report.html"


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> dict[str, Any]:
    """Writes a report: no script, and no request to anywhere.

    Args:
        folders: of runs, finished or still training; at least one.
        output: the file; default: `report.html` in the first folder.

    Returns:
        `{"output", "bytes", "sections", "followed_samples", "validations"}`: names of the sections, and of
        the first run how many samples were followed through how many validations.

    Raises:
        RecipeError: a folder is no run.
        VerificationError: the record of a run is damaged.
        DiskError: the disk is full.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = read_runs([Path(folder) for folder in folders])
    sections = sections_of(runs, Thumbnails(runs[0].recipe.data.max_pixels))
    environment = Environment(
        loader=PackageLoader("lockadapt.report", ""), autoescape=True, undefined=StrictUndefined
    )
    names = " and ".join(run.name for run in runs)
    unfinished = [run.name for run in runs if run.record is None]
    subtitle = f"still training: {', '.join(unfinished)}" if unfinished else "finished; its lock is proved"
    page = environment.get_template("page.html.jinja").render(
        title=f"lockadapt: {names}", subtitle=subtitle, sections=sections
    )
    file = Path(output) if output is not None else Path(folders[0]) / REPORT
    write_text(file, page)
    followed = runs[0].followed
    return {
        "output": str(file),
        "bytes": len(page.encode()),
        "sections": [section.name for section in sections],
        "followed_samples": len({(row["objective"], row["where"], row["question"]) for row in followed}),
        "validations": len({(row["stage"], row["step"]) for row in followed}),
    }
