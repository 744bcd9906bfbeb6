"""Starts the projector at the right scale: standardised features in, tokens as large as word embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.align import HELD_OUT, Moments, align, moments_of
from lockadapt.architectures.assembly import Fusion
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.standardise import channel_statistics, fold
from lockadapt.errors import AssemblyError

TOKENS_KEPT = 64
"""Tokens of each image that the last layer starts from; the statistics use all of them."""
BYTES_KEPT = 256 << 20
"""Where tokens are not projected one by one, whole images up to so many bytes are kept instead."""


@dataclass(frozen=True)
class Calibration:
    """What a fresh projector was started on: images, and how well they tell the words about them.

    Attributes:
        images: how many.
        words_predicted: see `align`; None: no words were given, or the class has no layer that predicts them.
    """

    images: int
    words_predicted: float | None = None


@torch.no_grad()
def calibrate_projector(
    model: nn.Module,
    features: Tensor | Iterable[Tensor],
    embedding_rms: float,
    words: Callable[[], Tensor] | None = None,
) -> Calibration:
    """Folds per-channel standardisation into the first layer, scales the output to `embedding_rms`, in place.

    With mean m and deviation s per channel over all images and tokens, `W (x - m) / s + b` is a linear layer
    with weight `W / s` and bias `b - (W / s) m`: the projector works on standardised features at no cost at
    run time. Then the fusion's scaled layer (the last that learns) is multiplied so that projected tokens
    have the given RMS. Assumes a fresh projector: calling it twice standardises twice.

    Args:
        model: a Transformers model with float weights.
        features: (images, tokens, channels), or an iterable of such batches, from `projector_input`.
        embedding_rms: see `embedding_rms`.
        words: gives `word_targets` for each row of the features, once they are read: the last layer then
            starts by predicting them (`align`), where images tell them at all.

    Returns:
        What was used.

    Raises:
        DataError: no images, or features that are not finite.
    """
    base, architecture = unwrap_model(model), architecture_of(model)
    if architecture.assemble is None:
        raise AssemblyError(f"{type(base).__name__} has no projector that is calibrated")
    if architecture.assemble.calibrate is not None:
        batches = [features] if isinstance(features, Tensor) else features
        return Calibration(architecture.assemble.calibrate(base, batches, embedding_rms))
    fusion = architecture.assemble.fusion_of(base.config)
    projector = base.get_submodule(architecture.layout.projector[0])
    return calibrate(projector, fusion, features, embedding_rms, words)


@torch.no_grad()
def calibrate(
    projector: nn.Module,
    fusion: Fusion,
    features: Tensor | Iterable[Tensor],
    embedding_rms: float,
    words: Callable[[], Tensor] | None = None,
) -> Calibration:
    """See `calibrate_projector`, for a projector by itself and its fusion."""
    batches = [features] if isinstance(features, Tensor) else features
    first: Any = projector.get_submodule(fusion.first)
    scaled: Any = projector.get_submodule(fusion.scaled)
    kept: list[Tensor] = []

    def inputs() -> Iterator[Tensor]:
        for batch in batches:
            if batch.shape[0] == 0:
                continue
            if fusion.tokenwise:
                kept.append(batch[:, :: max(1, batch.shape[1] // TOKENS_KEPT)])
            elif not kept or sum(part.nbytes for part in kept) + batch.nbytes <= BYTES_KEPT:
                kept.append(batch)
            yield _input_of(first, projector, batch)

    images, mean, deviation = channel_statistics(inputs())
    predicted = None
    if first is not scaled:
        fold(first, mean, deviation)
    if words is not None and isinstance(scaled, nn.Linear):
        folds = _moments(scaled, projector, kept, words(), None if first is not scaled else (mean, deviation))
        predicted = align(scaled, folds, embedding_rms) if folds is not None else 0.0
    if first is scaled:
        fold(first, mean, deviation)
    if not predicted:
        squares, count = 0.0, 0
        for part in kept:
            tokens = projector(part.to(first.weight))
            squares, count = squares + float(tokens.double().square().sum()), count + tokens.numel()
        size = (squares / count) ** 0.5
        if size > 0:
            for tensor in scaled.parameters():
                tensor.mul_(embedding_rms / size)
    return Calibration(images, predicted)


def _moments(
    layer: nn.Linear,
    projector: nn.Module,
    kept: list[Tensor],
    words: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
) -> tuple[Moments, Moments] | None:
    """Of a layer's inputs, standardised if statistics are given: for `align`; None: of too few images."""
    # Summed up on the way: a matrix of the layer's width each, large for large LLMs.
    sums: list[Moments | None] = [None, None]
    begin = 0
    for part in kept:
        activations = _input_of(layer, projector, part).double()
        if statistics is not None:
            activations = (activations - statistics[0]) / statistics[1]
        targets = words[begin : begin + len(part)]
        held_out = torch.arange(begin, begin + len(part)) % HELD_OUT == HELD_OUT - 1
        for at, chosen in enumerate((~held_out, held_out)):
            if chosen.any():
                more, so_far = moments_of(activations[chosen].flatten(1, -2), targets[chosen]), sums[at]
                sums[at] = more if so_far is None else so_far + more
        begin += len(part)
    fitted, unseen = sums
    return None if fitted is None or unseen is None else (fitted, unseen)


@torch.no_grad()
def embedding_rms(model: nn.Module) -> float:
    """Root mean square of what the LLM's embedding layer returns, over all ids and channels."""
    table: nn.Embedding = unwrap_model(model).get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(table.weight.shape[0], device=table.weight.device)
    squares = sum(float(table(part).double().square().sum()) for part in ids.split(8192))
    return (squares / table.weight.numel()) ** 0.5


def _input_of(first: nn.Module, projector: nn.Module, features: Tensor) -> Tensor:
    """What the layer reads where the projector is given these features: themselves, or a norm's output."""
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        projector(features.to(next(projector.parameters())))
    finally:
        handle.remove()
    return seen[0]
