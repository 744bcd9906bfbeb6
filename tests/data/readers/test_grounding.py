"""Rows with boxes of every format become the same samples; those that cannot be right name their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lockadapt.data.boxes import BoxRules, parse_boxes
from lockadapt.data.image_bytes import content_key, picture_of
from lockadapt.data.images import open_image
from lockadapt.data.problems import BadRows
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.sample import Turn
from lockadapt.errors import DataError, RecipeError

from .test_formats import write

GOOD = {"image": "0.png", "phrase": "the cup", "box": [20, 10, 120, 60]}
TEXT = '{"bbox_2d": [100, 100, 600, 600]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture of 200 x 100 pixels, black but for its white left half."""
    picture = Image.new("RGB", (200, 100))
    picture.paste("white", (0, 0, 100, 100))
    picture.save(tmp_path / "0.png")
    return tmp_path


def read(folder: Path, rows: Any, **rules: Any) -> Any:
    path = write(folder / "rows.jsonl", rows)
    return read_samples("jsonl", Source(path=path, kind="grounding", boxes=BoxRules(**rules)))


def test_rows(folder: Path) -> None:
    (sample,) = read(folder, [{**GOOD, "id": 3}])
    assert sample.turns == (Turn("user", "Locate: the cup", 1), Turn("assistant", TEXT))
    assert sample.boxes == (pytest.approx((0.1, 0.1, 0.6, 0.6)),)
    assert (sample.where, sample.sample_id, sample.references) == ("rows.jsonl:1", "3", (TEXT,))


@pytest.mark.parametrize(
    ("coordinates", "box"), [("xywh", [20, 10, 100, 50]), ("normalised", [0.1, 0.1, 0.6, 0.6])]
)
def test_coordinates(folder: Path, coordinates: Any, box: list[float]) -> None:
    (sample,) = read(folder, [{**GOOD, "box": box}], coordinates=coordinates)
    assert sample.answer == TEXT


def test_several_boxes(folder: Path) -> None:
    row = {"image": "0.png", "phrase": "cups", "boxes": [GOOD["box"], [0, 0, 20, 20]]}
    (sample,) = read(folder, [row], format="plain")
    assert sample.answer == "[100, 100, 600, 600], [0, 0, 100, 200]"


def test_csv_and_columns(folder: Path) -> None:
    path = write(
        folder / "rows.csv", 'image,what,b\n0.png,the cup,"[20, 10, 120, 60]"\n0.png,it,20 10 120 60\n'
    )
    source = Source(
        path=path, kind="grounding", columns={"phrase": "what", "box": "b"}, prompt="Box {phrase}!"
    )
    first, second = read_samples("csv", source)
    assert (first.answer, second.answer) == (TEXT, TEXT)
    assert first.turns[0].text == "Box the cup!"


def test_datasets(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([GOOD]).save_to_disk(folder / "saved")
    source = Source(path=folder / "saved", kind="grounding", images=folder)
    assert [sample.answer for sample in read_samples("datasets", source)] == [TEXT]


def test_coco_detection(folder: Path) -> None:
    path = write(
        folder / "instances.json",
        {
            "images": [{"id": 5, "file_name": "0.png"}, {"id": 6, "file_name": "empty.png"}],
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "man"}],
            "annotations": [
                {"image_id": 5, "category_id": 1, "bbox": [100, 50, 100, 50.4], "iscrowd": 0},
                {"image_id": 5, "category_id": 2, "bbox": [0, 0, 20, 20]},
                {"image_id": 5, "category_id": 1, "bbox": [20, 10, 100, 50]},
                {"image_id": 5, "category_id": 2, "bbox": [0, 0, 200, 100], "iscrowd": 1},
            ],
        },
    )
    cups, man = read_samples("coco", Source(path=path, kind="grounding", boxes=BoxRules("plain")))
    assert cups.turns[0].text == "Locate: cup"
    assert cups.answer == "[100, 100, 600, 600], [500, 500, 1000, 1000]"
    assert (man.answer, man.sample_id) == ("[0, 0, 100, 200]", "5")


REFS = [
    {
        "ref_id": 1,
        "ann_id": 9,
        "image_id": 5,
        "split": "val",
        "sentences": [{"sent": "the cup"}, {"raw": "a cup"}],
    },
    {"ref_id": 2, "ann_id": 8, "image_id": 5, "split": "testA", "sentences": ["the man"]},
]
INSTANCES = {
    "images": [{"id": 5, "file_name": "0.png"}],
    "annotations": [{"id": 9, "bbox": [20, 10, 100, 50]}, {"id": 8, "bbox": [0, 0, 20, 20]}],
}


