"""One row (an object or a list) becomes samples; every format that holds rows goes through here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from lockadapt.data.boxes import box_numbers
from lockadapt.data.paths import DataRoot
from lockadapt.data.problems import ROW_ERRORS, Problems, quote
from lockadapt.data.readers.clips import Piece, clips
from lockadapt.data.readers.columns import (
    Absent,
    RowRules,
    answer_text,
    answer_type_of,
    cell,
    clean_text,
    missing_column,
    rules_for,
    text_list,
)
from lockadapt.data.readers.conversation import conversation, user_turn
from lockadapt.data.readers.grounding import Grounded, grounding_samples
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.preference import preference_of
from lockadapt.data.readers.source import CAPTION_PROMPT, QUESTION_MARK, Source
from lockadapt.data.sample import ImageRef, Sample, Turn, question_answer
from lockadapt.errors import DataError, LockadaptError, RecipeError

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_rows(source: Source, rows: Iterable[tuple[str, Any]], rules: RowRules) -> Iterator[Sample]:
    """Turn rows with their places into samples; a row that is an error is a problem like any other.

    Args:
        source: the kind of samples, and how many.
        rows: (place, row), or (place, the error that the row is).
        rules: by which a row becomes samples.

    Yields:
        The samples in the rows' order.

    Raises:
        DataError, SafetyError: after the last row, or at `MOST_PROBLEMS`: all problems at once; or no row at
            all.
    """

    def make(where: str, row: Any) -> list[Sample]:
        if isinstance(row, LockadaptError):
            raise row
        return samples_of(row, rules, where)

    yield from collect(source, rows, make, Problems(str(source.path), skip=source.bad_rows))


def collect(
    source: Source,
    rows: Iterable[tuple[Key, Value]],
    make: Callable[[Key, Value], Iterable[Sample]],
    problems: Problems,
) -> Iterator[Sample]:
    """Make samples of the first `source.limit` rows; what is wrong with a row is a problem of its own.

    Args:
        source: of the rows.
        rows: what `make` is called with.
        make: gives a row's samples, or raises one of `ROW_ERRORS`.
        problems: may hold some already; finished after the last row.

    Yields:
        The samples in the rows' order.

    Raises:
        DataError, SafetyError: after the last row: all problems at once, or no row at all.
    """
    empty, good = True, 0
    for key, value in islice(rows, source.limit):
        empty = False
        try:
            samples = make(key, value)
        except ROW_ERRORS as error:
            problems.add(error)
        else:
            good += 1
            yield from samples
    problems.finish(good)
    if empty:
        raise DataError("there is no row in it", where=str(source.path), fix="add rows, or name another file")


def row_to_samples(
    row: Any,
    source: Source,
    where: str,
) -> list[Sample]:
    """Turn one row that no reader read into samples; for many rows `samples_of` is faster.

    Args:
        row: a mapping or a list, unchecked.
        source: says what its fields mean; without `images`, rows hold no names of files.
        where: its place, for messages and `Sample.where`.

    Returns:
        As `samples_of`.

    Raises:
        DataError, SafetyError, RecipeError: as `samples_of`.
    """
    pictures = Pictures(None if source.images is None else DataRoot(source.images), source.image_name)
    return samples_of(row, rules_for(source, pictures), where)


def samples_of(row: Any, rules: RowRules, where: str) -> list[Sample]:
    """Turn one row into samples: one, or one a caption with `rules.expand`.

    By kind, a row holds `text` and nothing else (text), `question` and `answer` or `answers` (vqa), `caption`
    or `captions` (caption), and an `image` or `images`; or for any kind TRL's `messages`, or `prompt` and
    `completion`. A row of boxes (grounding) holds `phrase`, and `box` or `boxes`; one of a preference
    `chosen` and `rejected`, and `question` or `prompt`, unless both hold it. Images of a dialogue may be
    absent; a text under `system` becomes its first turn.

    Args:
        row: a mapping or a list, unchecked.
        rules: by which the row becomes samples.
        where: its place, for messages and `Sample.where`.

    Returns:
        The samples, at least one.

    Raises:
        DataError: a column is missing, or a value is empty or of a wrong type.
        SafetyError: an image name that leaves the data root.
        RecipeError: a prompt for rows that hold their own.
    """
    if isinstance(row, Mapping) and not isinstance(row, dict):
        row = dict(row)
    if not isinstance(row, (dict, list, tuple)):
        raise DataError(
            f"the row is {quote(row)}, neither an object nor a list",
            where=where,
            fix="write each row as an object with named values, or as a list with `columns` giving positions",
        )
    if rules.kind == "text":
        text = clean_text(_required(row, "text", rules, where), "text", where)
        return [Sample((), (Turn("assistant", text),), where, sample_id=_sample_id(row, rules, where))]
    if rules.kind == "grounding":
        return _grounding_row(row, rules, where)
    if rules.kind == "preference":
        return [_preference_row(row, rules, where)]
    if "messages" in rules.columns:
        return [_message_row(row, rules, where)]
    if rules.kind == "vqa" and _has(row, rules, "question"):
        return [_question_row(row, rules, where)]
    if rules.kind == "caption" and _has(row, rules, "caption", "captions"):
        return _caption_row(row, rules, where)
    if _has(row, rules, "messages", "prompt", "completion"):
        return [_message_row(row, rules, where)]
    own = {"vqa": "question", "caption": "caption", "dialogue": "messages", "text": "text"}[rules.kind]
    raise missing_column(row, str(rules.columns.get(own, own)), own, where)


def caption_samples(
    captions: Sequence[tuple[str, str]], images: tuple[ImageRef, ...], rules: RowRules, sample_id: str | None
) -> list[Sample]:
    """The samples of images with several captions, each with its place: one a caption with `rules.expand`."""
    references = tuple(text for _, text in captions)
    prompt = rules.prompt or CAPTION_PROMPT
    return [
        question_answer(prompt, text, images, where, references=references, sample_id=sample_id)
        for where, text in (captions if rules.expand else captions[:1])
    ]


def main_answer(answers: tuple[str, ...]) -> str:
    """The most frequent of several answers, the first of equals."""
    return Counter(answers).most_common(1)[0][0]


def framed(question: str, prompt: str | None) -> str:
    """A question in its frame."""
    return prompt.replace(QUESTION_MARK, question) if prompt else question


def _message_row(row: Any, rules: RowRules, where: str) -> Sample:
    if rules.prompt is not None:
        raise RecipeError(
            "the rows hold their own prompts, so a prompt has no place",
            where="prompt",
            fix="remove `prompt`, or map the columns that it is meant for",
        )
    if _has(row, rules, "messages"):
        messages = cell(row, "messages", rules, where)
    else:
        messages = [
            *_as_messages(row, "prompt", "user", rules, where),
            *_as_messages(row, "completion", "assistant", rules, where),
        ]
    return _conversation(row, messages, rules, where)


def _preference_row(row: Any, rules: RowRules, where: str) -> Sample:
    if rules.prompt is not None:
        raise RecipeError("rows of preferences hold their own prompts", where="prompt", fix="remove `prompt`")
    asked = next((name for name in ("messages", "prompt", "question") if _has(row, rules, name)), None)
    prompt = None if asked is None else _as_messages(row, asked, "user", rules, where)
    chosen, rejected = (_required(row, name, rules, where) for name in ("chosen", "rejected"))
    preference = preference_of(prompt, chosen, rejected, where)
    sample = _conversation(row, preference.messages, rules, where)
    return replace(sample, rejected=preference.rejected)


def _conversation(row: Any, messages: Any, rules: RowRules, where: str) -> Sample:
    """The sample of messages, and of what else stands in their row."""
    messages = _with_system(row, messages, rules, where)
    shown = _images(row, rules, where, required=False)
    images, turns = conversation(messages, shown, rules, where, _videos(row, rules, where))
    answer = turns[-1].text
    return Sample(
        images=images,
        turns=turns,
        where=where,
        references=(answer,),
        answer_type=_answer_type(row, rules, where, answer),
        sample_id=_sample_id(row, rules, where),
    )


def _with_system(row: Any, messages: Any, rules: RowRules, where: str) -> Any:
    """The messages behind the system text that LLaVA and ShareGPT rows keep beside them, under `system`."""
    system = cell(row, "system", rules, where)
    if system is Absent or system is None or system == "":
        return messages
    system = clean_text(system, "system text", where)
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        return messages
    first = messages[0]
    if isinstance(first, Mapping) and first.get("role", first.get("from")) == "system":
        content = first.get("content", first.get("value"))
        if isinstance(content, str) and content.strip() in ("", system):
            return [{"role": "system", "content": system}, *messages[1:]]
        raise DataError(
            "the row has a system text beside its messages, and another one in them",
            where=where,
            fix="keep one of them",
        )
    return [{"role": "system", "content": system}, *messages]


def _question_row(row: Any, rules: RowRules, where: str) -> Sample:
    question = clean_text(_required(row, "question", rules, where), "question", where)
    answer, references = _accepted(row, "answer", rules, where)
    images, turn = _asked(row, framed(question, rules.prompt), rules, where)
    return question_answer(
        turn,
        answer,
        images,
        where,
        references=references,
        answer_type=_answer_type(row, rules, where, answer),
        sample_id=_sample_id(row, rules, where),
    )


def _caption_row(row: Any, rules: RowRules, where: str) -> list[Sample]:
    caption, references = _accepted(row, "caption", rules, where)
    images, turn = _asked(row, rules.prompt or CAPTION_PROMPT, rules, where)
    sample_id = _sample_id(row, rules, where)
    single = _has(row, rules, "caption")
    texts = references if not single and rules.expand else (caption if single else references[0],)
    extra = {"references": references, "sample_id": sample_id, "negatives": _negatives(row, rules, where)}
    return [question_answer(turn, text, images, where, **extra) for text in texts]


def _grounding_row(row: Any, rules: RowRules, where: str) -> list[Sample]:
    phrase = _required(row, "phrase", rules, where)
    single, several = (cell(row, name, rules, where) for name in ("box", "boxes"))
    if several is Absent:
        values = [_required(row, "box", rules, where)]
    elif isinstance(several, Sequence) and not isinstance(several, (str, bytes)) and single is Absent:
        values = list(several)
    else:
        raise DataError(
            f"the boxes are {quote(several)}, not a list of boxes, or stand beside a `box`",
            where=where,
            fix="write one `box`, or a list of `boxes`",
        )
    boxes, images = [box_numbers(value, where) for value in values], _images(row, rules, where)
    return grounding_samples(Grounded(phrase, boxes, images, where, _sample_id(row, rules, where)), rules)


def _accepted(row: Any, field: str, rules: RowRules, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the text to learn and all accepted ones, from the columns `field`, `field`s, or both."""
    single, several = (cell(row, name, rules, where) for name in (field, field + "s"))
    check = answer_text if field == "answer" else clean_text
    if single is Absent and several is Absent:
        raise missing_column(row, field, field, where)
    if several is Absent or several is None:
        text = check(single, field, where)
        return text, (text,)
    references = text_list(several, field, where, check)
    return main_answer(references) if single is Absent else check(single, field, where), references


