"""Reads the JSON that runs keep beside `run.json`, typed: curves, scores, predictions, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import NotRequired, TypedDict

from lockadapt.errors import VerificationError
from lockadapt.runs.record import problems

T = TypeVar("T")
FIX = "copy the run folder again, or remove the file: `lockadapt eval` and training write it"
MOST_STEPS = 10**12


class KeptJson(Generic[T]):
    """One kind of file.

    Args:
        kind: what it holds, or each of its lines.
    """

    def __init__(self, kind: Any) -> None:
        self.adapter: TypeAdapter[T] = TypeAdapter(kind)

    def read(self, file: Path, absent: T) -> T:
        """Reads a whole file.

        Args:
            file: JSON.
            absent: what is given where there is no file.

        Returns:
            The value.

        Raises:
            VerificationError: it is damaged, and which value.
        """
        return self._typed(_text(file), str(file)) if file.exists() else absent

    def read_lines(self, file: Path) -> list[T]:
        """Reads a file of one value a line; a last line that is still being written is left out.

        Args:
            file: JSON lines; it may be missing.

        Returns:
            The values.

        Raises:
            VerificationError: a line is damaged, and which.
        """
        texts = _text(file).split("\n") if file.exists() else []
        if texts and not _is_json(texts[-1]):
            texts.pop()
        return [self._typed(text, f"{file}:{number}") for number, text in enumerate(texts, start=1)]

    def _typed(self, text: str, where: str) -> T:
        try:
            return self.adapter.validate_json(text)
        except ValidationError as error:
            raise VerificationError(problems(error), where=where, fix=FIX) from error


def _text(file: Path) -> str:
    if not file.is_file():
        raise VerificationError("is no file", where=str(file), fix=FIX)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VerificationError(f"is no UTF-8: {error}", where=str(file), fix=FIX) from error


def _is_json(text: str) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


@with_config(ConfigDict(strict=True, extra="allow"))
class MetricLine(TypedDict):
    """A line of `metrics.jsonl`: where it was logged, and what, by name."""

    stage: str
    step: Annotated[int, Field(ge=0, le=MOST_STEPS)]


@with_config(ConfigDict(strict=True, extra="allow"))
class Prediction(TypedDict):
    """An answer beside what was asked for; `truth` names the right images where texts look for images."""

    objective: str
    images: list[str]
    question: str
    answer: str
    truth: str | list[str]
    where: NotRequired[str]


@with_config(ConfigDict(strict=True, extra="allow"))
class Followed(Prediction):
    """A prediction of a sample that is followed, and when it was made."""

    stage: str
    step: Annotated[int, Field(ge=0, le=MOST_STEPS)]


METRICS = KeptJson[dict[str, Any]](MetricLine)
FOLLOWED = KeptJson[dict[str, Any]](Followed)
PREDICTIONS = KeptJson[dict[str, Any]](Prediction)
SCORES = KeptJson[dict[str, dict[str, Any]]](dict[str, dict[str, dict[str, JsonValue]]])
TOKENS = KeptJson[dict[str, Any]](dict[str, list[list[tuple[str, str]]]])
