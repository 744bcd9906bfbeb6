"""The scan finds each bad image once, names its row, and stops or skips as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.data.scan import BadImage, scan_images
from lockadapt.errors import DataError, SafetyError

LIMIT = 10_000


@pytest.fixture
def refs(tmp_path: Path) -> dict[str, ImageRef]:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    Image.new("1", (200, 200)).save(tmp_path / "big.png")
    Image.effect_noise((20, 20), 90).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    names = ("good", "fine", "big", "cut", "absent")
    return {name: ImageRef(key=name, path=tmp_path / f"{name}.png") for name in names}


def rows(refs: dict[str, ImageRef], *names: str) -> list[Sample]:
    return [
        question_answer(
            "what?", "this", [refs[image] for image in name.split("+") if image], f"train.jsonl:{line}"
        )
        for line, name in enumerate(names, start=1)
    ]


def test_all_good(refs: dict[str, ImageRef]) -> None:
    seen: list[tuple[int, int]] = []
    samples = rows(refs, "good", "fine", "good+fine", "")
    report = scan_images(samples, LIMIT, "error", 0.0, lambda done, of: seen.append((done, of)))
    assert report.good == samples
    assert report.bad == []
    assert seen == [(1, 2), (2, 2)]  # each distinct image once


def test_text_only() -> None:
    samples = [question_answer("why?", "so", [], "a.jsonl:1")]
    assert scan_images(samples, LIMIT, "error", 0.0).good == samples


def test_error_lists_the_bad_with_their_first_rows(refs: dict[str, ImageRef]) -> None:
    with pytest.raises(DataError) as caught:
        scan_images(rows(refs, "good", "cut", "absent", "cut"), LIMIT, "error", 1.0)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "train.jsonl:2" in message
    assert "train.jsonl:3" in message
    assert "train.jsonl:4" not in message
    assert "absent.png" in message
    assert caught.value.fix


def test_error_on_a_bomb_is_a_safety_error(refs: dict[str, ImageRef]) -> None:
    with pytest.raises(SafetyError) as caught:
        scan_images(rows(refs, "good", "big"), LIMIT, "error", 0.0)
    assert caught.value.exit_code == 10
    assert caught.value.where == "train.jsonl:2"


def test_skip_drops_every_sample_that_shows_a_bad_image(refs: dict[str, ImageRef]) -> None:
    samples = rows(refs, "good", "cut", "fine+cut", "big", "fine")
    report = scan_images(samples, LIMIT, "skip", 0.5)
    assert [sample.where for sample in report.good] == ["train.jsonl:1", "train.jsonl:5"]
    assert [(bad.key, bad.where) for bad in report.bad] == [
        ("cut", "train.jsonl:2"),
        ("big", "train.jsonl:4"),
    ]
    assert isinstance(report.bad[0], BadImage)
    assert "cut.png" in report.bad[0].reason


@pytest.mark.parametrize("fraction", [0.0, 0.33])
def test_skip_has_a_limit(refs: dict[str, ImageRef], fraction: float) -> None:
    with pytest.raises(DataError, match="1 of 3 images") as caught:
        scan_images(rows(refs, "good", "fine", "cut"), LIMIT, "skip", fraction)
    assert "train.jsonl:3" in str(caught.value)


def test_skip_up_to_the_limit(refs: dict[str, ImageRef]) -> None:
    assert len(scan_images(rows(refs, "good", "cut"), LIMIT, "skip", 0.5).good) == 1


def test_skip_leaves_something(refs: dict[str, ImageRef]) -> None:
    with pytest.raises(DataError, match="2 of 2"):
        scan_images(rows(refs, "cut", "absent"), LIMIT, "skip", 1.0)


def test_error_stops_at_twenty(tmp_path: Path) -> None:
    samples = [
        question_answer("q", "a", [ImageRef(key=str(i), path=tmp_path / f"{i}.png")], f"a.jsonl:{i}")
        for i in range(50)
    ]
    with pytest.raises(DataError) as caught:
        scan_images(samples, LIMIT, "error", 0.0)
    assert str(caught.value).count("does not exist") == 3
    assert "and 17 more of this kind, up to a.jsonl:19" in str(caught.value)
    assert "may be more" in str(caught.value)
