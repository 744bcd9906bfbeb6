"""Reads VQA v2: a questions file and an annotations file, plain or .gz, ten answers per question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.problems import Problems, quote
from lockadapt.data.readers.columns import RowRules, answer_type_of, clean_text, rules_for
from lockadapt.data.readers.files import read_json
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import collect, framed, main_answer
from lockadapt.data.readers.source import Source
from lockadapt.data.readers.tables import by_id, number_of, table
from lockadapt.data.sample import Sample, question_answer
from lockadapt.errors import DataError, RecipeError

IMAGE_NAME = "COCO_{split}_{id:012d}.jpg"
"""How VQA v2 names the files of COCO 2014."""


def read(source: Source) -> Iterator[Sample]:
    """Yield a sample per question: `multiple_choice_answer` as the answer, all ten as references.

    Files are named by `source.image_name`, or as COCO 2014 names them; `{split}` is `source.split`, else the
    file's `data_subtype`, else the `split` of the first question. Single human answers may be empty, as some
    of the real ones are; the one to learn may not.

    Args:
        source: the questions file, the annotations file and the image folder.

    Yields:
        The samples in the order of the questions.

    Raises:
        DataError, SafetyError: no such tables; an id twice; a question without annotation or the other way
            round; an empty question or answer. Several problems at once.
        RecipeError: no `annotations`; no split though the file names need one; as `Source.check`
            and `Source.check_fixed`.
    """
    source.check_fixed("vqa-v2", "vqa")
    if source.annotations is None:
        raise RecipeError(
            "vqa-v2 needs the annotations file as well",
            where="annotations",
            fix="for example `annotations: v2_mscoco_val2014_annotations.json`",
        )
    path, answers_path = Path(source.path), Path(source.annotations)
    value = read_json(path)
    pattern = source.image_name or IMAGE_NAME
    pictures = Pictures(source.image_root(path.parent), pattern, _split(source, value, pattern))
    rules = rules_for(source, pictures)
    problems = Problems(f"{source.path} with {source.annotations}", skip=source.bad_rows)
    questions = by_id(table(value, "questions", path), "question_id", path.name, problems)
    answered = table(read_json(answers_path), "annotations", answers_path)
    annotations = by_id(answered, "question_id", answers_path.name, problems)
    for number, (where, _) in annotations.items():
        if number not in questions:
            problems.add(_alone("annotation", "question", number, where))

    def make(number: int, placed: tuple[str, dict[str, Any]]) -> list[Sample]:
        where, question = placed
        if number not in annotations:
            raise _alone("question", "annotation", number, where)
        return [_sample(question, annotations[number], rules, where)]

    yield from collect(source, questions.items(), make, problems)


def _sample(
    question: dict[str, Any], annotation: tuple[str, dict[str, Any]], rules: RowRules, where: str
) -> Sample:
    answer_where, answered = annotation
    image = number_of(question, "image_id", where)
    if answered.get("image_id", image) != image:
        raise DataError(
            f"the annotation is of image {quote(answered['image_id'])}, the question of image {image}",
            where=answer_where,
            fix="check that the two files belong together",
        )
    text = clean_text(question.get("question"), "question", where)
    answers = answered.get("answers")
    plain = (
        [a.get("answer") if isinstance(a, dict) else a for a in answers] if isinstance(answers, list) else []
    )
    references = tuple(a for a in plain if isinstance(a, str))
    if not references or len(references) != len(plain):
        raise DataError(
            f"the answers are {quote(answers)}, not a list of texts",
            where=answer_where,
            fix='write [{"answer": "..."}, ...]',
        )
    answer = clean_text(
        answered.get("multiple_choice_answer", main_answer(references)),
        "multiple_choice_answer",
        answer_where,
    )
    kind = answered.get("answer_type")
    return question_answer(
        framed(text, rules.prompt),
        answer,
        rules.pictures.refs(image, where),
        where,
        references=references,
        answer_type=answer_type_of(answer) if kind is None else clean_text(kind, "answer_type", answer_where),
        sample_id=str(question["question_id"]),
    )


def _split(source: Source, value: Any, pattern: str) -> str | None:
    if source.split is not None or "{split}" not in pattern:
        return source.split
    rows = value.get("questions") if isinstance(value, dict) else None
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    split = value.get("data_subtype", first.get("split")) if isinstance(value, dict) else None
    if isinstance(split, str):
        return split
    raise RecipeError(
        f"image files are named {pattern}, and neither the recipe nor the file says which split",
        where="split",
        fix="for example `split: val2014`, or set `image_name`",
    )


def _alone(present: str, other: str, number: int, where: str) -> DataError:
    return DataError(
        f"question_id {number} has the {present} but no {other}",
        where=where,
        fix="check that the questions file and the annotations file belong together",
    )
