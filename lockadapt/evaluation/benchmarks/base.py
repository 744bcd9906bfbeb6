"""The one shape of a benchmark: its official files as samples, and its official score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.data.paths import DataRoot
from lockadapt.data.problems import Problems, quote
from lockadapt.data.readers.columns import clean_text, rules_for
from lockadapt.data.readers.files import read_json
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import caption_samples, collect, framed
from lockadapt.data.readers.source import Source
from lockadapt.data.readers.tables import table
from lockadapt.data.sample import Sample, question_answer
from lockadapt.errors import DataError

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
"""How LLaVA-1.5 asks for short answers (arXiv 2310.03744, section 3.2), and lmms-eval after it."""

Score = Callable[[Sequence[Sample], Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class BenchmarkFiles:
    """The folder of a benchmark, and what of it is asked.

    Attributes:
        folder: holds the official files.
        split: one of the benchmark's.
        prompt: what is asked, with the mark of its kind in it.
    """

    folder: Path
    split: str
    prompt: str

    def path(self, *names: str) -> Path:
        """The first of some files or folders that exists.

        Args:
            *names: relative to the folder, the official name first; `*` stands for anything, `.` for it.

        Returns:
            Its path.

        Raises:
            DataError: there is none.
        """
        for name in names:
            matching = [self.folder] if name == "." else sorted(self.folder.glob(name))
            if matching:
                return matching[0]
        raise DataError(
            f"there is no {' or '.join(names)} in it",
            where=str(self.folder),
            fix="let --data name the folder of the official files (docs/eval-benchmarks.md)",
        )

    def pictures(self, *names: str) -> Pictures:
        """The images in a folder of the benchmark.

        Args:
            *names: as `path` takes.

        Returns:
            The images.
        """
        return Pictures(DataRoot(self.path(*names)))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; each has a file of its own.

    Attributes:
        kind: what answers it: generated text (`vqa`, `caption`), or the run's objective of the kind `itc` or
            `grounding`, which also scores it.
        splits: the first is the default.
        prompt: what is asked, with `{question}` or `{phrase}` in it.
        read: samples of a split.
        score: official scores of answers; None: the objective's own.
        max_new_tokens: longest answer.
    """

    kind: str
    splits: tuple[str, ...]
    prompt: str
    read: Callable[[BenchmarkFiles], list[Sample]]
    score: Score | None = None
    max_new_tokens: int = 16


@dataclass(frozen=True)
class Asked:
    """A question of a benchmark, unchecked."""

    image: Any
    question: Any
    answer: Any
    answer_type: Any = None
    references: tuple[str, ...] = ()
    sample_id: Any = None


def questions(
    files: BenchmarkFiles,
    path: Path,
    rows: Iterable[tuple[str, Any]],
    pictures: Pictures,
    ask: Callable[[dict[str, Any], str], Asked],
) -> list[Sample]:
    """Turn the rows of a file into questions.

    Args:
        files: of the benchmark.
        path: the file, for messages.
        rows: (place, row), unchecked.
        pictures: of the benchmark.
        ask: finds in a row, and its place, what is asked.

    Returns:
        The samples, in the rows' order.

    Raises:
        DataError, SafetyError: a row is no object, or lacks something; several problems at once.
    """

    def make(where: str, row: Any) -> list[Sample]:
        if not isinstance(row, dict):
            raise DataError(f"the row is {quote(row)}, no object", where=where, fix="fetch the file again")
        asked = ask(row, where)
        answer = clean_text(asked.answer, "answer", where)
        kind = None if asked.answer_type is None else clean_text(asked.answer_type, "type", where)
        question = framed(clean_text(asked.question, "question", where), files.prompt)
        shown = [pictures.ref(asked.image, where)]
        number = None if asked.sample_id is None else str(asked.sample_id)
        accepted = asked.references or (answer,)
        extra = {"references": accepted, "answer_type": kind, "sample_id": number}
        return [question_answer(question, answer, shown, where, **extra)]

    source = Source(path, "vqa", prompt=files.prompt)
    source.check()
    return list(collect(source, rows, make, Problems(str(path))))


def karpathy(files: BenchmarkFiles, name: str, images: Path, by_folder: bool) -> list[Sample]:
    """Read Karpathy's splits (arXiv 1412.2306): one sample an image, its captions as references.

    Args:
        files: of the benchmark.
        name: of the JSON file.
        images: the folder of images.
        by_folder: whether `filepath` of an image names its folder below that.

    Returns:
        The samples of the split.

    Raises:
        DataError, SafetyError: an image lacks its name or captions; several problems at once.
    """
    path = files.path(name)
    pictures = Pictures(DataRoot(images))
    source = Source(path, "caption", images, expand=False, prompt=files.prompt)
    rules = rules_for(source, pictures)
    rows = table(read_json(path), "images", path)
    placed = ((f"{path.name}[{number}]", row) for number, row in enumerate(rows))
    wanted = (
        (where, row) for where, row in placed if isinstance(row, dict) and row.get("split") == files.split
    )

    def make(where: str, row: dict[str, Any]) -> list[Sample]:
        sentences = row.get("sentences")
        listed = sentences if isinstance(sentences, list) else []
        texts = [
            (where, clean_text(s.get("raw") if isinstance(s, dict) else s, "raw", where)) for s in listed
        ]
        if not texts:
            raise DataError("the image has no sentences", where=where, fix="fetch the file again")
        file = clean_text(row.get("filename"), "filename", where)
        if by_folder:
            file = f"{clean_text(row.get('filepath'), 'filepath', where)}/{file}"
        return caption_samples(texts, pictures.refs(file, where), rules, file)

    return list(collect(source, wanted, make, Problems(str(path))))
