"""Refuses to waste a run: no gradient, no movement, no finite loss and an ignored image are errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt.architectures import architecture_of
from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.data.batch import Batch
from lockadapt.errors import ImageIgnoredError, NoGradientError, NonFiniteLossError, NotMovingError
from lockadapt.objectives import Objective
from lockadapt.tuning.sharding import is_sharded, whole


def check_finite(loss: torch.Tensor, objective: str, step: int) -> None:
    """Raises NonFiniteLossError for a NaN or infinite loss."""
    if not math.isfinite(float(loss)):
        raise NonFiniteLossError(
            f"the loss of {objective!r} is {float(loss)}",
            where=f"step {step}",
            fix="lower training.learning_rate and training.projector_learning_rate, "
            "or use model.dtype: bfloat16",
        )


class LearningCheck(TrainerCallback):
    """Every tensor that should train must have had a gradient, and have moved, within the first steps.

    A zero gradient at the very first step is no error: LoRA's A gets none until B has left zero.

    Args:
        steps: after so many it is judged.
        waiting: says whether an objective has not been drawn often enough yet; the judgement is put off until
            then.
    """

    def __init__(self, steps: int, waiting: Callable[[], bool] = lambda: False) -> None:
        self.steps, self.waiting = steps, waiting
        self._seen, self._judged = 0, False
        self._with_gradient: set[str] = set()
        self._start: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers where the trainable tensors stand."""
        self._seen, self._judged, self._with_gradient = 0, False, set()
        self._start = {name: whole(p).cpu().clone() for name, p in _trainable(kwargs["model"])}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes which tensors got a gradient that is not zero."""
        if not self._judged:
            for name, parameter in _trainable(kwargs["model"]):
                if parameter.grad is not None and bool(whole(parameter.grad).any()):
                    self._with_gradient.add(name)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judges after `steps` optimiser steps, or at the end of a shorter run."""
        self._seen += 1
        last = state.global_step >= state.max_steps
        if self._judged or self._seen < min(self.steps, state.max_steps) or (self.waiting() and not last):
            return
        self._judged = True
        names = dict(_trainable(kwargs["model"]))
        if self._seen >= 3:
            still = [name for name, p in names.items() if torch.equal(whole(p).cpu(), self._start[name])]
            if len(still) == len(names):
                raise _not_moving(still, names, state.global_step)
            dry = [name for name in names if name not in self._with_gradient]
            if dry:
                raise NoGradientError(
                    f"{len(dry)} of {len(names)} tensors that should train got no gradient: "
                    f"{', '.join(dry[:3])}",
                    where=f"step {state.global_step}",
                    fix=_without(dry, names),
                )
            if still:
                raise _not_moving(still, names, state.global_step)
        self._start = {}


class AfterStep(TrainerCallback):
    """Lets objectives bring back what must stay within bounds (a temperature) after each optimiser step."""

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        self.objectives = objectives

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `Objective.after_step`."""
        for objective in self.objectives.values():
            objective.after_step(kwargs["model"])


@torch.no_grad()
def check_image_sensitivity(model: nn.Module, loss: Callable[[Batch], torch.Tensor], batch: Batch) -> float:
    """Swaps the images of a batch among each other, or for their negatives; gives the change of the loss.

    Classes whose fresh layers start as a no-op have the same loss: their gradients must change.

    Args:
        model: ready to train; it gets no gradient.
        loss: of a batch.
        batch: with images.

    Returns:
        The change; nan for a batch without images.

    Raises:
        ImageIgnoredError: the loss stays the same to the last bit, so the images never reach it.
    """
    name = "image_features" if "image_features" in batch else "pixel_values"
    if name not in batch:
        return math.nan
    images = batch[name]
    training = model.training
    model.eval()
    seen = other = float(loss(batch))
    # Images that are alike may change a mean by less than its last bit; negatives are unlike any of them.
    swaps: list[Any] = []
    if isinstance(images, RaggedFeatures):
        swaps = [images.negative()]
    else:
        swaps = [
            other_images
            for other_images in (images.roll(1, dims=0), -images)
            if is_sharded(model) or not torch.equal(other_images, images)
        ]
    for swapped in swaps:
        # All of them are computed: processes that share a model must call it equally often.
        if other == seen or is_sharded(model):
            changed = float(loss({**batch, name: swapped}))
            other = changed if other == seen else other
    ignored = seen == other
    if ignored and architecture_of(model).beside is not None:
        ignored = not _gradients_change(model, loss, batch, [{**batch, name: swapped} for swapped in swaps])
    model.train(training)
    if ignored:
        raise ImageIgnoredError(
            f"the loss of {batch['objective']!r} is {seen:.6f} with the images and with others "
            "in their place",
            where="before step 1",
            fix="check that the projector is not zero and that the rows name different images",
        )
    return abs(seen - other)


def _gradients_change(
    model: nn.Module, loss: Callable[[Batch], torch.Tensor], batch: Batch, others: Sequence[Batch]
) -> bool:
    """Whether the gradient of what trains is another one for one of the other batches."""
    trained = [parameter for _, parameter in _trainable(model)]

    def gradients(given: Batch) -> list[torch.Tensor]:
        with torch.enable_grad():
            made = torch.autograd.grad(loss(given), trained, allow_unused=True)
        return [gradient for gradient in made if gradient is not None]

    first = gradients(batch)
    return any(
        not torch.equal(mine, theirs)
        for other in others
        for mine, theirs in zip(first, gradients(other), strict=True)
    )


def freeze_unreached(model: nn.Module, losses: Callable[[], Iterator[torch.Tensor]]) -> list[str]:
    """Freezes what should train but lies on no way to the loss; gives the names.

    A class that nobody described may hold what only other settings or other inputs use (deepstack levels
    beyond the LLM's depth, embeddings of sounds).

    Args:
        model: ready to train; it gets no gradient.
        losses: of a batch of every objective, each with graph.

    Returns:
        Names of the parameters that no longer train.
    """
    training = model.training
    model.eval()
    reached: set[str] = set()
    for loss in losses():
        loss.backward()
        for name, parameter in _trainable(model):
            # LoRA's A has a gradient of zeros until B has left zero.
            if parameter.grad is not None and (".lora_" in name or bool(whole(parameter.grad).any())):
                reached.add(name)
        model.zero_grad(set_to_none=True)
    model.train(training)
    dry = [(name, parameter) for name, parameter in _trainable(model) if name not in reached]
    for _, parameter in dry:
        parameter.requires_grad_(False)
    return [name for name, _ in dry]


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _without(dry: list[str], names: Mapping[str, nn.Parameter]) -> str:
    """What to train instead: layers without a gradient are never called (Mamba reads some weights itself)."""
    layers = {name: name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if ".lora_" in name}
    unused = sorted({layers[name] for name in dry if name in layers})
    used = sorted(set(layers.values()) - set(unused))
    if not unused or not used or len(dry) > sum(layer in unused for layer in layers.values()):
        return "train only parts that the loss depends on (lora.targets, stages[].train)"
    return f"the LLM does not call {', '.join(unused)}: adapt the others, lora.targets: [{', '.join(used)}]"


def _not_moving(still: list[str], names: Mapping[str, nn.Parameter], step: int) -> NotMovingError:
    return NotMovingError(
        f"{len(still)} of {len(names)} tensors that should train have not moved: {', '.join(still[:3])}",
        where=f"step {step}",
        fix="raise the learning rate, or keep trained tensors in float32",
    )
