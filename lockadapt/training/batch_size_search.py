"""Finds the largest micro-batch of a run, and tries it before the first step: it is halved until it fits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lockadapt.architectures import tower_of
from lockadapt.data.encode import Encoded
from lockadapt.errors import DoesNotFitError
from lockadapt.planning.largest_batches import largest_batches
from lockadapt.planning.memory import step_peak

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer


@dataclass(frozen=True)
class Measured:
    """A micro-batch that was tried: bytes at its peak, without the optimiser's state, and what was in it.

    On the CPU live tensors are counted, the batch not among them; on CUDA it is what the allocator counts.
    """

    peak: int
    objective: str
    items: list[Encoded]

    @property
    def text(self) -> str:
        """In one line."""
        longest = max(len(item.input_ids) for item in self.items)
        return f"largest micro-batch: {len(self.items)} rows of {self.objective}, up to {longest:,} tokens"


def fit_micro_batch(trainer: GroundingTrainer, note: Callable[[str], None]) -> Measured:
    """Runs forward and backward of the largest micro-batch, before the first step and without a trace of it.

    If memory runs out, the micro-batch is halved and the accumulation doubled, so that a step sees the same
    samples, and `trainer.args` say so. No weight, gradient or random number is touched.

    Args:
        trainer: ready to train.
        note: is told what does not fit, and what is done.

    Returns:
        What was measured.

    Raises:
        DoesNotFitError: a single sample does not fit.
    """
    args = trainer.args
    total = args.per_device_train_batch_size * args.gradient_accumulation_steps
    while True:
        size = args.per_device_train_batch_size
        measured = _measure(trainer)
        if isinstance(measured, Measured):
            return measured
        if size == 1:
            raise DoesNotFitError(
                f"a single sample does not fit: {measured}",
                where="the largest sample, before step 1",
                fix="training.gradient_checkpointing=true, model.quantization=nf4, a smaller "
                "data.max_length or LLM",
            )
        smaller = next(n for n in range(size // 2, 0, -1) if total % n == 0)
        note(
            f"out of memory with {size} samples at once ({measured}): going on with {smaller} and "
            f"{total // smaller} accumulated, {total} in a step as before"
        )
        args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, total // smaller
        trainer._train_batch_size = smaller
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception is how Python, torch or a kernel says that memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # "CUDA error: out of memory" comes from the driver, before torch's allocator has a say; Accelerate leaves
    # it out.
    return isinstance(error, Exception) and (should_reduce_batch_size(error) or _from_driver(error))


def reason(error: BaseException) -> str:
    """What ran out, without the allocator's statistics that CUDA's message goes on with."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". GPU ")[0].removesuffix(".")


def _measure(trainer: GroundingTrainer) -> Measured | str:
    """The largest of the candidates, or the first line of an out-of-memory error."""
    rows: Any = trainer.train_dataset
    chosen = largest_batches(rows.rows, trainer.draws(), trainer.packing.max_row_tokens)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model: Any = trainer.model
    training = model.training
    tried: list[Measured] = []
    try:
        with torch.random.fork_rng(devices):
            for name, items in chosen:
                tried.append(Measured(_one_step(trainer, name, items), name, items))
    except Exception as error:
        if not out_of_memory(error):
            raise
        return reason(error)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    return max(tried, key=lambda measured: measured.peak)


def _one_step(trainer: GroundingTrainer, name: str, items: list[Encoded]) -> int:
    model: Any = trainer.model
    objective, args = trainer.objectives[name], trainer.args
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=args.activation_checkpointing_kwargs
        )
    model.train()
    tower_of(model).eval()
    rows: Any = [(name, item) for item in items]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))

    def loss() -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            return objective.loss(model, batch)[0]

    device = next(model.parameters()).device
    if device.type != "cuda":
        return step_peak(model, loss, args.gradient_accumulation_steps > 1).total
    torch.cuda.reset_peak_memory_stats(device)
    loss().backward()
    return torch.cuda.max_memory_allocated(device)


def _from_driver(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error: out of memory")
