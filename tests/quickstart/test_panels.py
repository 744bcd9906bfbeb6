"""The four-panel picture: panels take their room, right pictures are framed, texts are coloured by whether they are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lockadapt.quickstart.panels import Query, Shown, four_panels

BLUE = Image.new("RGB", (32, 32), (0, 0, 250))
GREEN_INK, RED_INK = (26, 127, 55), (207, 34, 46)


def drawn(path: Path, **panels: list) -> np.ndarray:
    items = {"answers": [], "captions": [], "queries": [], "drawn": [], **panels}
    four_panels(**items, path=path, title="Unseen")
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def has(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - np.array(colour)).max(-1) < 3).sum())


def test_every_panel_takes_room_and_all_pictures_are_there(tmp_path: Path) -> None:
    answers = [Shown(BLUE, "blue", "What colour is it?", True)] * 7
    answers_only = drawn(tmp_path / "one.png", answers=answers)
    four = drawn(
        tmp_path / "four.png",
        answers=answers,
        captions=[Shown(BLUE, "a blue square left of a yellow circle", right=False)],
        queries=[Query("a blue square", [Shown(BLUE, right=True)] * 9)],
        drawn=[Shown(BLUE, asked="a blue square")] * 2,
    )
    assert four.shape[0] > answers_only.shape[0] + 400
    assert four.shape[1] == answers_only.shape[1]
    per_picture = has(answers_only, (0, 0, 250)) / 7
    assert abs(has(four, (0, 0, 250)) / per_picture - (7 + 1 + 5 + 2)) < 0.5


def test_right_is_green_and_wrong_is_red(tmp_path: Path) -> None:
    right = drawn(tmp_path / "right.png", captions=[Shown(BLUE, "a blue square", right=True)])
    wrong = drawn(tmp_path / "wrong.png", captions=[Shown(BLUE, "a red star", right=False)])
    assert has(right, GREEN_INK)
    assert not has(right, RED_INK)
    assert has(wrong, RED_INK)
    assert not has(wrong, GREEN_INK)


def test_only_right_finds_are_framed(tmp_path: Path) -> None:
    query = [Query("a blue square", [Shown(BLUE, right=True), Shown(BLUE, right=False)])]
    both = drawn(tmp_path / "both.png", queries=query)
    none = drawn(tmp_path / "none.png", queries=[Query("a blue square", [Shown(BLUE, right=False)] * 2)])
    assert has(both, GREEN_INK) > 500
    assert not has(none, GREEN_INK)
