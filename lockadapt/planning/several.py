"""What a run needs on each of several processes: whole models (DDP), or blocks of the LLM shared (FSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import blocks_paths
from lockadapt.errors import RecipeError
from lockadapt.planning.planner import Choice, Peak, Planner
from lockadapt.tuning.sharding import refuse_unshardable

AT_ONCE = 2
"""Blocks that are whole at a time: the one that is computed, and the next one, which is fetched meanwhile."""
ADAM, GRADIENT = 8, 4
"""Bytes of the two averages and of the gradient of a trained parameter."""


def several_processes(
    planner: Planner, choice: Choice, reserve: int, wanted: Mapping[str, int]
) -> dict[str, Any]:
    """Plans one process of several.

    Args:
        planner: of the recipe, made for that many processes.
        choice: on a card.
        reserve: bytes of a card that nothing of the run can have.
        wanted: bytes of cards by name.

    Returns:
        `count`; `samples_per_step` and `tokens_per_step` (unpacked; None where rows are not here) over all
        processes; `ddp` and `fsdp`, each `{"bytes", "fits": {card: bool}}`, `fsdp` with `{"refused": why}`
        where blocks cannot be shared.
    """
    stage, rows, count = planner.stages[0], planner.rows, planner.processes
    samples = round(stage.micro_batch * stage.accumulation * count)
    total_rows = sum(rows.counts.values())
    tokens = round(samples * rows.tokens[0] / total_rows) if rows.tokens and total_rows else None
    peak = planner.peak(choice)
    fsdp: dict[str, Any]
    try:
        if planner.recipe.training.optimizer != "adamw" or choice.quantization == "int8":
            raise RecipeError("8-bit layers and optimisers cannot be shared")
        refuse_unshardable(planner.model(choice).model)
        fsdp = _fits(_shared(planner, choice, peak) + reserve, wanted)
    except RecipeError as error:
        fsdp = {"refused": error.message}
    return {
        "count": count,
        "samples_per_step": samples,
        "tokens_per_step": tokens,
        "ddp": _fits(_whole(peak) + reserve, wanted),
        "fsdp": fsdp,
    }


def _whole(peak: Peak) -> int:
    """Gradients are copied into one tensor to be added up, when activations are gone."""
    weights = sum(size.bytes for size in peak.sizes)
    gradients = GRADIENT * sum(size.trained for size in peak.sizes)
    return max(peak.total, weights + 2 * gradients + peak.parts["optimizer"] + peak.parts["batches"])


def _shared(planner: Planner, choice: Choice, peak: Peak) -> int:
    base = unwrap_model(planner.model(choice).model)
    blocks = [
        sum(parameter.nbytes for parameter in block.parameters())
        for path in blocks_paths(base)
        for block in base.get_submodule(path)
    ]
    lora = next((size.trained for size in peak.sizes if size.component == "lora"), 0)
    divided = sum(blocks) + (GRADIENT + ADAM) * lora
    at_once = AT_ONCE * (max(blocks) + GRADIENT * lora // len(blocks))
    return peak.total - divided + -(-divided // planner.processes) + at_once


def _fits(size: int, wanted: Mapping[str, int]) -> dict[str, Any]:
    return {"bytes": size, "fits": {name: size <= card for name, card in wanted.items()}}
