"""Reads COCO: `images` (`id`, `file_name`), and `annotations` with captions or boxes (`coco_boxes`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.problems import ROW_ERRORS, Problems, quote
from lockadapt.data.readers.coco_boxes import read_boxes
from lockadapt.data.readers.columns import clean_text, rules_for
from lockadapt.data.readers.files import read_json
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import caption_samples, collect
from lockadapt.data.readers.source import Source
from lockadapt.data.readers.tables import by_id, number_of, table
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError


def read(source: Source) -> Iterator[Sample]:
    """Read the file's samples, grouped by image in the order of `images`.

    With `source.expand` one sample for each caption, else one for each image with its first caption as the
    answer; all captions of the image are `references` either way. `source.limit` counts images.
    With `source.image_name` files are named after the image's id, else by `file_name`.

    Boxes are read by `coco_boxes.read_boxes`.

    Args:
        source: the captions file and the image folder.

    Yields:
        Samples whose `sample_id` is the image's id.

    Raises:
        DataError, SafetyError: no such tables; an id twice; an annotation without image or the other way
            round; an empty caption; a file name that leaves the folder. Several problems at once.
        RecipeError: as `Source.check` and `Source.check_fixed`.
    """
    source.check_fixed("coco", "caption", "grounding")
    path = Path(source.path)
    if source.kind == "grounding":
        yield from read_boxes(source, read_json(path))
        return
    pictures = Pictures(source.image_root(path.parent), source.image_name, source.split)
    rules = rules_for(source, pictures)
    value = read_json(path)
    _refuse_detection(value, path)
    problems = Problems(str(source.path), skip=source.bad_rows)
    images = by_id(table(value, "images", path), "id", f"{path.name}:images", problems)
    captions: dict[int, list[tuple[str, str]]] = {number: [] for number in images}
    for index, row in enumerate(table(value, "annotations", path)):
        where = f"{path.name}[{index}]"
        try:
            captions[_known(number_of(row, "image_id", where), images, where)].append(
                (where, clean_text(row.get("caption"), "caption", where))
            )
        except ROW_ERRORS as error:
            problems.add(error)

    def make(number: int, placed: tuple[str, dict[str, Any]]) -> list[Sample]:
        where, image = placed
        if not captions[number]:
            raise DataError(
                f"image {number} has no caption", where=where, fix="remove it from `images`, or caption it"
            )
        name = number if source.image_name is not None else image.get("file_name")
        refs = pictures.refs(name, where)
        if not refs:
            raise DataError("the image has no file_name", where=where, fix="write it, or set `image_name`")
        return caption_samples(captions[number], refs, rules, str(number))

    yield from collect(source, images.items(), make, problems)


def _refuse_detection(value: Any, path: Path) -> None:
    rows = value.get("annotations") if isinstance(value, dict) else None
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    if "caption" not in first and {"bbox", "segmentation", "keypoints"} & set(first):
        raise DataError(
            "this is a detection file: its annotations are boxes or masks, not captions",
            where=str(path),
            fix="name the captions file (captions_*.json), or write JSONL rows with texts to learn",
        )


def _known(number: int, images: dict[int, Any], where: str) -> int:
    if number not in images:
        raise DataError(
            f"the annotation is of image {quote(number)}, which `images` lacks",
            where=where,
            fix="add the image, or remove the annotation",
        )
    return number
