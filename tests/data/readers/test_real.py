"""The readers on real data sets, counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lockadapt.data.images import open_image
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.scan import scan_images

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("part", "rows", "images", "yes_no"), [("train", 38_575, 4_000, 28_407), ("test", 9_673, 1_000, 7_136)]
)
def test_easy_vqa(real: Path, part: str, rows: int, images: int, yes_no: int) -> None:
    """Counts as in the data set's own README."""
    folder = real / "data" / "easy-vqa" / part
    samples = read_samples(
        "jsonl",
        Source(
            path=folder / "questions.json",
            images=folder / "images",
            kind="vqa",
            columns={"question": 0, "answer": 1, "image": 2},
            image_name="{}.png",
        ),
    )
    assert len(samples) == rows
    assert len({sample.images[0].key for sample in samples}) == images
    assert Counter(sample.answer_type for sample in samples)["yes/no"] == yes_no
    assert len({sample.answer for sample in samples}) == 13


def test_emoji(real: Path) -> None:
    source = Source(
        path=real / "data" / "emoji" / "train.jsonl",
        kind="caption",
        columns={"image": "file_name", "caption": "name", "captions": "keywords"},
    )
    samples = read_samples("jsonl", source)
    assert len(samples) == 1_360
    report = scan_images(samples[::4], 50_000_000, "error", 0.0)
    assert len(report.good) == 340
    # Transparent in every corner, so white, whether the file is RGBA or has a palette.
    corners = Counter(open_image(sample.images[0], 50_000_000).getpixel((0, 0)) for sample in samples[::8])
    assert corners.most_common(1)[0][0] == (255, 255, 255)
    assert corners[(0, 0, 0)] == 0


def test_vqa_v2(real: Path) -> None:
    folder = real / "oracles" / "vqa-v2"
    samples = read_samples(
        "vqa-v2",
        Source(
            path=folder / "questions_test.json.gz",
            annotations=folder / "annotations_test.json.gz",
            kind="vqa",
        ),
    )
    assert len(samples) == 2_962
    assert {len(sample.references) for sample in samples} == {10}
    assert Counter(sample.answer_type for sample in samples) == {"yes/no": 1020, "other": 976, "number": 966}
