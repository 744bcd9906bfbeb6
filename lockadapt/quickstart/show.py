"""The quickstart's overview image: predictions of four objectives on unseen combinations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lockadapt.quickstart.panels import FOUND, Query, Shown, four_panels

ANSWERS, CAPTIONS, QUERIES = 12, 6, 3
TITLE = "Combinations that training never showed"


def show(
    rows: Sequence[dict[str, Any]], drawn: Sequence[tuple[str, Image.Image]], data: Path, path: Path
) -> None:
    """Write the overview image.

    Args:
        rows: predictions of every objective, as `evaluate_folder` writes them.
        drawn: prompts and the images generated for them.
        data: folder to which image names are relative.
        path: PNG to write.
    """
    of = {name: [row for row in rows if row["objective"] == name] for name in ("vqa", "caption", "itc")}
    answers = [
        Shown(
            _picture(data, row),
            row["answer"] or "(no answer)",
            row["question"],
            row["answer"].casefold() == row["truth"].casefold(),
        )
        for row in _one_an_image(of["vqa"], ANSWERS)
    ]
    # Images other than those of the answers above.
    asked = {row["images"][0] for row in _one_an_image(of["vqa"], ANSWERS)}
    told = [row for row in of["caption"] if row["images"][0] not in asked]
    right = _right_captions(data / "captions_test.jsonl")
    captions = [
        Shown(_picture(data, row), row["answer"], right=row["answer"] in right[Path(row["images"][0]).name])
        for row in _one_an_image(told, CAPTIONS)
    ]
    queries = [_query(row, data) for row in _plainest(of["itc"], QUERIES)]
    pictures = [Shown(picture, asked=prompt) for prompt, picture in drawn]
    four_panels(answers, captions, queries, pictures, path, TITLE)


def _one_an_image(rows: Iterable[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        if len(first) < number:
            first.setdefault(row["images"][0], row)
    return list(first.values())


def _plainest(rows: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return the queries with the most matching images, so that a panel can show more than one hit."""
    return sorted(rows, key=lambda row: (-len(row["truth"]), row["question"]))[:number]


def _query(row: dict[str, Any], data: Path) -> Query:
    hits = [Shown(_open(data, name), right=name in row["truth"]) for name in row["images"][:FOUND]]
    return Query(row["question"], hits)


def _right_captions(file: Path) -> dict[str, list[str]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {Path(row["image"]).name: row["captions"] for row in rows}


def _picture(data: Path, row: dict[str, Any]) -> Image.Image:
    return _open(data, row["images"][0])


def _open(data: Path, name: str) -> Image.Image:
    path = next(path for path in (Path(name), data / name) if path.is_file())
    with Image.open(path) as picture:
        return picture.convert("RGB")
