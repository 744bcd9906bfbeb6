"""The dual body: a frozen tower and a text model side by side, each embedded by one bias-free projection."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lockadapt.architectures.base import unwrap_model
from lockadapt.models.texts import Pooling, pool


@torch.no_grad()
def pooled_image_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """One vector an image, from the frozen tower alone; what is worth remembering of an image.

    The tower's own `pooler_output`, which is what `VisionTextDualEncoderModel` projects; where a tower has
    none, the mean of its feature map or of its tokens. The tower is run without gradient, in whatever mode
    (train, eval) it is in: keep it in eval mode, since running statistics of batch normalisation move even
    without gradients.

    Args:
        model: a `VisionTextDualEncoderModel`, possibly wrapped; or a tower itself.
        pixel_values: (images, channels, side, side).

    Returns:
        (images, 1, channels), in the tower's dtype.
    """
    base = unwrap_model(model)
    tower = getattr(base, "vision_model", base)
    output = tower(pixel_values=pixel_values.to(next(tower.parameters()).dtype), return_dict=True)
    pooled = getattr(output, "pooler_output", None)
    if not isinstance(pooled, Tensor):
        states = output.last_hidden_state
        pooled = states.flatten(2).mean(-1) if states.ndim == 4 else states.mean(1)
    return pooled.flatten(1)[:, None]


def text_embedding(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Embeds a text as one vector, before the projection; with gradient to what trains of the text model.

    Args:
        model: a `VisionTextDualEncoderModel`, possibly wrapped.
        input_ids: int64 (texts, tokens), padded on the right. Some causal models count positions from the
            left edge, so padding there would change what they compute.
        attention_mask: int64 (texts, tokens).
        pooling: `pooler`, `last` or `mean`; see `TextFacts.pooling`.

    Returns:
        (texts, hidden size).
    """
    text = unwrap_model(model).text_model
    # A cache would be built for every text and thrown away.
    extra = {"use_cache": False} if hasattr(text.config, "use_cache") else {}
    output = text(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **extra)
    if pooling == "pooler":
        return cast(Tensor, output.pooler_output)
    return pool(output.last_hidden_state, attention_mask, pooling)


def project_images(model: nn.Module, features: Tensor) -> Tensor:
    """Features (images, 1, channels) -> (images, dimension), with graph."""
    projection = unwrap_model(model).visual_projection
    return cast(Tensor, projection(features.flatten(1).to(projection.weight)))


def project_texts(model: nn.Module, states: Tensor) -> Tensor:
    """What `text_embedding` gives -> (texts, dimension), with graph."""
    projection = unwrap_model(model).text_projection
    return cast(Tensor, projection(states.to(projection.weight)))


def freeze_statistics(model: nn.Module) -> None:
    """Puts the tower into evaluation mode; to be called after every `model.train()`."""
    base: Any = unwrap_model(model)
    base.vision_model.eval()


@torch.no_grad()
def initialise_projections(
    model: Any,
    generator: torch.Generator,
    features: Tensor | None = None,
    states: Tensor | None = None,
) -> None:
    """Makes fresh bias-free projections, in place; fitted to features and states, if any are given.

    Weights are normal with a deviation of `width ** -0.5` (CLIP, as in open_clip). Towers' channels have
    uneven scales, and a common mean that makes all images look alike. Neither needs a bias to be taken away:
    the columns are divided by the channels' deviations, and the direction of the mean is projected out. It is
    only where training starts from: the weights are free, and the stock class holds them as they are.

    Args:
        model: a `VisionTextDualEncoderModel`.
        generator: on the CPU.
        features: (images, 1, channels), of images to be trained on.
        states: (texts, hidden size), of texts to be trained on, where the text model stays as it is.
    """
    for projection in (model.visual_projection, model.text_projection):
        weight = projection.weight
        fresh = torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5
        projection.weight.copy_(fresh.to(weight))
    if features is not None:
        _fit(model.visual_projection, features.flatten(1))
    if states is not None:
        _fit(model.text_projection, states)


def _fit(projection: Any, inputs: Tensor) -> None:
    rows = inputs.float().cpu()
    deviation = rows.std(0)
    # A channel that hardly moves would be blown up to noise.
    scale = 1 / deviation.clamp(min=1e-2 * float(deviation.max()) + 1e-12)
    mean = rows.mean(0) * scale
    fitted = projection.weight.float().cpu()
    fitted = fitted - (fitted @ mean)[:, None] * mean / mean.square().sum().clamp(min=1e-12)
    projection.weight.copy_((fitted * scale).to(projection.weight))
