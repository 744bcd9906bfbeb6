"""Finds the largest micro-batch of a run, and tries it before the first step: what does not fit is halved there."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lockadapt.architectures import tower_of
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.mixture import MixedDataset, MixtureSampler
from lockadapt.data.pack import packed_area
from lockadapt.errors import DoesNotFitError
from lockadapt.planning.memory import step_peak
from lockadapt.training.packing import Packing

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer

PACKED_CANDIDATES = 32
MOST_BATCHES = 200_000
"""Longer runs are not walked through for their largest micro-batch: their longest rows are taken together."""


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


def worst_batches(
    rows: Mapping[str, Sequence[Encoded]],
    ratios: Mapping[str, float],
    batch_size: int | Mapping[str, int],
    micro_batches: int,
    seed: int,
    packing: Packing,
    together: int | Mapping[str, int] | None = None,
) -> list[tuple[str, list[Encoded]]]:
    """Of every objective the micro-batches with the most tokens, padding included, and with the most learned ones.

    Args:
        rows, ratios, batch_size, micro_batches, seed: as `MixtureSampler` gets them, whose order is followed; with 0
            or very many `micro_batches` the longest rows are taken together instead, which no batch exceeds.
        packing: how the run makes its rows.
        together: as `MixtureSampler` gets it; default: what `packing` says.

    Returns:
        Objective and rows; one entry where both are the same batch.
    """
    found: list[tuple[str, list[Encoded]]] = []
    order = _walk(rows, ratios, batch_size, micro_batches, seed, together or packing.together)
    for name, items in rows.items():
        size = batch_size if isinstance(batch_size, int) else batch_size[name]
        lengths = [len(item.input_ids) for item in items]
        learned = [int((item.labels != IGNORED).sum()) for item in items]
        batches = order.get(name) or [
            sorted(range(len(items)), key=lambda i: (column[i], lengths[i]), reverse=True)[:size]
            for column in (lengths, learned)
        ]

        def padded(batch: Sequence[int], lengths: list[int] = lengths) -> int:
            return len(batch) * max(lengths[i] for i in batch)

        def labels(batch: Sequence[int], learned: list[int] = learned) -> int:
            return sum(learned[i] for i in batch)

        def area(batch: Sequence[int], items: Sequence[Encoded] = items) -> int:
            return packed_area([items[i] for i in batch], packing.row_tokens)

        # Packing takes time, so that only the batches that are largest without it are packed.
        candidates = sorted(batches, key=lambda batch: (padded(batch), labels(batch)), reverse=True)
        largest = max(candidates[:PACKED_CANDIDATES], key=lambda batch: (area(batch), labels(batch)))
        loudest = max(batches, key=lambda batch: (labels(batch), padded(batch)))
        for batch in [largest] if labels(largest) == labels(loudest) else [largest, loudest]:
            found.append((name, [items[i] for i in batch]))
    return found


def fit_micro_batch(trainer: GroundingTrainer, note: Callable[[str], None]) -> Measured:
    """One forward and backward of the largest micro-batch, before the first step and without a trace of it.

    If memory runs out, the micro-batch is halved and the accumulation doubled, so that a step sees the same samples,
    and `trainer.args` say so. No weight, gradient or random number is touched.

    Args:
        trainer: ready to train.
        note: is told what does not fit, and what is done.

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
                fix="training.gradient_checkpointing=true, model.quantization=nf4, a smaller data.max_length or LLM",
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
    """Whether an exception is one of the ways in which torch says that memory is used up."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def reason(error: BaseException) -> str:
    """What ran out, without the allocator's statistics that CUDA's message goes on with."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". GPU ")[0].removesuffix(".")


def _measure(trainer: GroundingTrainer) -> Measured | str:
    """The largest of the candidates, or the first line of an out-of-memory error."""
    args: Any = trainer.args
    rows: Any = trainer.train_dataset
    micro = trainer.planned_steps() * args.gradient_accumulation_steps * args.world_size
    ratios = {name: objective.ratio for name, objective in trainer.objectives.items()}
    sizes, together = trainer.micro_batches(), trainer.drawn_together()
    chosen = worst_batches(rows.rows, ratios, sizes, micro, args.seed, trainer.packing, together)
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
    return max(tried, key=lambda one: one.peak)


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


def _walk(
    rows: Mapping[str, Sequence[Encoded]],
    ratios: Mapping[str, float],
    batch_size: int | Mapping[str, int],
    micro_batches: int,
    seed: int,
    together: int | Mapping[str, int],
) -> dict[str, list[list[int]]]:
    """The run's micro-batches by objective, as positions in its rows."""
    if not 0 < micro_batches <= MOST_BATCHES:
        return {}
    dataset = MixedDataset(rows)
    starts = sorted((start, name) for name, start in dataset.offsets.items() if len(rows[name]))
    batches: dict[str, list[list[int]]] = {name: [] for name in rows}
    for batch in MixtureSampler(dataset, ratios, batch_size, micro_batches, seed, together):
        start, name = next((s, n) for s, n in reversed(starts) if batch[0] >= s)
        batches[name].append([index - start for index in batch])
    return batches
