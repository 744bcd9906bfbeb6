"""Traces one training step of a model without weights, to know its memory before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lockadapt.architectures import inputs_of, layout_of, tower_of
from lockadapt.architectures.base import parameters_at, unwrap_model
from lockadapt.architectures.blueprint import META, Blueprint
from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.data.batch import Batch
from lockadapt.data.encode import Encoded
from lockadapt.data.sample import ImageRef
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.models.quiet import quiet
from lockadapt.objectives import Objective
from lockadapt.objectives.answer_tokens import model_inputs, stock_forward, take_head_as_last
from lockadapt.objectives.head import head_is_returned
from lockadapt.planning.extrapolate import extrapolated_peak
from lockadapt.planning.fake import FakeFloats, fake
from lockadapt.planning.images import PlannedImages, StockImages, UniformImages, training_arithmetic
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
    images: PlannedImages
    """What the tower gives for images, and what a batch gets of them."""
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

    def tower_flops(self, images: Sequence[ImageRef]) -> float:
        """Operations of the tower for one of these images, on average."""
        counter = FlopCounterMode(display=False)
        with counter, FakeFloats(self.mode), training_arithmetic(self.dtype):
            count = self.images.run_tower(images)
        return float(counter.get_total_flops()) / count

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
        images, pad = self.images.inputs(step.cached), self.processor.tokenizer.pad_token_id
        batch = step.objective.collate(step.items, images, pad, step.name, step.max_row_tokens)

        def loss() -> torch.Tensor:
            with training_arithmetic(self.dtype):
                return step.objective.loss(self.model, batch)[0]

        # Dropout of a fake tensor draws no number, but that of a small real one would.
        with torch.random.fork_rng([]), FakeFloats(self.mode):
            if inputs_of(self.processor).stock:
                self._look_at_head(batch)
            tensors = tensors_of(batch)
            peak, parts = extrapolated_peak(self.model, loss, step.accumulate, tensors)
        return peak, parts, sum(tensor.nbytes for tensor in tensors)

    @torch.no_grad()
    def _look_at_head(self, batch: Batch) -> None:
        """Some classes scale or cap what their head gives: then all scored logits are there at once."""
        base = unwrap_model(self.model)
        head = base.get_submodule(layout_of(base).head)
        with training_arithmetic(self.dtype), stock_forward(self.model):
            inputs = model_inputs(self.model, batch)
            take_head_as_last(self.model, head_is_returned(self.model, head, inputs, batch["predicting"]))


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
    processor = blueprint.processor
    images = (
        StockImages(model, processor, mode)
        if inputs_of(processor).stock
        else UniformImages(model, processor, mode, dtype)
    )
    return Traced(model, processor, mode, dtype, images, lock_text)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """All tensors of a batch."""
    levels = [
        level
        for value in batch.values()
        if isinstance(value, RaggedFeatures)
        for level in (*value.levels.values(), *value.scales.values())
    ]
    return [value for value in [*batch.values(), *levels] if isinstance(value, torch.Tensor)]


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
