"""`check` of tables that stay on disk: what it says of rows in memory, with a batch of rows held at a time."""

from __future__ import annotations

import gc
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lockadapt.console import Reporter
from lockadapt.data import scan
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError
from lockadapt.planning import check_stored
from lockadapt.planning.check import check_recipe
from lockadapt.recipe.read import load_recipe
from tests.support.runs import values
from tests.support.shards import png

ROWS, IMAGES = 60, 12
QUIET = Reporter(quiet=True)


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """Sixty rows about twelve images, those of one image far from each other."""
    given = values(tiny, tmp_path)  # makes the folder of pictures as well
    for number in range(IMAGES):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(number))
    lines = [
        json.dumps({"image": f"{row % IMAGES}.png", "question": f"what is {row}?", "answer": "red"})
        for row in range(ROWS)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(lines) + "\n")
    rows = {"format": "jsonl", "path": str(tmp_path / "many.jsonl"), "images": str(tmp_path / "pictures")}
    given["objectives"]["vqa"] |= {"train": rows}
    given["data"] = {"cache": str(tmp_path / "cache"), "rows": "disk"}
    return given


def checked(given: dict[str, Any], *overrides: str, reporter: Reporter = QUIET) -> dict[str, Any]:
    return check_recipe(load_recipe(None, overrides, given).recipe, reporter, 2)


def test_tables_are_counted_as_rows_in_memory_are(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_stored, "_AT_ONCE", 8)
    opened, held, honest = Counter[str](), 0, scan.open_image

    def watched(ref: ImageRef, *rest: Any) -> Any:
        nonlocal held
        held = max(held, sum(isinstance(o, Sample) and o.where.startswith("many") for o in gc.get_objects()))
        opened[ref.key] += 1
        return honest(ref, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "open_image", watched)
        patch.setattr(check_stored, "LOOKED_AT", 0)
        patch.setattr("lockadapt.data.table.LOOKED_AT", 5)
        reporter = Reporter()
        shown = reporter.console.file = io.StringIO()
        on_disk = checked(recipe, reporter=reporter)
    assert on_disk == checked(recipe, "data.rows=memory")
    train = on_disk["objectives"]["vqa"]["train"]
    assert (train["rows"], train["images"]) == (ROWS, IMAGES)
    assert "vqa train: 60 rows, 12 images" in shown.getvalue()
    assert max(opened.values()) <= 2  # in training rows, and in those of the test
    assert 8 <= held < ROWS / 2


def test_a_bad_image_of_several_rows_counts_once(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_stored, "_AT_ONCE", 8)
    monkeypatch.setattr(check_stored, "LOOKED_AT", 0)
    picture = tmp_path / "pictures" / "7.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(DataError, match="damaged") as caught:
        checked(recipe)
    assert caught.value.where == "many.jsonl:8"
    skipped = checked(recipe, "data.on_bad_image=skip", "data.max_bad_fraction=0.1")
    assert skipped["bad_images"] == 1
    assert skipped["objectives"]["vqa"]["train"]["rows"] == ROWS - ROWS // IMAGES
    with pytest.raises(DataError, match="1 of 12 images cannot be used"):
        checked(recipe, "data.on_bad_image=skip", "data.max_bad_fraction=0.05")


def test_every_row_is_read(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockadapt.data.table.LOOKED_AT", 5)
    file = tmp_path / "many.jsonl"
    lines = file.read_text().splitlines()
    for bad in (20, 41):
        lines[bad] = lines[bad].replace('"red"', '""')
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="answer") as caught:
        checked(recipe)
    assert "many.jsonl:21" in str(caught.value)
    assert "many.jsonl:42" in str(caught.value)
    skipped = checked(recipe, "data.on_bad_row=skip", "data.max_bad_row_fraction=0.1")
    assert skipped["objectives"]["vqa"]["train"]["rows"] == ROWS - 2
