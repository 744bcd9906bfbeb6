"""Starts the projector's last layer from the words about the images: ridge regression, in closed form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PENALTIES = (0.1, 1.0, 10.0)
"""Of the ridge regression, as shares of the mean squared activation."""
HELD_OUT = 4
"""One of so many images is held out, to choose the penalty, and to tell whether words can be predicted."""
LEAST = 1e-2
"""The share of the words' variance that must be predicted."""


@torch.no_grad()
def word_targets(model: nn.Module, tokenizer: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    """What the tokens of each image should look like to the LLM: the mean embedding of the words about it.

    Words weigh `log(images / images with the word)`, so that those which every image has do not count.

    Args:
        model: its embedding layer is read.
        tokenizer: of the LLM.
        texts: what the training rows answer about each image, image by image.

    Returns:
        (images, width), float64. Images whose every word all others have get the mean of the rest.
    """
    table: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    counts = [
        Counter(i for t in about for i in tokenizer(f" {t.strip()}", add_special_tokens=False)["input_ids"])
        for about in texts
    ]
    having = Counter(token for count in counts for token in count)
    rows: list[Tensor | None] = []
    for count in counts:
        weights = {token: n * math.log(len(texts) / having[token]) for token, n in count.items()}
        total = sum(weights.values())
        if total <= 0:
            rows.append(None)
            continue
        ids = torch.tensor(list(weights), device=table.weight.device)
        shares = torch.tensor(list(weights.values()), dtype=torch.float64) / total
        rows.append(shares @ table(ids).double().cpu())
    known = [row for row in rows if row is not None]
    if not known:
        return torch.zeros(len(rows), table.weight.shape[1], dtype=torch.float64)
    mean = torch.stack(known).mean(dim=0)
    return torch.stack([mean if row is None else row for row in rows])


@dataclass(frozen=True)
class Moments:
    """Sums over tokens that a linear regression needs: of activations h, targets y, and their products."""

    count: int
    h: Tensor
    y: Tensor
    hh: Tensor
    hy: Tensor
    yy: float

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of tokens."""
        return Moments(
            self.count + other.count,
            self.h + other.h,
            self.y + other.y,
            self.hh + other.hh,
            self.hy + other.hy,
            self.yy + other.yy,
        )

    def about(self, h: Tensor, y: Tensor) -> Moments:
        """The same sums of `h - mean` and `y - mean`, for means given."""
        n = self.count
        hh = self.hh - torch.outer(self.h, h) - torch.outer(h, self.h) + n * torch.outer(h, h)
        hy = self.hy - torch.outer(self.h, y) - torch.outer(h, self.y) + n * torch.outer(h, y)
        yy = self.yy - 2 * float(self.y @ y) + n * float(y @ y)
        return Moments(n, self.h - n * h, self.y - n * y, hh, hy, yy)


def moments_of(activations: Tensor, targets: Tensor) -> Moments:
    """Sums over the tokens of some images.

    Args:
        activations: (images, tokens, channels).
        targets: (images, width): the same for all tokens of an image.

    Returns:
        Sums in float64.
    """
    flat, tokens = activations.double().flatten(0, -2), activations.shape[1]
    by_image, y = activations.double().sum(dim=1), targets.double()
    squares = tokens * float(y.square().sum())
    return Moments(len(flat), flat.sum(0), tokens * y.sum(0), flat.T @ flat, by_image.T @ y, squares)


@torch.no_grad()
def align(layer: nn.Linear, folds: Sequence[Moments], rms: float) -> float:
    """Lets a linear layer predict the words' embeddings of each image from its activations, in place.

    Ridge regression (Hoerl and Kennard, Technometrics 1970), with the one of `PENALTIES` that predicts the
    images held out best. Predictions are then scaled about their mean to `rms`.

    Args:
        layer: the projector's last; with a bias, both sides are centred, and the bias is set as well.
        folds: sums over the images that are fitted, and over those held out.
        rms: what the varying part of tokens should have as root mean square: that of word embeddings.

    Returns:
        Share of the variance of the words on images held out that is predicted. Where it is not above zero,
        the layer is unchanged.
    """
    fitted, held_out = folds
    centred = layer.bias is not None
    parts = []
    for part in (fitted, fitted + held_out):
        zero = torch.zeros_like(part.h), torch.zeros_like(part.y)
        h, y = (part.h / part.count, part.y / part.count) if centred else zero
        parts.append((part.about(h, y), h, y))
    (fit, h, y), (every, every_h, every_y) = parts
    unseen = held_out.about(h, y)
    shares = {penalty: _share(_ridge(fit, penalty), unseen) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: shares[penalty])
    if not shares[best] > LEAST:
        return 0.0
    weight = _ridge(every, best)
    size = float(((weight.T @ every.hh) * weight.T).sum() / (every.count * weight.shape[1])) ** 0.5
    weight *= rms / size
    layer.weight.copy_(weight.T)
    if centred:
        layer.bias.copy_(every_y - every_h @ weight)
    return shares[best]


def _ridge(moments: Moments, penalty: float) -> Tensor:
    """(channels, width): what maps activations to targets."""
    diagonal = moments.hh.diagonal()
    added = torch.diag_embed((penalty * diagonal.mean()).clamp_min(1e-12).expand_as(diagonal))
    return torch.linalg.solve(moments.hh + added, moments.hy)


def _share(weight: Tensor, unseen: Moments) -> float:
    """1 - squared error / variance."""
    error = unseen.yy - 2 * float((weight * unseen.hy).sum()) + float(((unseen.hh @ weight) * weight).sum())
    return 1 - error / unseen.yy if unseen.yy > 0 else 0.0
