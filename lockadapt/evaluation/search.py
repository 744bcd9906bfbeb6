"""Searches a folder of images by text or image, with a run or a merged folder that was trained to embed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lockadapt import processes
from lockadapt.console import Reporter
from lockadapt.data.claims import Claims
from lockadapt.data.sample import ImageRef
from lockadapt.errors import RecipeError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.image_index import ImageIndex, read_index, write_index
from lockadapt.evaluation.refresh import refresh
from lockadapt.evaluation.target import Target, open_target
from lockadapt.files import sha256_of
from lockadapt.metrics.late_interaction import maxsim
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.artifacts import ADAPTER, PROCESSOR

SEARCH_CACHE = Path("~/.cache/lockadapt/search")
"""Where indices are that got no place of their own; one for each folder of images and each model."""

NOT_IMAGES = ("weight", "sampling_weight", "batch_size", "chunk", "contrast", "text_prompt", "templates")
"""Settings of an objective that the embedding of an image does not depend on."""


@dataclasses.dataclass(frozen=True)
class Queries:
    """What is asked for: texts, and files of images."""

    texts: Sequence[str] = ()
    pictures: Sequence[Path] = ()


def search(
    target: Path,
    images: Path,
    queries: Queries,
    index: Path | None,
    top: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Finds the images of a folder that are most similar to each query.

    Several processes, which all call, embed the images together; the first one writes the index.

    Args:
        target: a run or merged folder that was trained to embed.
        images: searched with its subfolders.
        queries: at least one.
        index: folder of the index; None: one below `SEARCH_CACHE`, for these images and this model.
        top: images an answer names.
        reporter: told of progress.

    Returns:
        `{"searches": [{"query", "results": [{"file", "score"}]}], "index": {"folder", "images", "embedded",
        "dropped", "bad": [{"file", "reason"}]}}`; files relative to `images`, scores are cosines, or
        the mean of the largest cosines of a query's tokens.

    Raises:
        RecipeError: no query, a model that was not trained to embed, or an index that another model made.
        DataError: no images, or a query image that cannot be opened.
    """
    if not queries.texts and not queries.pictures:
        raise RecipeError("nothing is asked for", where="--query", fix="add --query TEXT or --image FILE")
    processes.join()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    return SearchedFolder.open(open_target(target), images, index).find(queries, top, reporter)


@dataclasses.dataclass(frozen=True)
class SearchedFolder:
    """A folder of images and the model that searches it, which stays loaded between searches.

    Attributes:
        embedder: of the model.
        images: the folder.
        index: folder of the index.
        fingerprint: of all that the embedding of an image depends on.
    """

    embedder: Embedder
    images: Path
    index: Path
    fingerprint: str

    @classmethod
    def open(cls, opened: Target, images: Path, index: Path | None) -> SearchedFolder:
        """Prepares a model to search a folder; arguments and errors as `search`."""
        embedder = Embedder.open(opened)
        embedder = dataclasses.replace(embedder, context=dataclasses.replace(embedder.context, dealt=True))
        fingerprint = model_fingerprint(opened, embedder)
        return cls(embedder, images, index or _own_place(images, fingerprint), fingerprint)

    def find(self, queries: Queries, top: int, reporter: Reporter) -> dict[str, Any]:
        """Searches; arguments, result and errors as `search`."""
        embedder = self.embedder
        named = [*queries.texts, *map(str, queries.pictures)]
        wanted = [embedder.texts(queries.texts)] if queries.texts else []
        if queries.pictures:
            wanted.append(embedder.images([ImageRef(str(path), path=path) for path in queries.pictures]))
        # Of embeddings of tokens a row holds all of an image's, behind one another; a text has others.
        late = wanted[0].ndim == 3
        model = (self.fingerprint, None if late else wanted[0].shape[-1])
        searchable, report = _up_to_date(embedder, self.images, self.index, model, reporter)
        rows = [row for part in wanted for row in part]
        searches = [
            {"query": query, "results": _best(searchable, row, top)}
            for query, row in zip(named, rows, strict=True)
        ]
        return {"searches": searches, "index": report}


def model_fingerprint(target: Target, embedder: Embedder) -> str:
    """Digests all that the embedding of an image depends on: weights, processor, prompt, pooling, dtype."""
    objective = dataclasses.asdict(embedder.objective)
    known: dict[str, Any] = {"objective": {k: v for k, v in objective.items() if k not in NOT_IMAGES}}
    known["dtype"] = str(next(target.model.parameters()).dtype)
    if target.run is None:
        files = [
            path for path in target.folder.rglob("*") if path.suffix in (".safetensors", ".json", ".jinja")
        ]
        files = [path for path in files if path.name != SIDECAR]
    else:
        record = target.run.record
        known["base"] = [record.base_fingerprint, record.quantization, record.llm, record.tower]
        files = [path for part in (ADAPTER, PROCESSOR) for path in (target.folder / part).rglob("*")]
        files += target.folder.glob("*.safetensors")
    digests = {
        path.relative_to(target.folder).as_posix(): sha256_of(path) for path in files if path.is_file()
    }
    return hashlib.sha256(json.dumps([known, digests], sort_keys=True).encode()).hexdigest()


def _own_place(images: Path, fingerprint: str) -> Path:
    name = hashlib.sha256(f"{images.resolve()}\n{fingerprint}".encode()).hexdigest()[:16]
    return SEARCH_CACHE.expanduser() / name


def _up_to_date(
    embedder: Embedder, images: Path, folder: Path, model: tuple[str, int | None], reporter: Reporter
) -> tuple[ImageIndex, dict[str, Any]]:
    """Args: `model`: its fingerprint, and the width of its embeddings, None where they are of tokens."""
    fingerprint, width = model
    progress = reporter.counted("embedding images")
    with contextlib.ExitStack() as claimed:
        processes.first(lambda: _claim(claimed, folder, reporter))
        before = read_index(folder, fingerprint, width)
        index, changes = refresh(
            before,
            images,
            lambda some: embedder.readable(some, progress),
            lambda part: processes.first(lambda: write_index(folder, fingerprint, part)),
        )
        if index.files != before.files:
            processes.first(lambda: write_index(folder, fingerprint, index))
    for name, reason in changes.bad.items():
        reporter.note(f"left out {name}: {reason}")
    reporter.note(
        f"{len(index.files):,} images in {folder}: {changes.embedded:,} embedded now, "
        f"{changes.dropped:,} dropped"
    )
    bad = [{"file": name, "reason": reason} for name, reason in changes.bad.items()]
    report = {"folder": str(folder), "images": len(index.files)}
    return index, {**report, "embedded": changes.embedded, "dropped": changes.dropped, "bad": bad}


def _claim(claimed: contextlib.ExitStack, folder: Path, reporter: Reporter) -> None:
    claims = claimed.enter_context(Claims(folder / "lock"))
    if not claims.take(0):
        reporter.note(f"waiting for another process that has the index {folder}")
        claims.take(0, wait=True)


def _best(index: ImageIndex, query: Tensor, top: int) -> list[dict[str, Any]]:
    """Equally similar images in the order of their names, which is that of the index."""
    rows = index.embeddings
    if query.ndim == 2:
        similar = maxsim(query[None], rows.view(len(rows), -1, query.shape[-1]))[0]
    else:
        similar = rows @ query
    scores, order = similar.sort(descending=True, stable=True)
    return [
        {"file": index.files[number].name, "score": round(score, 6)}
        for number, score in zip(order[:top].tolist(), scores[:top].tolist(), strict=True)
    ]
