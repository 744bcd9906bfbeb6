"""What `check` measures of an existing model on the rows of a recipe: the table that a run prints and keeps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lockadapt.console import Reporter
from lockadapt.planning.check import check_recipe
from tests.support.existing_vlm import recipe_for, written


@pytest.mark.parametrize(
    ("name", "cache"), [("idefics3", "exact"), ("mllama", "off"), ("granite4_vision", "off")]
)
def test_check_measures_cache_and_packing_on_the_rows(name: str, cache: str, tmp_path: Path) -> None:
    reporter = Reporter()
    shown = io.StringIO()
    reporter.console = Console(file=shown, width=200)
    checked = check_recipe(recipe_for(written(name, tmp_path / "vlm"), tmp_path), reporter, 0)
    findings = {finding["probe"]: finding for finding in checked["admission"]}
    assert findings["cache"]["result"] == cache
    assert bool(findings["cache"]["detail"])
    assert findings["labels"]["result"] == findings["keys"]["result"] == "ok"
    assert "packing" in findings
    line = next(line for line in shown.getvalue().splitlines() if line.startswith("cache"))
    assert cache in line
