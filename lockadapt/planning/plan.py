"""`lockadapt plan`: memory, tokens, arithmetic and time of a run before any of its weights is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from lockadapt.architectures import inputs_of
from lockadapt.console import Reporter
from lockadapt.data.encode import IGNORED
from lockadapt.data.problems import quote
from lockadapt.errors import DoesNotFitError, RecipeError
from lockadapt.planning.arithmetic import REACHED, gemm_speed, training_costs
from lockadapt.planning.planner import Choice, Planner, changes
from lockadapt.planning.several import several_processes
from lockadapt.planning.sizes import Size
from lockadapt.recipe.schema import Recipe

CARDS = {f"{size}GB": size * 2**30 for size in (8, 12, 16, 24, 48)}
"""Graphics cards by what is printed on them, in bytes."""
LARGEST_MEMORY = 1_000_000 * 2**30
"""Bytes; beyond it a size is a slip."""
CARD_RESERVE = 800_000_000
"""Bytes of a card that CUDA's context, its libraries and the allocator's gaps take: an estimate, see
docs/plan.md."""


def plan_recipe(
    recipe: Recipe, reporter: Reporter, memory: int | None = None, processes: int = 1
) -> dict[str, Any]:
    """Plans what a run will need, as plain values for JSON.

    Args:
        recipe: checked already.
        reporter: told of progress and assumptions.
        memory: bytes of a card that it must fit on; the nearest change for it is looked for as well.
        processes: that train together, one a card.

    Returns:
        `peak_bytes` and its `components` (they add up to it), `tokens_per_epoch` …; docs/plan.md names all.

    Raises:
        LockadaptError: see `Planner`.
    """
    planner = Planner(recipe, reporter, processes)
    here = planner.peak(planner.choice)
    on_gpu = torch.cuda.is_available()
    card = planner.choice
    if recipe.model.dtype == "auto" and not on_gpu:
        card = replace(card, dtype=torch.bfloat16)
    card_peak = planner.peak(card)
    wanted = {**CARDS, **({"memory": memory} if memory is not None else {})}
    fits = {name: card_peak.total + CARD_RESERVE <= size for name, size in wanted.items()}
    several = several_processes(planner, card, CARD_RESERVE, wanted) if processes > 1 else None
    if several is not None and memory is not None:
        fits["memory"] = several["fsdp" if recipe.training.sharding == "fsdp" else "ddp"]["fits"]["memory"]
    components = {size.component: _size(size) for size in here.sizes}
    components.update({name: {"bytes": size} for name, size in here.parts.items()})
    if not on_gpu:
        # What a GPU run keeps on the host shares the memory with all the rest here.
        components["features"] = {"bytes": planner.host()}
        trained = sum(size.trained for size in here.sizes)
        components["start_values"] = {"bytes": 4 * trained}
    rows = planner.rows
    packs = planner.packing(planner.stages[0]).max_row_tokens is not None
    return {
        "peak_bytes": sum(entry["bytes"] for entry in components.values()),
        "components": components,
        "worst_batch": here.batch,
        "dtype": str(planner.choice.dtype).removeprefix("torch."),
        "card_dtype": str(card.dtype).removeprefix("torch."),
        "card_peak_bytes": card_peak.total + CARD_RESERVE,
        "fits": {name: fits[name] for name in CARDS},
        **({"fits_memory": fits["memory"]} if memory is not None else {}),
        **({"processes": several} if several is not None else {}),
        "changes": _nearest(planner, card, {name: wanted[name] for name, good in fits.items() if not good}),
        "host_feature_bytes": planner.host(),
        "cache_bytes": planner.on_disk() if rows.tokens else None,
        "images": len(rows.images) if rows.tokens and not rows.streamed else None,
        "rows": rows.counts,
        "tokens_per_epoch": rows.tokens[packs] if rows.tokens else None,
        "tokens_per_epoch_unpacked": rows.tokens[0] if rows.tokens else None,
        "learned_tokens_per_epoch": rows.learned if rows.tokens else None,
        **_time(planner),
        "assumptions": [*rows.assumptions, *_unmeasured(planner)],
    }


def parse_size(text: str) -> int:
    """Parses `8GB`, `500MB`, `12GiB`; G and M are binary, as on cards.

    Args:
        text: as the command line has it.

    Returns:
        Bytes.

    Raises:
        RecipeError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG])i?B\s*", text, re.IGNORECASE)
    if match is None:
        raise RecipeError(f"{quote(text)} is no size", where="--memory", fix="write it as 8GB or 500MB")
    size = float(match[1]) * 1024 ** ("KMG".index(match[2].upper()) + 1)
    if not 0 < size <= LARGEST_MEMORY:
        raise RecipeError(
            f"{quote(text)} is no memory of a machine", where="--memory", fix="give up to 1000000GB"
        )
    return int(size)


