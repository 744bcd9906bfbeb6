"""Decides for a trainer whether its rows are packed, by trying its own model on a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    """Decides on all training rows, or those of validation where there are no others.

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
    rows = {name: items for name, items in every.items() if trainer.objectives[name].packs}
    if not rows:
        return NOTHING_PACKS
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
    trial = PackingTrial(lambda longest: why_not_exact(model, longest), mistake)
    return choose_packing(rows, PackingWish(args.packing, args.max_row_tokens, most, size), trial)
