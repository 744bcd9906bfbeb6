"""Retrieval both ways: recall at 1, 5 and 10 and the median rank, for any number of captions an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.metrics.late_interaction import maxsim

Similarity = Callable[[Tensor, Tensor], Tensor]

TIE = 1e-6
"""Cosines that differ by less count as equal: float32 sums of the same numbers differ by 1e-7 or so."""

BLOCK_BYTES = 16 * 2**20
"""Float32 similarities that exist at a time; about four tensors of that size do."""


@dataclass(frozen=True)
class Candidates:
    """What is searched: distinct images and distinct texts, and which belong together.

    Attributes:
        images: distinct keys of images, in order of appearance.
        texts: distinct texts, in order of appearance.
        pairs: int64 (pairs, 2): numbers of an image and a text that belong together, each pair once.
    """

    images: tuple[Hashable, ...]
    texts: tuple[str, ...]
    pairs: Tensor


def candidates(images: Sequence[Hashable], texts: Sequence[str]) -> Candidates:
    """Find the distinct images and texts of rows that say "this text belongs to this image".

    Two images with the very same text share one candidate, which is right for both: no model could tell its
    copies apart. Texts are the same if they are equal without white space at the ends.

    Args:
        images: a key of each row's image.
        texts: each row's text.

    Returns:
        The distinct images and texts, and which belong together.

    Raises:
        DataError: no row, or as many images as texts there are not.
    """
    if len(images) != len(texts) or not texts:
        raise DataError(
            f"{len(images)} images for {len(texts)} texts",
            where="retrieval",
            fix="give one image for each text",
        )
    image_numbers: dict[Hashable, int] = {}
    text_numbers: dict[str, int] = {}
    pairs = {
        (
            image_numbers.setdefault(image, len(image_numbers)),
            text_numbers.setdefault(text.strip(), len(text_numbers)),
        )
        for image, text in zip(images, texts, strict=True)
    }
    return Candidates(
        tuple(image_numbers), tuple(text_numbers), torch.tensor(sorted(pairs), dtype=torch.int64)
    )


def retrieval_scores(images: Tensor, texts: Tensor, pairs: Tensor, rows: int | None = None) -> dict[str, Any]:
    """Score retrieval both ways by R@1, R@5, R@10 and the median rank.

    Means over queries; candidates are all images or all texts, queries those to which something belongs; n is
    the number of pairs. Ranks as `ranks` gives them.

    Args:
        images: embeddings (images, size); or of their tokens, (images, tokens, size), which `maxsim` compares
            with those of a text, the text as the query.
        texts: embeddings (texts, size); or of their tokens.
        pairs: int64 (pairs, 2), image and text that belong together.
        rows: queries at a time; by default as many as keep a block of similarities below `BLOCK_BYTES`.

    Returns:
        `{"text_to_image": {"r1", "r5", "r10", "median_rank"}, "image_to_text": {...}, "n"}`; recalls in 0..1.
        Also `text_to_text` where images have several texts, and `image_to_image` where texts have several
        images: queries are those that something else belongs to, candidates all others of their kind.

    Raises:
        DataError: see `ranks`.
    """
    late = images.ndim == 3
    to_image = maxsim if late else _cosines
    scores: dict[str, Any] = {
        "text_to_image": _summary(ranks(texts, images, pairs.flip(1), rows, similarity=to_image)),
        "image_to_text": _summary(
            ranks(images, texts, pairs, rows, similarity=lambda some, all: to_image(all, some).T)
        ),
        "n": len(pairs),
    }
    for name, embeddings, side in (("text_to_text", texts, 1), ("image_to_image", images, 0)):
        alike = _alike(pairs[:, 1 - side].tolist(), pairs[:, side].tolist())
        if len(alike):
            scores[name] = _summary(ranks(embeddings, embeddings, alike, rows, True, to_image))
    return scores


def _alike(owners: Sequence[int], members: Sequence[int]) -> Tensor:
    """Pairs of different members of one owner, int64 (pairs, 2), each pair once."""
    of_owner: dict[int, list[int]] = {}
    for owner, member in zip(owners, members, strict=True):
        of_owner.setdefault(owner, []).append(member)
    pairs = {pair for group in of_owner.values() for pair in itertools.permutations(group, 2)}
    return torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)


@torch.no_grad()
def ranks(
    queries: Tensor,
    candidates: Tensor,
    pairs: Tensor,
    rows: int | None = None,
    among: bool = False,
    similarity: Similarity | None = None,
) -> Tensor:
    """Return the rank of the best right candidate, from 1, for each query that has one.

    Several right candidates: the best one counts, and the others do not stand before it (Karpathy's protocol
    for five captions an image). Ties are counted against the model: wrong candidates as similar as the right
    one, to `TIE`, stand before it, so embeddings that are all the same get the worst rank, not the best.

    Args:
        queries: embeddings (queries, size); compared by cosine in float32.
        candidates: embeddings (candidates, size).
        pairs: int64 (pairs, 2), query and candidate that belong together.
        rows: queries at a time; by default as many as keep a block of similarities below `BLOCK_BYTES`.
        among: queries are the candidates, and a query is no candidate of its own.
        similarity: of normalised queries and candidates, (queries, candidates); None: their cosines.

    Returns:
        int64, in the order of the queries.

    Raises:
        DataError: no pair, one beyond the embeddings, or embeddings that are not finite.
    """
    _check(queries, candidates, pairs)
    pairs = pairs.to(queries.device)
    queries, candidates = F.normalize(queries.float(), dim=-1), F.normalize(candidates.float(), dim=-1)
    rows = rows or max(1, BLOCK_BYTES // (4 * len(candidates)))
    wanted, query = pairs[:, 0].unique(return_inverse=True)
    parts = []
    for start in range(0, len(wanted), rows):
        scores = (similarity or _cosines)(queries[wanted[start : start + rows]], candidates)
        here = (query >= start) & (query < start + rows)
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[query[here] - start, pairs[here, 1]] = True
        if among:
            scores[torch.arange(len(scores)), wanted[start : start + rows]] = -torch.inf
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        parts.append(1 + ((scores > best - TIE) & ~right).sum(1))
    return torch.cat(parts)


def _cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    return queries @ candidates.T


def _summary(ranks: Tensor) -> dict[str, float]:
    recalls = {f"r{depth}": float((ranks <= depth).double().mean()) for depth in (1, 5, 10)}
    # Of an even number the mean of the two in the middle, which torch's median is not.
    return {**recalls, "median_rank": float(ranks.double().quantile(0.5))}


def _check(queries: Tensor, candidates: Tensor, pairs: Tensor) -> None:
    if not len(pairs):
        raise DataError(
            "nothing belongs together", where="retrieval", fix="give pairs of an image and its text"
        )
    last = pairs.amax(0).tolist()
    if int(pairs.min()) < 0 or last[0] >= len(queries) or last[1] >= len(candidates):
        raise DataError(
            f"pairs reach from {int(pairs.min())} to {last}, embeddings are {len(queries)} and "
            f"{len(candidates)}",
            where="retrieval",
            fix="number the embeddings from 0, as `candidates` does",
        )
    for embeddings in (queries, candidates):
        broken = (~embeddings.flatten(1).isfinite().all(-1)).nonzero().flatten()
        if len(broken):
            raise DataError(
                f"{len(broken)} embeddings are not finite",
                where=f"retrieval, row {int(broken[0])} (counted from 0)",
                fix="a model that diverged cannot be scored: train it with a lower learning rate",
            )
