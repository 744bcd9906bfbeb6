"""Files that change under the reader, rows without bound, rows that may be left out, and what people write images as."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from lockadapt.data.image_bytes import content_key, picture_of
from lockadapt.data.images import open_image
from lockadapt.data.problems import BadRows
from lockadapt.data.readers import Source, files, read_samples
from lockadapt.data.readers.columns import LONGEST_TEXT
from lockadapt.data.sample import ImageRef
from lockadapt.data.scan import scan_images
from lockadapt.errors import DataError, LockadaptError, SafetyError

LIMIT = 1_000_000


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def rows_file(folder: Path, *rows: Any, name: str = "a.jsonl") -> Path:
    (folder / "0.png").write_bytes(png())
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "0.png", "question": "what?", "answer": "red", **changes}


@pytest.fixture
def image(tmp_path: Path) -> ImageRef:
    (sample,) = read_samples("jsonl", Source(path=rows_file(tmp_path, row()), kind="vqa"))
    return sample.images[0]


def swap_for_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


@pytest.mark.parametrize("after", ["reading", "scan", "digest"])
def test_an_image_that_becomes_a_link_out_is_refused(
    after: str, image: ImageRef, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Red before: after the scan whatever lay at the path was trained on."""
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(png("blue"))
    key = content_key(image, LIMIT)
    if after == "scan":
        open_image(image, LIMIT)
    assert image.path is not None
    swap_for_link(image.path, outside)
    with pytest.raises(SafetyError, match="symlink"):
        picture_of(image, key, LIMIT) if after == "digest" else open_image(image, LIMIT)


def test_a_folder_that_becomes_a_link_out_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "images", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png())
    path = rows_file(tmp_path / "data", row(image="images/0.png"))
    (sample,) = read_samples("jsonl", Source(path=path, kind="vqa"))
    inside.rename(tmp_path / "data" / "old")
    inside.symlink_to(outside)
    with pytest.raises(SafetyError, match="symlink"):
        open_image(sample.images[0], LIMIT)


@pytest.mark.parametrize("how", ["other bytes", "other file", "appears"])
def test_an_image_that_changes_is_refused(how: str, tmp_path: Path) -> None:
    path = rows_file(tmp_path, row(image="1.png" if how == "appears" else "0.png"))
    (sample,) = read_samples("jsonl", Source(path=path, kind="vqa"))
    if how == "appears":
        (tmp_path / "1.png").write_bytes(png())
    elif how == "other bytes":
        (tmp_path / "0.png").write_bytes(png("blue") + b"\0")
    else:
        (tmp_path / "new.png").write_bytes(png())
        os.replace(tmp_path / "new.png", tmp_path / "0.png")
    with pytest.raises(DataError, match="changed since"):
        open_image(sample.images[0], LIMIT)
    with pytest.raises(DataError, match=r"a\.jsonl:1.*changed since"):
        scan_images([sample], LIMIT, "error", 0.0)


def test_a_link_inside_the_folder_is_as_good_as_a_file(tmp_path: Path) -> None:
    path = rows_file(tmp_path, row(image="link.png"))
    (tmp_path / "link.png").symlink_to("0.png")
    (sample,) = read_samples("jsonl", Source(path=path, kind="vqa"))
    assert open_image(sample.images[0], LIMIT).size == (8, 8)


# --- bounds


def test_a_long_line_is_an_error_of_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    path = rows_file(tmp_path, row(), row(question="x" * 5000), row())
    with pytest.raises(DataError, match=r"1,000 bytes") as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    assert caught.value.where == "a.jsonl:2"


def test_a_long_text_is_an_error(tmp_path: Path) -> None:
    """Red before: a line of 50 MB took 16 GB in the tokenizer."""
    path = rows_file(tmp_path, row(answer="x" * (LONGEST_TEXT + 1)))
    with pytest.raises(DataError, match="more than 1,000,000"):
        read_samples("jsonl", Source(path=path, kind="vqa"))


def test_a_large_json_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_TEXT", 10)
    (tmp_path / "a.json").write_text(json.dumps([row()]))
    with pytest.raises(DataError, match="more than 10 bytes"):
        read_samples("jsonl", Source(path=tmp_path / "a.json", kind="vqa"))


# --- rows that may be left out


def many(tmp_path: Path, bad: int, total: int = 100) -> Path:
    return rows_file(tmp_path, *[row(answer="" if n < bad else "red") for n in range(total)])


def test_bad_rows_are_left_out_and_said(tmp_path: Path) -> None:
    """Red before: one empty answer stopped a file of 665,000 rows."""
    notes: list[str] = []
    source = Source(path=many(tmp_path, 5), kind="vqa", bad_rows=BadRows(0.05, notes.append))
    assert len(read_samples("jsonl", source)) == 95
    (note,) = notes
    assert "left out 5 of 100 rows" in note
    assert "a.jsonl:1: the answer is empty" in note
    assert "and 2 more of this kind" in note


@pytest.mark.parametrize(("bad", "fraction"), [(6, 0.05), (100, 1.0), (1, 0.0)])
def test_bad_rows_have_a_limit(bad: int, fraction: float, tmp_path: Path) -> None:
    source = Source(path=many(tmp_path, bad), kind="vqa", bad_rows=BadRows(fraction, print))
    with pytest.raises(DataError, match=f"{bad} of 100 rows"):
        read_samples("jsonl", source)


def test_what_is_refused_for_safety_is_never_left_out(tmp_path: Path) -> None:
    path = rows_file(tmp_path, *[row()] * 99, row(image="../x.png"))
    with pytest.raises(SafetyError):
        read_samples("jsonl", Source(path=path, kind="vqa", bad_rows=BadRows(1.0, print)))


