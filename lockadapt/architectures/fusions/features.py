"""The door for cached features: what the stock class feeds its projector, and how to feed it from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.fusions.bodies import body_of


@torch.no_grad()
def projector_input(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Exactly what the stock class feeds its projector: (images, channels, side, side) -> (images, tokens, channels).

    Taken where it happens, at the projector's entrance, so layer choice, dropped class token and flattening are the
    stock class's own. The tower is run without gradient, in whatever mode (train, eval) it is in.
    """
    base: Any = unwrap_model(model)
    seen: list[Tensor] = []

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach())

    handle = base.get_submodule(layout_of(base).projector).register_forward_pre_hook(look)
    try:
        base.model.get_image_features(pixel_values=pixel_values)
    finally:
        handle.remove()
    return seen[0]


def image_outputs(
    model: nn.Module, image_features: Tensor, image_scales: Tensor | None = None
) -> dict[str, BaseModelOutputWithPooling]:
    """The `mm_encoder_outputs` argument of the stock forward and of `generate`.

    Args:
        model: a stock model, or wrapped by PEFT.
        image_features: from `projector_input`, (images, tokens, channels), in the order of the `<image>` spans;
            in any dtype, which is left only on the model's device.
        image_scales: what int8 features are multiplied with, float32 (images, 1, channels).

    Returns:
        The projected features with gradient to the projector. `pixel_values` must not be passed beside it.
    """
    base: Any = unwrap_model(model)
    projector = base.get_submodule(layout_of(base).projector)
    weight = next(projector.parameters())
    features = image_features.to(weight.device)
    if image_scales is not None:
        features = features * image_scales.to(weight.device)
    projected = projector(features.to(weight.dtype))
    return {"image": BaseModelOutputWithPooling(pooler_output=body_of(base).pack(projected))}