def _images(row: Any, rules: RowRules, where: str, required: bool = True) -> tuple[ImageRef, ...]:
    for field in ("images", "image"):
        value = cell(row, field, rules, where, optional=not required)
        if value is not Absent:
            images = rules.pictures.refs(value, where)
            if images or not required:
                return images
            raise DataError("the row has no image", where=where, fix="name its image, or remove the row")
    if required:
        raise missing_column(row, "image", "image", where)
    return ()


def _negatives(row: Any, rules: RowRules, where: str) -> tuple[str, ...]:
    """Captions that the row says do not belong to its image."""
    value = cell(row, "negatives", rules, where)
    if value is Absent or value is None or value == []:
        return ()
    return text_list([value] if isinstance(value, str) else value, "negatives", where, clean_text)


def _videos(row: Any, rules: RowRules, where: str) -> list[list[Piece]]:
    value = cell(row, "video", rules, where)
    return [] if value is Absent else clips(value, rules, where)


def _asked(row: Any, text: str, rules: RowRules, where: str) -> tuple[tuple[ImageRef, ...], Turn]:
    """The images of a row, and the turn that shows them and its videos before a text."""
    videos = _videos(row, rules, where)
    images = _images(row, rules, where, required=not videos)
    if not videos:
        return images, Turn("user", text, len(images))
    return user_turn([*((image,) for image in images), *(piece for span in videos for piece in span), text])


