"""Measures whether a model that gets kept features of its images learns what it learns from their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from lockadapt.architectures import inputs_of, layout_of
from lockadapt.architectures.base import parameters_at, unwrap_model
from lockadapt.data.batch import Batch, collate, on_device
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs, pixel_inputs
from lockadapt.data.sample import Sample
from lockadapt.errors import LockadaptError
from lockadapt.features.inputs import memory_features
from lockadapt.features.policy import ImagePolicy
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.tuning.training_autocast import training_autocast

SAME = 1e-4
"""Largest relative difference of losses, and of gradients, that is rounding in float32."""

ROUNDED = 5e-2
"""The same in 16 bits, where an image alone is rounded otherwise than beside others."""

TRIED = 3
"""Rows that are tried: the first ones with an image, and the first with several."""


@dataclass(frozen=True)
class CacheTrial:
    """What was measured on a few rows, with pixels and with kept features.

    Attributes:
        loss: relative difference of the losses.
        gradient: relative L2 difference of the gradients of LoRA, and of the projector where that trains; nan
            where there is no memory for them.
        limit: how large both may be.
        failure: what was raised, if anything was.
    """

    loss: float
    gradient: float
    limit: float
    failure: str | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing may be kept; None: it may."""
        if self.failure is not None:
            return self.failure
        if not self.loss <= self.limit:
            return f"the loss from kept features differs by {self.loss:.1e}"
        if self.gradient > self.limit:
            return f"gradients from kept features differ by {self.gradient:.1e}"
        return None


def try_cache(
    model: nn.Module, processor: Any, rows: Sequence[Encoded], projector_trains: bool, max_pixels: int
) -> CacheTrial:
    """Computes loss and gradients of rows twice, in eval mode: with pixels, and with kept features.

    Args:
        model: a Transformers model, possibly wrapped by PEFT; it is as it was afterwards.
        processor: the model's; it makes the images' sizes their own.
        rows: some with images, see `rows_to_try`.
        projector_trains: whether it trains in any stage.
        max_pixels: larger images are refused before decoding.

    Returns:
        What was measured.

    Raises:
        DataError: an image cannot be read.
        SafetyError: an image has too many pixels.
    """
    pixels = pixel_inputs(processor, max_pixels)
    kept = memory_features(model, pixels, projected=not projector_trains)
    small = {torch.float16, torch.bfloat16} & {parameter.dtype for parameter in model.parameters()}
    limit = ROUNDED if small else SAME
    training, flags = model.training, [(p, p.requires_grad) for p in model.parameters()]
    live = collate(rows, pixels, processor.tokenizer.pad_token_id, "trial")
    model.eval()
    try:
        learned = _learned(model, projector_trains)
        cached = _cached(model, rows, kept, processor)
        (loss, gradients), (other, others) = (_measured(model, batch, learned) for batch in (live, cached))
    except torch.OutOfMemoryError:
        raise
    except LockadaptError as error:
        return CacheTrial(0, 0, limit, f"with kept features {error.message}")
    # Forwards that take no kept features fail in as many ways as there are.
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return CacheTrial(0, 0, limit, f"its forward fails with kept features ({message})")
    finally:
        model.train(training)
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
    difference = abs(other - loss) / max(abs(loss), 1e-12)
    if gradients is None or others is None:
        return CacheTrial(difference, float("nan"), limit)
    apart = sum(float((a - b).square().sum()) for a, b in zip(gradients, others, strict=True))
    whole = sum(float(gradient.square().sum()) for gradient in gradients)
    return CacheTrial(difference, (apart / max(whole, 1e-30)) ** 0.5 if gradients else 0.0, limit)


Row = TypeVar("Row", bound=Encoded | Sample)


def rows_to_try(rows: Sequence[Row]) -> list[Row]:
    """The first rows or samples with an image, and the first with several; in their order."""
    shown = [row for row in rows if row.images]
    several = [row for row in shown if len(row.images) > 1][:1]
    return [*shown[: TRIED - 1], *(row for row in several if row not in shown[: TRIED - 1])]


def measured_policy(
    policy: ImagePolicy, model: nn.Module, processor: Any, rows: Sequence[Encoded]
) -> ImagePolicy:
    """A policy that knows why nothing may be kept of the images of a stock processor, if so.

    Args:
        policy: how images become inputs.
        model: the model that they are for.
        processor: the model's.
        rows: that will be used.

    Returns:
        The policy; unchanged where nothing shall be kept, or images have one size.
    """
    tried = rows_to_try(rows)
    if not inputs_of(processor).stock or policy.settings.choice == "none" or not tried:
        return policy
    trial = try_cache(model, processor, tried, policy.projector_trains, policy.max_pixels)
    return replace(policy, refused=trial.problem)


def _learned(model: nn.Module, projector_trains: bool) -> list[nn.Parameter]:
    """LoRA and, where it trains, the projector: they get a gradient, and nothing else does."""
    paths = layout_of(model).projector if projector_trains else ()
    base = unwrap_model(model)
    wanted = {id(parameter) for path in paths for parameter in parameters_at(base, path)}
    learned = []
    for name, parameter in model.named_parameters():
        wants = parameter.is_floating_point() and (id(parameter) in wanted or ".lora_" in name)
        if parameter.requires_grad != wants:
            parameter.requires_grad_(wants)
        if wants:
            learned.append(parameter)
    return learned


def _cached(model: nn.Module, rows: Sequence[Encoded], kept: ImageInputs, processor: Any) -> Batch:
    with torch.no_grad():
        return collate(rows, kept, processor.tokenizer.pad_token_id, "trial")


def _measured(
    model: nn.Module, batch: Batch, learned: Sequence[nn.Parameter]
) -> tuple[float, list[torch.Tensor] | None]:
    """The loss, and float32 gradients on the CPU; None for lack of memory."""
    batch = on_device(batch, next(model.parameters()).device)
    try:
        with torch.enable_grad(), training_autocast(model):
            loss = answer_loss(model, batch)[0]
        value = float(loss.detach())
        if not learned:
            return value, []
        gradients = torch.autograd.grad(loss, list(learned), allow_unused=True)
    except torch.OutOfMemoryError:
        with torch.no_grad(), training_autocast(model):
            return float(answer_loss(model, batch)[0]), None
    return value, [
        torch.zeros(parameter.shape) if gradient is None else gradient.detach().float().cpu()
        for parameter, gradient in zip(learned, gradients, strict=True)
    ]