def refuse_unless_fits(plan: dict[str, Any], memory: int) -> None:
    """Raises DoesNotFitError if a plan that was made for `memory` bytes does not fit them."""
    if not plan["fits_memory"]:
        change = plan["changes"]["memory"]
        raise DoesNotFitError(
            f"needs {plan['card_peak_bytes'] / 1e9:.2f} GB, {memory / 1e9:.2f} GB are there",
            where=f"the largest batch of stage {plan['worst_batch']['stage']}",
            fix=change
            or "no single change is enough: try several of those in docs/plan.md, or a smaller LLM",
        )


def _nearest(planner: Planner, start: Choice, wanted: dict[str, int]) -> dict[str, str | None]:
    """For every memory that is too small, the first change that is enough."""
    nearest: dict[str, str | None] = dict.fromkeys(wanted)
    for text, choice in changes(planner, start) if wanted else ():
        if all(nearest.values()):
            break
        need = planner.peak(choice, planner.peak(start)).total + CARD_RESERVE
        for name, size in wanted.items():
            if nearest[name] is None and need <= size:
                nearest[name] = text
    return nearest


def _unmeasured(planner: Planner) -> list[str]:
    """What only the weights of an existing VLM tell."""
    if not inputs_of(planner.model(planner.choice).processor).stock:
        return []
    if planner.nothing_kept is not None:
        kept = f"no features are kept, as {planner.nothing_kept}"
    else:
        kept = "features are kept" if planner.cached else "no features are kept"
    packing = [planner.packing(stage) for stage in planner.stages]
    packs = any(packed.max_row_tokens is not None for packed in packing)
    rows = "rows are packed" if packs else packing[0].why.replace("packing: none", "no rows are packed")
    return [f"{kept}; {rows}; `lockadapt check` measures on the weights whether that is exact"]


def _time(planner: Planner) -> dict[str, Any]:
    """Operations of the whole run, and how long this machine takes for them; None where rows are not here."""
    trace, rows = planner.model(planner.choice), planner.rows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = gemm_speed(planner.choice.dtype, device)
    flops: float | None = None
    if rows.tokens is not None and rows.tokens[0]:
        everything = [item for items in rows.train.values() for item in items]
        costs = training_costs(trace.model, planner.choice.checkpointing, trace.images.tokens(everything))
        packs = planner.packing(planner.stages[0]).max_row_tokens is not None
        share = rows.tokens[1] / rows.tokens[0] if packs else 1.0
        flops = 0.0
        for stage in planner.stages:
            items = [item for name in stage.objectives for item in rows.train[name]]
            samples = stage.steps * stage.batch_size * stage.accumulation / len(items)
            tokens = sum(len(item.input_ids) for item in items)
            flops += samples * costs.tokens(
                tokens * share,
                tokens / len(items),
                sum(int((item.labels != IGNORED).sum()) for item in items),
                sum(len(item.images) for item in items),
            )
        seen = (
            len(rows.images)
            if planner.cached
            else sum(s.steps * s.batch_size * s.accumulation for s in planner.stages)
        )
        if rows.images:
            flops += trace.tower_flops(list(rows.images.values())) * seen
    return {
        "steps": sum(stage.steps for stage in planner.stages) if rows.tokens else None,
        "flops": flops,
        "gemm_flops_per_second": speed,
        "seconds": flops / (speed * REACHED) if flops is not None else None,
    }


def _size(size: Size) -> dict[str, int]:
    return {"parameters": size.parameters, "trained": size.trained, "bytes": size.bytes}