def test_refcoco_with_annotations(folder: Path) -> None:
    path, tables = write(folder / "refs.json", REFS), write(folder / "instances.json", INSTANCES)
    source = Source(path=path, kind="grounding", annotations=tables, split="val")
    samples = read_samples("refcoco", source)
    assert [sample.turns[0].text for sample in samples] == ["Locate: the cup", "Locate: a cup"]
    assert {sample.answer for sample in samples} == {TEXT}


def test_refcoco_whose_refs_hold_boxes(folder: Path) -> None:
    ref = {"file_name": "0.png", "bbox": [20, 10, 100, 50], "sentences": ["the cup"]}
    path = write(folder / "refs.json", {"refs": [ref]})
    (sample,) = read_samples("refcoco", Source(path=path, kind="grounding"))
    assert sample.answer == TEXT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": 7}, "ann_id is 7, which the annotations lack"),
        ({"image_id": "5"}, "not a whole number"),
        ({"sentences": []}, "not a list with texts"),
        ({"sentences": [{"text": "x"}]}, "phrase is null"),
    ],
)
def test_broken_refs(folder: Path, change: dict[str, Any], message: str) -> None:
    path, tables = write(folder / "refs.json", [{**REFS[0], **change}]), write(folder / "i.json", INSTANCES)
    with pytest.raises(DataError, match=message):
        read_samples("refcoco", Source(path=path, kind="grounding", annotations=tables))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [20, 10, 320, 60]}, "reaches out of its image, which is 200 x 100"),
        ({"box": [20, 10, float("nan"), 60]}, "not four finite numbers"),
        ({"box": [20, 10, 20, 60]}, "is empty"),
        ({"box": [120, 60, 20, 10]}, "is empty"),
        ({"box": None}, "not four finite numbers"),
        ({"box": "here"}, "not four finite numbers"),
        ({"box": ...}, "no column 'box'"),
        ({"phrase": " "}, "phrase is empty"),
        ({"phrase": ...}, "no column 'phrase'"),
        ({"image": ...}, "no column 'image'"),
        ({"image": ..., "images": ["0.png", "0.png"]}, "2 images"),
        ({"box": ..., "boxes": []}, "0 boxes"),
        ({"boxes": [[1, 2, 3, 4]]}, "beside a `box`"),
        ({"box": ..., "boxes": "1 2 3 4"}, "not a list of boxes"),
    ],
)
def test_hostile_rows_name_their_line(folder: Path, change: dict[str, Any], message: str) -> None:
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(DataError, match=message) as caught:
        read(folder, [GOOD, row])
    assert "rows.jsonl:2" in str(caught.value)
    source = Source(folder / "rows.jsonl", "grounding", bad_rows=BadRows(0.5, lambda text: None))
    assert len(read_samples("jsonl", source)) == 1


def test_an_image_that_cannot_be_read_is_left_to_the_scan(folder: Path) -> None:
    (sample,) = read(folder, [{**GOOD, "image": "nowhere.png"}])
    assert sample.boxes == ((0, 0, 1, 1),)


def test_flip(folder: Path) -> None:
    plain, mirror = read(folder, [GOOD], flip=True)
    assert plain.answer == TEXT
    assert mirror.answer == '{"bbox_2d": [400, 100, 900, 600]}'
    shown, turned = (open_image(sample.images[0], 10**6) for sample in (plain, mirror))
    assert shown.getpixel((10, 50)) == turned.getpixel((190, 50)) == (255, 255, 255)
    assert turned.getpixel((10, 50)) == (0, 0, 0)
    keys = [content_key(sample.images[0], 10**6) for sample in (plain, mirror)]
    assert keys[0] != keys[1]
    assert plain.images[0].key != mirror.images[0].key
    assert picture_of(mirror.images[0], keys[1], 10**6).tobytes() == turned.tobytes()


def test_flip_refuses_sides(folder: Path) -> None:
    with pytest.raises(DataError, match="says left or right"):
        read(folder, [{**GOOD, "phrase": "the left cup"}], flip=True)
    assert len(read(folder, [{**GOOD, "phrase": "the left cup"}])) == 1


def test_jitter_is_the_same_every_time(folder: Path) -> None:
    first, second = (read(folder, [GOOD], jitter=0.2)[0] for _ in range(2))
    assert first == second
    assert first.boxes != read(folder, [GOOD])[0].boxes


def test_a_single_row(folder: Path) -> None:
    (sample,) = row_to_samples(GOOD, Source("rows", "grounding", images=folder), "row 0")
    assert parse_boxes(sample.answer) == [pytest.approx((0.1, 0.1, 0.6, 0.6))]


def test_the_prompt_needs_the_phrase(folder: Path) -> None:
    path = write(folder / "rows.jsonl", json.dumps(GOOD))
    with pytest.raises(RecipeError, match="must hold {phrase}"):
        read_samples("jsonl", Source(path, "grounding", prompt="Where?"))
