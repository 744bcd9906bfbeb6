"""Decides for a trainer whether its rows are packed, by trying its own model on a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lockadapt.data.drawn import few_rows, longest_rows
from lockadapt.data.encode import Encoded
from lockadapt.data.mixture import MixedDataset
from lockadapt.planning.exactness import try_packing
from lockadapt.planning.packing import (
    NOTHING_PACKS,
    Packing,
    PackingTrial,
    PackingWish,
    choose_packing,
    samples_per_image,
    to_be_tried,
    why_not_exact,
)

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer


def decide_packing(trainer: GroundingTrainer) -> Packing:
    """Decides on training rows, of those on disk on some; or on validation rows where there are no others.

    Args:
        trainer: with its rows and model.

    Returns:
        How rows are made, and why.

    Raises:
        RecipeError: `shared` is asked for and is not exact with this LLM.
    """
    args: Any = trainer.args
    model: Any = trainer.model
    dataset: Any = trainer.train_dataset
    every: Mapping[str, Sequence[Encoded]] = (
        dataset.rows if isinstance(dataset, MixedDataset) else trainer.eval_dataset  # type: ignore[assignment]
    )
    packed = {name: items for name, items in every.items() if trainer.objectives[name].packs}
    if not packed:
        return NOTHING_PACKS
    rows = {name: few_rows(items) for name, items in packed.items()}
    tried = to_be_tried(rows)
    name = next(name for name, items in rows.items() if tried[0] in items)

    def mistake() -> str | None:
        with trainer.compute_loss_context_manager():
            return try_packing(
                model,
                tried,
                lambda items, limit: trainer._prepare_inputs(trainer.collate(name, items, limit)),
                args.max_row_tokens,
            ).problem

    # Of all processes, so that any number of them draws the same rows.
    size = trainer._train_batch_size * args.world_size
    step = size * args.gradient_accumulation_steps
    most = samples_per_image(args.max_samples_per_image, step, size)
    longest_drawn = max(
        (len(row.input_ids) for items in packed.values() for row in longest_rows(items)), default=0
    )
    trial = PackingTrial(lambda longest: why_not_exact(model, max(longest, longest_drawn)), mistake)
    wish = PackingWish(args.packing, args.max_row_tokens, most, size)
    shares = {name: len(packed[name]) / len(items) for name, items in rows.items()}
    return choose_packing(rows, wish, trial, shares)
