"""What `check` measures of an existing model on the rows of a recipe: the table that a run prints and keeps."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from lockadapt.architectures.assemble import Assembled
from lockadapt.console import Reporter
from lockadapt.planning.check import check_recipe
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written


@pytest.mark.parametrize(
    ("name", "cache"), [("idefics3", "exact"), ("mllama", "off"), ("granite4_vision", "exact")]
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


@pytest.mark.parametrize("crops", [True, False])
@pytest.mark.parametrize("assembled", ["clip-vision"], indirect=True)
def test_an_existing_model_that_crops_says_so_and_what_to_set(
    assembled: Assembled, crops: bool, tmp_path: Path
) -> None:
    """Red before: LLaVA's CLIP processor cut edges off, and documents said that nothing is cropped."""
    assert assembled.folder is not None
    vlm = shutil.copytree(assembled.folder, tmp_path / "vlm")
    (file,) = [path for path in vlm.glob("*processor_config.json") if "image_mean" in path.read_text()]
    settings = json.loads(file.read_text())
    own = settings.get("image_processor", settings)
    side = own["size"]["height"]
    if crops:
        square = {"height": side, "width": side}
        own |= {"do_center_crop": True, "size": {"shortest_edge": side}, "crop_size": square}
    file.write_text(json.dumps(settings))
    recipe, reporter = recipe_for(vlm, tmp_path), Reporter()
    shown = reporter.console.file = io.StringIO()
    checked = check_recipe(recipe, reporter, 0)
    assert bool(checked["crop"]) is crops
    train(recipe, tmp_path / "run", reporter)
    told = " ".join(shown.getvalue().split())
    assert told.count("cuts edges off an image of 240 x 120 pixels") == 2 * crops
    assert told.count("`do_center_crop: false` and `size`") == 2 * crops
