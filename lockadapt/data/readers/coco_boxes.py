"""Reads COCO detection: `images`, `categories`, and `annotations` with a `bbox` each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.boxes import box_numbers
from lockadapt.data.problems import ROW_ERRORS, Problems, quote
from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.grounding import Grounded, grounding_samples
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import collect
from lockadapt.data.readers.source import Source
from lockadapt.data.readers.tables import by_id, number_of, table
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.metrics.boxes import Box


def read_boxes(source: Source, value: Any) -> Iterator[Sample]:
    """Read one sample for each category on an image: its name as the phrase, all its boxes as the answer.

    Boxes are `[left, top, width, height]` in pixels, and stand from left to right in the answer. Crowds
    (`iscrowd`) are left out, and so are images without boxes. `source.limit` counts images with boxes.

    Args:
        source: the detection file and the image folder.
        value: what the file holds.

    Yields:
        Samples whose `sample_id` is the image's id.

    Raises:
        DataError, SafetyError: no such tables; an id twice; an annotation without image, category or box; a
            box out of its image; a file name that leaves the folder. Several problems at once.
        RecipeError: as `Source.check`.
    """
    path = Path(source.path)
    rules = rules_for(source, Pictures(source.image_root(path.parent), source.image_name, source.split))
    problems = Problems(str(source.path), skip=source.bad_rows)
    images = by_id(table(value, "images", path), "id", f"{path.name}:images", problems)
    categories = by_id(table(value, "categories", path), "id", f"{path.name}:categories", problems)
    boxes: dict[int, dict[int, list[tuple[str, Box]]]] = {}
    for index, row in enumerate(table(value, "annotations", path)):
        where = f"{path.name}[{index}]"
        try:
            image, category = (number_of(row, key, where) for key in ("image_id", "category_id"))
            for kind, number, known in (("image", image, images), ("category", category, categories)):
                if number not in known:
                    raise DataError(
                        f"the annotation is of {kind} {quote(number)}, which the file lacks",
                        where=where,
                        fix="add it, or remove the annotation",
                    )
            if not row.get("iscrowd"):
                box = box_numbers(row.get("bbox"), where)
                boxes.setdefault(image, {}).setdefault(category, []).append((where, box))
        except ROW_ERRORS as error:
            problems.add(error)

    def make(number: int, of_image: dict[int, list[tuple[str, Box]]]) -> list[Sample]:
        where, image = images[number]
        refs = rules.pictures.refs(number if source.image_name is not None else image.get("file_name"), where)
        samples: list[Sample] = []
        for category, placed in of_image.items():
            name = categories[category][1].get("name")
            ordered = [box for _, box in sorted(placed, key=lambda pair: pair[1])]
            row = Grounded(name, ordered, refs, placed[0][0], str(number))
            samples += grounding_samples(row, rules, "xywh")
        return samples

    ordered = [(number, boxes[number]) for number in images if number in boxes]
    yield from collect(source, ordered, make, problems)