def test_bad_captions_and_questions_are_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    skip = BadRows(0.5, notes.append)
    (tmp_path / "0.png").write_bytes(png())
    coco = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "0.png"}],
        "annotations": [{"image_id": 1, "caption": "red"}, {"image_id": 2, "caption": ""}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert (
        len(
            read_samples(
                "coco", Source(path=tmp_path / "coco.json", kind="caption", bad_rows=BadRows(1, print))
            )
        )
        == 1
    )
    questions = [{"question_id": n, "image_id": n, "question": "what?" if n else ""} for n in range(2)]
    answers = [{"question_id": n, "image_id": n, "answers": [{"answer": "red"}]} for n in range(2)]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    source = Source(
        path=tmp_path / "q.json",
        kind="vqa",
        annotations=tmp_path / "a.json",
        image_name="{}.png",
        bad_rows=skip,
    )
    assert len(read_samples("vqa-v2", source)) == 1
    assert "1 of 2 rows" in notes[0]


def test_one_mistake_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=many(tmp_path, 60), kind="vqa"))
    assert len(str(caught.value).splitlines()) == 6
    mixed = rows_file(tmp_path, *[row(answer=""), row(question=3)] * 8, row(answers=7))
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=mixed, kind="vqa"))
    assert str(caught.value).count("more of this kind") == 2
    assert "the answers are 7" in str(caught.value)


# --- images in rows


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("head", ["data:image/png;base64,", ""])
def test_base64_images(head: str, lines: bool, tmp_path: Path) -> None:
    data = png() + bytes(400)
    coded = base64.b64encode(data).decode()
    if lines:
        coded = "\n".join(coded[start : start + 76] for start in range(0, len(coded), 76))
    (sample,) = read_samples("jsonl", Source(path=rows_file(tmp_path, row(image=head + coded)), kind="vqa"))
    assert sample.images[0].data == data
    assert open_image(sample.images[0], LIMIT).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "value", ["data:image/png;base64,", "data:image/png;base64,%%%", "data:image/png,abc"]
)
def test_broken_base64(value: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="base64"):
        read_samples("jsonl", Source(path=rows_file(tmp_path, row(image=value)), kind="vqa"))


@pytest.mark.parametrize(
    "part", [{"url": "0.png"}, "0.png", {"url": "data:image/png;base64," + base64.b64encode(png()).decode()}]
)
def test_openai_image_url(part: Any, tmp_path: Path) -> None:
    content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": part}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    path = rows_file(tmp_path, {"messages": messages})
    (sample,) = read_samples("jsonl", Source(path=path, kind="dialogue"))
    assert open_image(sample.images[0], LIMIT).size == (8, 8)


@pytest.mark.parametrize(
    ("part", "error"),
    [({"url": "https://x.org/0.png"}, SafetyError), ({}, DataError), (None, DataError), (3, DataError)],
)
def test_image_urls_that_are_none(part: Any, error: type[LockadaptError], tmp_path: Path) -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": part}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "red"},
    ]
    with pytest.raises(error, match="url|URL"):
        read_samples("jsonl", Source(path=rows_file(tmp_path, {"messages": messages}), kind="dialogue"))


def test_heic_says_what_to_do(tmp_path: Path) -> None:
    path = rows_file(tmp_path, row())
    (tmp_path / "0.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (sample,) = read_samples("jsonl", Source(path=path, kind="vqa"))
    with pytest.raises(DataError, match="HEIC"):
        open_image(sample.images[0], LIMIT)


def test_detection_files_and_archives_say_what_to_do(tmp_path: Path) -> None:
    annotations = [{"id": 0, "image_id": 0, "bbox": [0, 0, 1, 1], "category_id": 1}]
    value = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": annotations, "categories": []}
    (tmp_path / "instances.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="detection file"):
        read_samples("coco", Source(path=tmp_path / "instances.json", kind="caption"))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "000.tar").write_bytes(bytes(1024))
    for format, path in (("jsonl", "w/000.tar"), ("datasets", "w"), ("datasets", "w/000.tar")):
        with pytest.raises(DataError, match="WebDataset"):
            read_samples(format, Source(path=tmp_path / path, kind="vqa"))


def test_a_slice_of_a_split_says_what_to_write(tmp_path: Path) -> None:
    rows_file(tmp_path, row())
    with pytest.raises(DataError, match="part of one") as caught:
        read_samples("datasets", Source(path=tmp_path, kind="vqa", split="train[:5]"))
    assert "`split: train`" in str(caught.value.fix)
    assert "limit: 5" in str(caught.value.fix)


def test_columns_of_mixed_types_are_what_they_stand_for(tmp_path: Path) -> None:
    """Red before: the JSON text itself was learned."""
    (tmp_path / "0.png").write_bytes(png())
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    messages = [
        [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}],
        [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}],
    ]
    mixed = {"role": datasets.Value("string"), "content": datasets.Json()}
    for kind in (datasets.List(mixed), datasets.List(datasets.Json()), datasets.Json()):
        features = datasets.Features({"images": datasets.List(datasets.Value("string")), "messages": kind})
        rows = {"images": [["0.png"], []], "messages": messages}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.save_to_disk(str(tmp_path / "saved"))
        source = Source(path=tmp_path / "saved", kind="dialogue", images=tmp_path)
        first, second = read_samples("datasets", source)
        assert [turn.text for turn in first.turns] == ["what?", "red"]
        assert len(first.images) == 1
        assert [turn.text for turn in second.turns] == ["why?", "so"]
