"""Starts the projector at the right scale: standardised features in, tokens as large as word embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assembly import Fusion
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.standardise import channel_statistics, fold
from lockadapt.errors import AssemblyError

TOKENS_KEPT = 16
"""Tokens of each image that the output scale is measured on; the statistics use all of them."""


@torch.no_grad()
def calibrate_projector(model: nn.Module, features: Tensor | Iterable[Tensor], embedding_rms: float) -> int:
    """Folds per-channel standardisation into the first layer, scales the output to `embedding_rms`, in place.

    With mean m and deviation s per channel over all images and tokens, `W (x - m) / s + b` is a linear layer
    with weight `W / s` and bias `b - (W / s) m`: the projector works on standardised features at no cost at
    run time. Then the fusion's scaled layer (the last that learns) is multiplied so that projected tokens
    have the given RMS. Assumes a fresh projector: calling it twice standardises twice.

    Args:
        model: a Transformers model with float weights.
        features: (images, tokens, channels), or an iterable of such batches, from `projector_input`.
        embedding_rms: see `embedding_rms`.

    Returns:
        The number of images used.

    Raises:
        DataError: no images, or features that are not finite.
    """
    base, architecture = unwrap_model(model), architecture_of(model)
    if architecture.assemble is None:
        raise AssemblyError(f"{type(base).__name__} has no projector that is calibrated")
    if architecture.assemble.calibrate is not None:
        batches = [features] if isinstance(features, Tensor) else features
        return architecture.assemble.calibrate(base, batches, embedding_rms)
    fusion = architecture.assemble.fusion_of(base.config)
    return calibrate(base.get_submodule(architecture.layout.projector[0]), fusion, features, embedding_rms)


@torch.no_grad()
def calibrate(
    projector: nn.Module, fusion: Fusion, features: Tensor | Iterable[Tensor], embedding_rms: float
) -> int:
    """See `calibrate_projector`, for a projector by itself and its fusion."""
    batches = [features] if isinstance(features, Tensor) else features
    first: Any = projector.get_submodule(fusion.first)
    kept: list[Tensor] = []

    def inputs() -> Iterator[Tensor]:
        for batch in batches:
            if batch.shape[0] == 0:
                continue
            if fusion.tokenwise:
                step = max(1, batch.shape[1] // TOKENS_KEPT)
                kept.append(batch[:, ::step].flatten(0, 1))
            elif not kept:
                kept.append(batch)
            yield _input_of(first, projector, batch)

    images, mean, deviation = channel_statistics(inputs())
    fold(first, mean, deviation)
    sample = torch.cat(kept).to(first.weight)
    size = projector(sample).double().square().mean().sqrt()
    if float(size) > 0:
        layer = projector.get_submodule(fusion.scaled)
        for tensor in layer.parameters():
            tensor.mul_(embedding_rms / float(size))
    return images


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
