"""Finds the largest micro-batch of a run, and tries it before the first step: it is halved until it fits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lockadapt import processes
from lockadapt.architectures import tower_of
from lockadapt.data.drawn import few_rows, longest_rows
from lockadapt.data.encode import Encoded
from lockadapt.errors import DoesNotFitError
from lockadapt.planning.largest_batches import largest_batches
from lockadapt.planning.memory import step_peak
from lockadapt.planning.trace import tensors_of
from lockadapt.tuning.sharding import is_sharded

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

    If memory runs out, micro-batches of that objective go through the model in halves (`rows_at_once` of the
    trainer), or, where its loss compares all rows of a batch, in smaller chunks. A step sees the same samples
    and has the same loss. No weight, gradient or random number is touched.

    Args:
        trainer: ready to train; told how many rows go at once.
        note: is told what does not fit, and what is done.

    Returns:
        What was measured.

    Raises:
        DoesNotFitError: a single sample does not fit.
    """
    while True:
        with processes.alone():
            measured = _measure(trainer)
        too_large = _too_large_anywhere(trainer, measured)
        if too_large is None:
            assert isinstance(measured, Measured)
            return measured
        note(_halve(trainer, too_large))
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


@dataclass(frozen=True)
class _TooLarge:
    """An objective whose micro-batch does not fit, and the first line of the out-of-memory error."""

    objective: str
    reason: str


def _too_large_anywhere(trainer: GroundingTrainer, measured: Measured | _TooLarge) -> _TooLarge | None:
    """What does not fit on this process or another: all must divide their batches alike."""
    names = list(trainer.objectives)
    own = -1 if isinstance(measured, Measured) else names.index(measured.objective)
    worst = int(processes.gather_numbers(float(own)).max())
    if worst == own and isinstance(measured, _TooLarge):
        return measured
    return None if worst < 0 else _TooLarge(names[worst], "on another process")


def _halve(trainer: GroundingTrainer, tried: _TooLarge) -> str:
    """Takes half the memory for an objective's micro-batches; says what did not fit and what is done."""
    name = tried.objective
    if is_sharded(trainer.model):  # type: ignore[arg-type]
        # The others may wait for this process inside the pass that failed here.
        raise DoesNotFitError(
            f"the largest micro-batch does not fit: {tried.reason}",
            where="the largest samples, before step 1",
            fix="halve training.batch_size and double training.accumulation, or use more processes",
        )
    objective, total = trainer.objectives[name], trainer.micro_batches()[name]
    smaller = None if objective.divisible else objective.in_smaller_chunks()
    if smaller is not None:
        trainer.objectives[name] = smaller
        return f"out of memory with {total} samples of {name} ({tried.reason}): going on in smaller chunks"
    size = trainer.rows_at_once.get(name, total)
    if size == 1 or not objective.divisible:
        raise DoesNotFitError(
            f"a single sample does not fit: {tried.reason}",
            where="the largest sample, before step 1",
            fix="training.gradient_checkpointing=true, model.quantization=nf4, a smaller "
            "data.max_length or LLM",
        )
    trainer.rows_at_once[name] = size // 2
    parts = -(-total // (size // 2))
    step = total * trainer.args.gradient_accumulation_steps
    return (
        f"out of memory with {size} samples at once ({tried.reason}): going on with {size // 2} and "
        f"{parts * trainer.args.gradient_accumulation_steps} accumulated, {step} in a step as before"
    )


def _measure(trainer: GroundingTrainer) -> Measured | _TooLarge:
    """The largest of the candidates, or what does not fit."""
    rows: Any = trainer.train_dataset
    draws, known = (
        trainer.draws(),
        {n: [*few_rows(items), *longest_rows(items)] for n, items in rows.rows.items()},
    )
    if any(len(items) < len(rows.rows[name]) for name, items in known.items()):
        draws = replace(draws, batches=0)  # of rows on disk the longest are taken together
    chosen = largest_batches(known, draws, trainer.packing.max_row_tokens)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model: Any = trainer.model
    training = model.training
    tried: list[Measured] = []
    name = ""
    try:
        with torch.random.fork_rng(devices):
            for name, items in chosen:
                size = trainer.rows_at_once.get(name, len(items))
                for start in range(0, len(items), size):
                    part = items[start : start + size]
                    tried.append(Measured(_one_step(trainer, name, part), name, part))
    except Exception as error:
        if not out_of_memory(error):
            raise
        return _TooLarge(name, reason(error))
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
    batch = trainer._prepare_inputs(trainer.collate(name, items, trainer.packing.max_row_tokens))

    def loss() -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            return objective.loss(model, batch)[0]

    device = next(model.parameters()).device
    if device.type != "cuda":
        accumulated = args.gradient_accumulation_steps > 1 or name in trainer.rows_at_once
        return step_peak(model, loss, accumulated, tensors_of(batch)).total
    torch.cuda.reset_peak_memory_stats(device)
    loss().backward()
    return torch.cuda.max_memory_allocated(device)


def _from_driver(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error: out of memory")