def _answer_type(row: Any, rules: RowRules, where: str, answer: str) -> str | None:
    if rules.kind != "vqa":
        return None
    value = cell(row, "answer_type", rules, where)
    if value is Absent or value is None:
        return answer_type_of(answer)
    return clean_text(value, "answer_type", where)


def _sample_id(row: Any, rules: RowRules, where: str) -> str | None:
    value = cell(row, "id", rules, where)
    return None if value is Absent or value is None else str(value)


def _as_messages(row: Any, field: str, role: str, rules: RowRules, where: str) -> list[Any]:
    value = _required(row, field, rules, where)
    if isinstance(value, str):
        return [{"role": role, "content": clean_text(value, field, where)}]
    if isinstance(value, list) and value:
        return value
    raise DataError(
        f"the {field} is {quote(value)}, neither text nor a list of messages",
        where=where,
        fix="write text, or a list of messages, each with a role and its text",
    )


def _required(row: Any, field: str, rules: RowRules, where: str) -> Any:
    value = cell(row, field, rules, where)
    if value is Absent:
        raise missing_column(row, field, field, where)
    return value


def _has(row: Any, rules: RowRules, *fields: str) -> bool:
    """Whether one of these fields is mapped, or the row has a column of its name."""
    return any(field in rules.columns or (isinstance(row, dict) and field in row) for field in fields)
