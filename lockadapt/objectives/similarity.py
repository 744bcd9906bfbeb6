"""Contrastive losses over embeddings, InfoNCE and sigmoid, in blocks: never all similarities at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lockadapt.errors import DataError

Kind = Literal["infonce", "sigmoid"]

BLOCK_BYTES = 4 * 2**20
"""Float32 similarities that exist at a time; about five tensors of that size do."""


@dataclass(frozen=True)
class Contrast:
    """What becomes of the similarity of a pair.

    Attributes:
        scale: scalar, the factor itself; the exponential of what is learned
            (`lockadapt.objectives.temperature`).
        bias: scalar, or None.
        kind: `infonce` or `sigmoid`.
    """

    scale: Tensor
    bias: Tensor | None = None
    kind: Kind = "infonce"


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    contrast: Contrast,
    rows: int | None = None,
) -> Tensor:
    """How badly images and texts find each other, computed in float32 whatever autocast says.

    Image i and text j belong together if a column of their keys is equal: one column for "the same image",
    another for "the same words", say. The logit of a pair is `scale * (image . text) + bias`.

    `infonce` (CLIP, arXiv 2103.00020): cross-entropy of each image over all texts, its target uniform over
    the texts that belong to it, and of each text over all images; the mean over images and the mean over
    texts, halved. A row to which nothing belongs is a negative for the others, and not in the mean. The bias
    cancels and must be None.

    `sigmoid` (SigLIP, arXiv 2303.15343): `-log sigmoid(+-logit)`, + for every pair that belongs together;
    summed over pairs, over the number of images or of texts, whichever is larger.

    Args:
        images: L2-normalised embeddings, (images, size), any floating dtype.
        texts: L2-normalised embeddings, (texts, size), any floating dtype.
        image_keys: int64, (images,) or (images, columns). Keys below zero equal nothing.
        text_keys: int64, (texts,) or (texts, columns), as many columns as `image_keys`.
        contrast: the loss, its scale and its bias.
        rows: images at a time; by default as many as keep a block of similarities below `BLOCK_BYTES`.

    Returns:
        A scalar, with graph to images, texts, scale and bias.

    Raises:
        DataError: no image or no text, a row without keys, nothing that belongs together, or a bias with
            `infonce`.
    """
    scale, bias, kind = contrast.scale, contrast.bias, contrast.kind
    image_keys, text_keys = _columns(image_keys), _columns(text_keys)
    _check(images, texts, image_keys, text_keys, bias, kind)
    rows = rows or max(1, BLOCK_BYTES // (4 * len(texts)))
    function = _InfoNCE if kind == "infonce" else _Sigmoid
    factors = (
        (scale.float(),) if kind == "infonce" else (scale.float(), None if bias is None else bias.float())
    )
    with torch.autocast(images.device.type, enabled=False):
        return function.apply(  # type: ignore[no-any-return]
            images.float(), texts.float(), *factors, image_keys, text_keys, rows
        )


def belonging(image_keys: Tensor, text_keys: Tensor) -> Tensor:
    """Which pairs match, bool (images, texts): any column of (images, columns), (texts, columns) is equal."""
    positives = torch.zeros(len(image_keys), len(text_keys), dtype=torch.bool, device=image_keys.device)
    for ours, theirs in zip(image_keys.unbind(1), text_keys.unbind(1), strict=True):
        positives |= (ours[:, None] == theirs) & (ours >= 0)[:, None]
    return positives


class _InfoNCE(torch.autograd.Function):
    """Both directions' mean cross-entropy, with its gradient made in the forward pass.

    Two walks over the blocks: the texts' softmax runs over all images, so its normaliser must be known first.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        image_keys: Tensor,
        text_keys: Tensor,
        rows: int,
    ) -> Tensor:
        over_texts, over_images = images.new_empty(len(images)), texts.new_full((len(texts),), -torch.inf)
        of_image, of_text = images.new_empty(len(images)), texts.new_zeros(len(texts))
        for block in _blocks(len(images), rows):
            logits = images[block] @ texts.T * scale
            over_texts[block] = logits.logsumexp(1)
            over_images = torch.logaddexp(over_images, logits.logsumexp(0))
            positive = belonging(image_keys[block], text_keys)
            of_image[block], of_text = positive.sum(1).float(), of_text + positive.sum(0)
        if not of_text.any():
            raise DataError(
                "no image belongs to any text of the batch, so there is nothing to learn from",
                where="contrastive loss",
                fix="give an image and its texts the same key",
            )
        # What a positive pair counts in each direction, and a row in its mean.
        image_weight, text_weight = (
            (count > 0).float() / (count > 0).sum() / 2 for count in (of_image, of_text)
        )
        image_share, text_share = image_weight / of_image.clamp(min=1), text_weight / of_text.clamp(min=1)
        loss = (image_weight * over_texts).sum() + (text_weight * over_images).sum()
        sums = _Sums(ctx, images, texts, scale)
        for block in _blocks(len(images), rows):
            logits = images[block] @ texts.T * scale
            targets = (image_share[block, None] + text_share) * belonging(image_keys[block], text_keys)
            loss -= (targets * logits).sum()
            if sums.wanted:
                d_logits = (logits - over_texts[block, None]).exp_().mul_(image_weight[block, None])
                d_logits += logits.sub_(over_images).exp_().mul_(text_weight)
                sums.add(block, d_logits.sub_(targets))
        sums.save(ctx)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_images, d_texts, d_scale, _ = ctx.saved_tensors
        return d_images * upstream, d_texts * upstream, d_scale * upstream, None, None, None


