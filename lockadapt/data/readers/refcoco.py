"""Reads RefCOCO-style JSON: phrases of people about one object of an image each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockadapt.data.boxes import box_numbers
from lockadapt.data.problems import Problems, quote
from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.files import read_json
from lockadapt.data.readers.grounding import Grounded, grounding_samples
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import collect
from lockadapt.data.readers.source import Source
from lockadapt.data.readers.tables import by_id, number_of, table
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError


def read(source: Source) -> Iterator[Sample]:
    """Read one sample for each sentence of a ref.

    The file is a list of refs, or an object with a list `refs`: what RefCOCO's pickle files hold, as JSON. A
    ref has `sentences` (texts, or objects with `sent` or `raw`) and either `bbox` (`[left, top, width,
    height]` in pixels) with `file_name`, or `ann_id` and `image_id`, which are looked up in
    `source.annotations` (COCO's `instances.json`). With `source.split` refs of other splits are left out.
    `source.limit` counts refs.

    Args:
        source: the file of refs, that of annotations, and the image folder.

    Yields:
        Samples whose `sample_id` is the `ref_id`, if there is one.

    Raises:
        DataError, SafetyError: no refs; a ref without sentence, image or box; a box out of its image; a file
            name that leaves the folder. Several problems at once.
        RecipeError: as `Source.check` and `Source.check_fixed`.
    """
    source.check_fixed("refcoco", "grounding")
    path = Path(source.path)
    rules = rules_for(source, Pictures(source.image_root(path.parent), source.image_name, source.split))
    problems = Problems(str(source.path), skip=source.bad_rows)
    value = read_json(path)
    refs = table({"refs": value} if isinstance(value, list) else value, "refs", path)
    images, annotations = _tables(source, problems)
    placed = [(f"{path.name}[{index}]", ref) for index, ref in enumerate(refs)]
    if source.split is not None:
        placed = [
            pair for pair in placed if isinstance(pair[1], dict) and pair[1].get("split") == source.split
        ]

    def make(where: str, ref: Any) -> list[Sample]:
        if not isinstance(ref, dict):
            raise DataError(f"the ref is {quote(ref)}, no object", where=where, fix="write an object")
        owner, image = ref, ref
        if annotations:
            owner = _looked_up(ref, "ann_id", annotations, where)
            image = _looked_up(ref, "image_id", images, where)
        name = ref.get("image_id") if source.image_name is not None else image.get("file_name")
        pictures, box = rules.pictures.refs(name, where), box_numbers(owner.get("bbox"), where)
        number = None if ref.get("ref_id") is None else str(ref["ref_id"])
        samples: list[Sample] = []
        for sentence in _sentences(ref, where):
            samples += grounding_samples(Grounded(sentence, [box], pictures, where, number), rules, "xywh")
        return samples

    yield from collect(source, placed, make, problems)


def _tables(
    source: Source, problems: Problems
) -> tuple[dict[int, tuple[str, dict[str, Any]]], dict[int, tuple[str, dict[str, Any]]]]:
    """Images and annotations of `source.annotations` by id; empty where it is not given."""
    if source.annotations is None:
        return {}, {}
    file = Path(source.annotations)
    value = read_json(file)
    images, annotations = (
        by_id(table(value, name, file), "id", f"{file.name}:{name}", problems)
        for name in ("images", "annotations")
    )
    return images, annotations


def _looked_up(ref: Any, key: str, known: Mapping[int, tuple[str, dict[str, Any]]], where: str) -> Any:
    number = number_of(ref, key, where)
    if number not in known:
        raise DataError(
            f"{key} is {number}, which the annotations lack",
            where=where,
            fix="let `annotations` name the instances file of these refs",
        )
    return known[number][1]


def _sentences(ref: Any, where: str) -> list[Any]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(
            f"sentences is {quote(sentences)}, not a list with texts in it",
            where=where,
            fix="give the ref its phrases, as in [{'sent': 'the red cup'}]",
        )
    return [item.get("sent", item.get("raw")) if isinstance(item, Mapping) else item for item in sentences]
