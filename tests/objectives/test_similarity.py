"""The blocked losses equal plain ones on all similarities, forward and backward, and open_clip's formulas."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.objectives.similarity import Contrast, contrastive_loss

Kind = Literal["infonce", "sigmoid"]


def plain(
    images: Tensor, texts: Tensor, positive: list[list[bool]], scale: Tensor, bias: Tensor | None, kind: str
) -> Tensor:
    """Both losses pair by pair, as their definitions read."""
    logits = scale * images @ texts.T + (0 if bias is None else bias)
    if kind == "sigmoid":
        pairs = [
            -torch.log(torch.sigmoid(logits[i, j] if positive[i][j] else -logits[i, j]))
            for i in range(len(images))
            for j in range(len(texts))
        ]
        return torch.stack(pairs).sum() / max(len(images), len(texts))
    means = []
    for scores, right in (
        (logits, positive),
        (logits.T, [list(column) for column in zip(*positive, strict=True)]),
    ):
        rows = []
        for row, wanted in zip(scores, right, strict=True):
            if any(wanted):
                mine = [-torch.log(row[j].exp() / row.exp().sum()) for j in range(len(row)) if wanted[j]]
                rows.append(torch.stack(mine).mean())
        means.append(torch.stack(rows).mean())
    return (means[0] + means[1]) / 2


def embeddings(rows: int, size: int, seed: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, size, generator=made, dtype=torch.float64), dim=-1)


def together(image_keys: list[list[int]], text_keys: list[list[int]]) -> list[list[bool]]:
    return [
        [any(a == b and a >= 0 for a, b in zip(ours, theirs, strict=True)) for theirs in text_keys]
        for ours in image_keys
    ]


# Two captions of image 0, a text that images 1 and 2 share, an image without text (5), a text without image (-1).
IMAGE_KEYS = [[0, 10], [1, 12], [2, 12], [3, 13], [4, -1], [5, -1]]
TEXT_KEYS = [[0, 10], [0, 11], [1, 12], [2, 12], [3, 13], [4, 14], [-1, -1]]


def check(
    image_keys: list[list[int]], text_keys: list[list[int]], kind: Kind, rows: int | None, seed: int
) -> None:
    values = [embeddings(len(image_keys), 5, seed), embeddings(len(text_keys), 5, seed + 1)]
    values += [torch.tensor(7.0, dtype=torch.float64)]
    values += [torch.tensor(-2.5, dtype=torch.float64)] if kind == "sigmoid" else []
    ours = [value.float().requires_grad_() for value in values]
    exact = [value.clone().requires_grad_() for value in values]
    loss = contrastive_loss(
        ours[0],
        ours[1],
        torch.tensor(image_keys),
        torch.tensor(text_keys),
        Contrast(*ours[2:], kind=kind),
        rows=rows,
    )
    bias = exact[3] if kind == "sigmoid" else None
    reference = plain(exact[0], exact[1], together(image_keys, text_keys), exact[2], bias, kind)
    (loss * 3).backward()
    (reference * 3).backward()
    torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("rows", [1, 2, 4, 6, 100, None])
def test_equals_the_definition(kind: Kind, rows: int | None) -> None:
    check(IMAGE_KEYS, TEXT_KEYS, kind, rows, seed=0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equals_the_definition_for_any_keys(data: st.DataObject) -> None:
    keys = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 3)).map(list), min_size=1, max_size=6)
    image_keys, text_keys = data.draw(keys), data.draw(keys)
    text_keys.append([9, 9])
    image_keys.append([9, -1])
    kind: Kind = data.draw(st.sampled_from(["infonce", "sigmoid"]))
    check(image_keys, text_keys, kind, data.draw(st.integers(1, 8)), data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("rows", [3, None])
def test_equals_open_clip(rows: int | None) -> None:
    """ClipLoss and SigLipLoss, for pairs of one image and one text."""
    images, texts = embeddings(8, 6, 0), embeddings(8, 6, 1)
    logit_scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64)
    bias = torch.tensor(-10.0, dtype=torch.float64)
    for kind in ("infonce", "sigmoid"):
        sides = [[value.clone().requires_grad_() for value in (images, texts, logit_scale)] for _ in range(2)]
        theirs, ours = sides
        logits = theirs[2].exp() * theirs[0] @ theirs[1].T
        if kind == "infonce":
            labels = torch.arange(8)
            reference = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        else:
            labels = 2 * torch.eye(8, dtype=torch.float64) - torch.ones(8, 8, dtype=torch.float64)
            reference = -F.logsigmoid(labels * (logits + bias)).sum() / 8
        loss = contrastive_loss(
            ours[0],
            ours[1],
            torch.arange(8),
            torch.arange(8),
            Contrast(ours[2].exp(), bias if kind == "sigmoid" else None, kind),  # type: ignore[arg-type]
            rows,
        )
        loss.backward()
        reference.backward()
        torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=1e-6)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_float32_under_autocast(kind: Kind) -> None:
    images, texts = embeddings(6, 16, 0).float(), embeddings(6, 16, 1).float()
    keys = torch.arange(6)
    exact = contrastive_loss(images, texts, keys, keys, Contrast(torch.tensor(50.0), kind=kind))
    with torch.autocast("cpu", torch.bfloat16):
        cast = contrastive_loss(images, texts, keys, keys, Contrast(torch.tensor(50.0), kind=kind))
    assert torch.equal(exact, cast)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_never_as_large_as_all_pairs(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the forward or backward pass has more elements than a block, or than the embeddings."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.untyped_storage().nbytes() // 4)
            return made

    images = embeddings(60, 4, 0).float().requires_grad_()
    texts, keys = embeddings(60, 4, 1).float(), torch.arange(60)
    with Watch():
        contrastive_loss(images, texts, keys, keys, Contrast(torch.tensor(5.0), kind=kind), rows=5).backward()
    assert largest == 5 * 60


def test_large_scales_stay_finite() -> None:
    images, texts = embeddings(5, 4, 0).float().requires_grad_(), embeddings(5, 4, 1).float()
    keys = torch.arange(5)
    for kind in ("infonce", "sigmoid"):
        images.grad = None
        loss = contrastive_loss(images, texts, keys, keys, Contrast(torch.tensor(1e4), kind=kind))  # type: ignore[arg-type]
        loss.backward()
        assert loss.isfinite()
        assert images.grad is not None
        assert images.grad.isfinite().all()


def test_refuses_what_cannot_be_learned_from() -> None:
    images, texts, scale = torch.ones(2, 3), torch.ones(2, 3), torch.tensor(1.0)
    keys = torch.arange(2)
    with pytest.raises(DataError, match="nothing to learn from"):
        contrastive_loss(images, texts, keys, keys + 2, Contrast(scale))
    with pytest.raises(DataError, match="0 texts"):
        contrastive_loss(images, texts[:0], keys, keys[:0], Contrast(scale))
    with pytest.raises(DataError, match="2 images with keys for 3"):
        contrastive_loss(images, texts, torch.arange(3), keys, Contrast(scale))
    with pytest.raises(DataError, match="columns"):
        contrastive_loss(images, texts, keys[:, None].repeat(1, 2), keys, Contrast(scale))
    with pytest.raises(DataError, match="bias cancels"):
        contrastive_loss(images, texts, keys, keys, Contrast(scale, scale))
