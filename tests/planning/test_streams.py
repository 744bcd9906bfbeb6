"""`check` and `plan` of streamed rows: all are counted, or some stand for all; none stays in memory."""

from __future__ import annotations

import gc
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lockadapt.building.experiment import build_experiment
from lockadapt.console import Reporter
from lockadapt.data import stream
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError
from lockadapt.planning import check_stored
from lockadapt.planning.check import check_recipe
from lockadapt.planning.plan import plan_recipe
from lockadapt.recipe.read import load_recipe
from tests.support.runs import values
from tests.support.shards import add, png, write

FORMATS = pytest.mark.parametrize("format", ["parquet", "webdataset"])


def given(tiny: Path, folder: Path, format: str, rows: int = 40, **data: Any) -> dict[str, Any]:
    recipe = values(tiny, folder)
    shards = {"format": format, "path": str(write(format, folder / "shards", rows))}
    vqa = recipe["objectives"]["vqa"]
    vqa |= {"train": [vqa["train"], shards], "validation": shards, "test": shards}
    recipe["data"] = {"cache": str(folder / "cache"), **data}
    return recipe


def heard() -> tuple[Reporter, io.StringIO]:
    reporter = Reporter()
    reporter.console.file = shown = io.StringIO()
    return reporter, shown


@FORMATS
def test_check_counts_all_and_keeps_none(
    format: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_stored, "_AT_ONCE", 8)
    recipe = given(tiny, tmp_path, format)
    recipe["training"]["validation_samples"] = 10
    most = 0
    honest = check_stored.image_errors

    def watched(samples: Any, max_pixels: int, opened: Any = ()) -> Any:
        nonlocal most
        held = [o for o in gc.get_objects() if isinstance(o, ImageRef) and o.data is not None]
        most = max(most, len(held))
        return honest(samples, max_pixels, opened)

    monkeypatch.setattr(check_stored, "image_errors", watched)
    reporter, shown = heard()
    checked = check_recipe(load_recipe(None, (), recipe).recipe, reporter, 2)["objectives"]["vqa"]
    assert checked["train"]["rows"] == 48
    assert checked["train"]["images"] == 44  # four of the file, and all that the shards show
    assert [source["rows"] for source in checked["train"]["sources"]] == [8, 40]
    assert (checked["validation"]["rows"], checked["test"]["rows"]) == (10, 40)
    assert checked["train"]["tokens"] > checked["test"]["tokens"] > checked["validation"]["tokens"] > 0
    assert 8 <= most < 20
    # As many tokens as the same rows have in memory.
    experiment = build_experiment(load_recipe(None, ("data.rows=memory",), recipe).recipe)
    assert len(experiment.samples("train")["vqa"]) == 48
    assert "vqa train: 48 rows, 44 images" in shown.getvalue()


def test_check_refuses_bad_rows_and_images_of_shards(tiny: Path, tmp_path: Path) -> None:
    recipe = given(tiny, tmp_path, "webdataset", 99)
    with tarfile.open(tmp_path / "shards" / "99999.tar", "w") as archive:
        add(archive, "bad/row.png", png(0))
        add(archive, "bad/row.json", b'{"question": "what?", "answer": ""}')
    with pytest.raises(DataError, match="answer"):
        check_recipe(load_recipe(None, (), recipe).recipe, Reporter(quiet=True))
    reporter, shown = heard()
    skipped = load_recipe(None, ("data.on_bad_row=skip",), recipe).recipe
    assert check_recipe(skipped, reporter)["objectives"]["vqa"]["test"]["rows"] == 99
    assert "left out 1 of 100 rows" in shown.getvalue()
    with tarfile.open(tmp_path / "shards" / "99999.tar", "w") as archive:
        add(archive, "bad/image.png", png(0)[:60])
        add(archive, "bad/image.json", b'{"question": "what?", "answer": "red"}')
    with pytest.raises(DataError, match="damaged") as caught:
        check_recipe(load_recipe(None, (), recipe).recipe, Reporter(quiet=True))
    assert caught.value.where == "99999.tar:bad/image"
    few = load_recipe(None, ("data.on_bad_image=skip", "data.max_bad_fraction=0.01"), recipe).recipe
    checked = check_recipe(few, Reporter(quiet=True))
    assert checked["bad_images"] == 3  # in each part of the data
    assert checked["objectives"]["vqa"]["test"]["rows"] == 99
    none = load_recipe(None, ("data.on_bad_image=skip", "data.max_bad_fraction=0.001"), recipe).recipe
    with pytest.raises(DataError, match="1 of 100 images cannot be used"):
        check_recipe(none, Reporter(quiet=True))


def test_several_captions_a_row(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for number in range(3):
            add(archive, f"{number}.png", png(number))
            add(archive, f"{number}.json", b'{"captions": ["a", "b", "c"]}')
    shards = {"format": "webdataset", "path": str(tmp_path / "rows.tar")}
    recipe["objectives"] = {"caption": {"train": shards, "test": shards}}
    recipe["data"] = {"cache": str(tmp_path / "cache")}
    with pytest.raises(DataError, match="the row holds 3 samples"):
        check_recipe(load_recipe(None, (), recipe).recipe, Reporter(quiet=True))
    in_memory = load_recipe(None, ("data.rows=memory",), recipe).recipe
    checked = check_recipe(in_memory, Reporter(quiet=True))["objectives"]["caption"]
    assert (checked["train"]["rows"], checked["test"]["rows"]) == (9, 3)
    assert plan_recipe(in_memory, Reporter(quiet=True))["rows"] == {"caption": 9}


@FORMATS
def test_a_plan_looks_at_some_rows(
    format: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(None, (), given(tiny, tmp_path, format)).recipe
    whole = plan_recipe(recipe, Reporter(quiet=True))
    assert whole["rows"] == {"vqa": 48}
    assert whole["images"] is None
    monkeypatch.setattr(stream, "LOOKED_AT", 10)
    plan = plan_recipe(recipe, Reporter(quiet=True))
    assert plan["rows"] == {"vqa": 48}
    assert any("18 of 48 rows are tokenised" in sentence for sentence in plan["assumptions"])
    assert plan["tokens_per_epoch"] == pytest.approx(whole["tokens_per_epoch"], rel=0.2)
    assert plan["host_feature_bytes"] == 0