class _Sigmoid(torch.autograd.Function):
    """The pairs' summed loss over the larger side's number, with its gradient made in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        image_keys: Tensor,
        text_keys: Tensor,
        rows: int,
    ) -> Tensor:
        number = max(len(images), len(texts))
        loss, sums = images.new_zeros(()), _Sums(ctx, images, texts, scale)
        for block in _blocks(len(images), rows):
            logits = images[block] @ texts.T * scale
            if bias is not None:
                logits += bias
            sign = belonging(image_keys[block], text_keys).float().mul_(2).sub_(1)
            logits *= sign
            loss -= F.logsigmoid(logits).sum() / number
            if sums.wanted:
                sums.add(block, logits.neg_().sigmoid_().mul_(sign).div_(-number))
        sums.save(ctx)
        ctx.biased = bias is not None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_images, d_texts, d_scale, d_bias = ctx.saved_tensors
        biased = d_bias * upstream if ctx.biased else None
        return d_images * upstream, d_texts * upstream, d_scale * upstream, biased, None, None, None


class _Sums:
    """Gradients of images, texts, scale and bias, summed over blocks of the logits' gradient."""

    def __init__(self, ctx: Any, images: Tensor, texts: Tensor, scale: Tensor) -> None:
        self.wanted = any(ctx.needs_input_grad)
        if self.wanted:
            self.images, self.texts, self.scale = images, texts, scale
            self.d_images, self.d_texts = torch.empty_like(images), torch.zeros_like(texts)
            self.d_scale, self.d_bias = torch.zeros_like(scale), torch.zeros_like(scale)

    def add(self, block: slice, d_logits: Tensor) -> None:
        images = self.images[block]
        unscaled = d_logits @ self.texts
        self.d_scale += (unscaled * images).sum()
        self.d_bias += d_logits.sum()
        self.d_images[block] = unscaled * self.scale
        self.d_texts.addmm_(d_logits.T, images * self.scale)

    def save(self, ctx: Any) -> None:
        if self.wanted:
            ctx.save_for_backward(self.d_images, self.d_texts, self.d_scale, self.d_bias)


def _blocks(number: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, number, rows)]


def _columns(keys: Tensor) -> Tensor:
    return keys[:, None] if keys.ndim == 1 else keys


def _check(
    images: Tensor, texts: Tensor, image_keys: Tensor, text_keys: Tensor, bias: Tensor | None, kind: str
) -> None:
    counts = {"images": (images, image_keys), "texts": (texts, text_keys)}
    for name, (embeddings, keys) in counts.items():
        if not 0 < len(embeddings) == len(keys):
            raise DataError(
                f"{len(embeddings)} {name} with keys for {len(keys)}",
                where="contrastive loss",
                fix=f"give at least one of the {name}, and a key for each",
            )
    if image_keys.shape[1] != text_keys.shape[1]:
        raise DataError(
            f"images have {image_keys.shape[1]} columns of keys and texts {text_keys.shape[1]}",
            where="contrastive loss",
            fix="give both the same columns; -1 stands for no key",
        )
    if kind == "infonce" and bias is not None:
        raise DataError(
            "a bias cancels in InfoNCE and could not learn", where="contrastive loss", fix="leave it out"
        )
