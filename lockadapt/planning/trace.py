"""Traces one training step of a model without weights, to know its memory before anything is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lockadapt.architectures import architecture_of, layout_of, tower_of
from lockadapt.architectures.base import parameters_at, unwrap_model
from lockadapt.architectures.blueprint import META, Blueprint
from lockadapt.architectures.features import projector_input
from lockadapt.data.encode import Encoded
from lockadapt.data.sample import ImageRef
from lockadapt.features.tower import image_side
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.models.quiet import quiet
from lockadapt.objectives import Objective
from lockadapt.objectives.answer_tokens import take_head_as_last
from lockadapt.planning.extrapolate import extrapolated_peak
from lockadapt.planning.fake import FakeFloats, fake
from lockadapt.planning.quantize_meta import quantize_meta
from lockadapt.planning.sizes import Size, component_sizes
from lockadapt.tuning.adapters import LoraSettings, attach_adapters, set_trainable
from lockadapt.tuning.quantize import Quantization

EIGHT_BIT_BLOCK = 256
EIGHT_BIT_FROM = 4096
"""bitsandbytes' 8-bit optimisers keep a float32 scale for so many values, and smaller tensors in float32."""


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch as a run computes it.

    Attributes:
        name: of the objective.
        objective: what is learned.
        items: its rows.
        train: parts that train: `projector`, `lora` …
        cached: the tower's outputs come from memory; else it is run.
        checkpointing: activations are computed twice.
        accumulate: gradients of an earlier micro-batch are there.
        max_row_tokens: longest packed row; None: one row a sample.
    """

    name: str
    objective: Objective
    items: Sequence[Encoded]
    train: Sequence[str]
    cached: bool
    checkpointing: bool
    accumulate: bool
    max_row_tokens: int | None


@dataclass
class Traced:
    """A model without weights, ready to be traced; built once for a dtype and a quantization."""

    model: Any
    processor: Any
    mode: FakeTensorMode
    dtype: torch.dtype
    features: tuple[int, int]
    """Tokens and channels of what the tower gives the projector for one image."""
    lock_text: bool = False
    """See `set_trainable`."""

    def sizes(self, train: Sequence[str]) -> list[Size]:
        """Sizes of the components, with `train` (projector, lora) trained."""
        set_trainable(self.model, train, lock_text=self.lock_text)
        return component_sizes(self.model)

    def state(self, train: Sequence[str], eight_bit: bool) -> tuple[int, int]:
        """Bytes of the gradients and of Adam's two averages of what trains."""
        set_trainable(self.model, train, lock_text=self.lock_text)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        moments = 0
        for parameter in trained:
            count = parameter.numel()
            small = not eight_bit or count < EIGHT_BIT_FROM
            moments += 8 * count if small else 2 * (count + 4 * -(-count // EIGHT_BIT_BLOCK))
        return sum(parameter.nbytes for parameter in trained), moments

    def tower_flops(self) -> float:
        """Operations of the tower for one image."""
        counter = FlopCounterMode(display=False)
        pixels = _FakeImages(self, False)([ImageRef("any")])["pixel_values"]
        with counter, FakeFloats(self.mode), _arithmetic(self.dtype):
            projector_input(self.model, pixels.to(self.dtype))
        return float(counter.get_total_flops())

    def peak(self, step: MicroBatch) -> tuple[int, dict[str, int], int]:
        """Traces one forward and backward of a micro-batch.

        Args:
            step: the micro-batch's shapes.

        Returns:
            The peak in bytes, its parts (see `step_peak`), and the bytes of the batch, which are not among
            them.
        """
        set_trainable(self.model, step.train, lock_text=self.lock_text)
        switch = "enable" if step.checkpointing else "disable"
        getattr(self.model, f"activation_checkpointing_{switch}")()
        self.model.train()
        tower_of(self.model).eval()
        images, pad = _FakeImages(self, step.cached), self.processor.tokenizer.pad_token_id
        batch = step.objective.collate(step.items, images, pad, step.name, step.max_row_tokens)

        def loss() -> torch.Tensor:
            with _arithmetic(self.dtype):
                return step.objective.loss(self.model, batch)[0]

        # Dropout of a fake tensor draws no number, but that of a small real one would.
        with torch.random.fork_rng([]), FakeFloats(self.mode):
            peak, parts = extrapolated_peak(self.model, loss, step.accumulate)
        return peak, parts, sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))


def traced(
    blueprint: Blueprint,
    quantization: Quantization,
    dtype: torch.dtype,
    lora: LoraSettings | None,
    objectives: Mapping[str, Objective] = MappingProxyType({}),
    lock_text: bool = False,
) -> Traced:
    """Makes a blueprint ready to be traced, with what its objectives add to it. In place."""
    queries = max((objective.query_tokens for objective in objectives.values()), default=0)
    model = trainable_blueprint(blueprint, quantization, dtype, lora, queries)
    with torch.device("meta"):
        for objective in objectives.values():
            objective.prepare(model)
    mode = fake(model)
    take_head_as_last(model)
    result = Traced(model, blueprint.processor, mode, dtype, (0, 0), lock_text)
    pixels = _FakeImages(result, False)([ImageRef("any")])["pixel_values"]
    with FakeFloats(mode), _arithmetic(dtype):
        seen = projector_input(model, pixels.to(dtype))
    result.features = (int(seen.shape[1]), int(seen.shape[2]))
    return result


def _arithmetic(dtype: torch.dtype) -> Any:
    """Autocast, as the trainer has it for 16-bit weights."""
    return torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()


class _FakeImages:
    """Images without pixels; see `ImageInputs`."""

    replacement: Image.Image | None = None

    def __init__(self, trace: Traced, cached: bool) -> None:
        self.trace, self.cached = trace, cached

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        if not images:
            return {}
        side = image_side(self.trace.processor)
        if not self.cached and architecture_of(self.trace.model).inputs.by_value:
            return {"pixel_values": torch.ones(len(images), 3, side, side)}
        with self.trace.mode:
            if self.cached:
                shape, dtype = (len(images), *self.trace.features), self.trace.dtype
                return {"image_features": torch.empty(shape, dtype=dtype)}
            return {"pixel_values": torch.empty(len(images), 3, side, side)}


def trainable_blueprint(
    blueprint: Blueprint,
    quantization: Quantization,
    dtype: torch.dtype,
    lora: LoraSettings | None,
    query_tokens: int = 0,
) -> Any:
    """Makes the blueprint trainable: blocks quantized, adapter attached, projector in float32. In place.

    Args:
        blueprint: the Transformers model on the meta device.
        quantization: of the blocks.
        dtype: of the arithmetic.
        lora: None: no LoRA.
        query_tokens: how many train.

    Returns:
        The model, wrapped by PEFT where there is an adapter; still on the meta device.
    """
    model = blueprint.model
    with META, quiet():
        if quantization != "none":
            quantize_meta(model, quantization, dtype)
        model.requires_grad_(False)
        # Other ways to draw A need numbers; none of them changes a shape.
        settings = replace(lora, init="default") if lora is not None else None
        ids = query_token_ids(blueprint.processor.tokenizer, query_tokens)
        model = attach_adapters(model, settings, ids)
        for path in layout_of(model).projector:
            for parameter in parameters_at(unwrap_model(model), path):
                parameter.data = parameter.data.float()
    return model
