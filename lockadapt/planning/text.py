"""A plan as a person reads it."""

from __future__ import annotations

from typing import Any

from lockadapt.console import table_text


def plan_text(plan: dict[str, Any]) -> str:
    """The plan of `plan_recipe` as lines of plain text."""
    batch = plan["worst_batch"]
    cells = [
        (name, _cell(entry.get("parameters")), _cell(entry.get("trained")), _cell(entry["bytes"] / 1e6, 1))
        for name, entry in plan["components"].items()
    ]
    cells.append((f"peak, {plan['dtype']}", "", "", _cell(plan["peak_bytes"] / 1e6, 1)))
    lines = [
        table_text(("component", "parameters", "trained", "MB"), cells, right=(1, 2, 3)),
        "",
        f"at the largest micro-batch: {batch['rows']} rows of {batch['objective']} in stage "
        f"{batch['stage']}, "
        f"up to {batch['longest']:,} tokens, {batch['learned_tokens']:,} learned",
        f"tokens an epoch: {_count(plan['tokens_per_epoch'])} packed, "
        f"{_count(plan['tokens_per_epoch_unpacked'])} unpacked; {_count(plan['images'])} images",
        f"features of all images on disk: {_megabytes(plan['cache_bytes'])}",
        f"time: {_time(plan)}",
        "",
        f"on a card, in {plan['card_dtype']}: {plan['card_peak_bytes'] / 1e9:.2f} GB",
    ]
    for name, fits in plan["fits"].items():
        change = plan["changes"].get(name)
        near = f"with {change}" if change else "no single change is enough"
        lines.append(f"  {name:<6}{'fits' if fits else f'does not fit; {near}'}")
    lines += _several(plan.get("processes"))
    return "\n".join([*lines, *(f"assumed: {text}" for text in plan["assumptions"])])


def _several(plan: dict[str, Any] | None) -> list[str]:
    """What each of several processes needs."""
    if plan is None:
        return []
    lines = [
        f"on {plan['count']} cards: {plan['samples_per_step']:,} samples and about "
        f"{_count(plan['tokens_per_step'])} tokens a step"
    ]
    for mode, name in (("ddp", "sharding: none"), ("fsdp", "sharding: fsdp")):
        if "refused" in plan[mode]:
            lines.append(f"  {name}  not for this run: {plan[mode]['refused']}")
            continue
        smallest = next((card for card, fits in plan[mode]["fits"].items() if fits), None)
        where = f"fits {smallest}" if smallest else "fits none of the cards above"
        lines.append(f"  {name}  {plan[mode]['bytes'] / 1e9:.2f} GB each, {where}")
    return lines


def _cell(number: float | None, digits: int = 0) -> str:
    return "" if number is None else f"{number:,.{digits}f}"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _time(plan: dict[str, Any]) -> str:
    if plan["seconds"] is None:
        return "unknown, as there are no rows"
    minutes = plan["seconds"] / 60
    long = f"{minutes / 60:,.1f} hours" if minutes >= 90 else f"{minutes:,.1f} minutes"
    return (
        f"about {long} for {plan['steps']:,} steps ({plan['flops'] / 1e12:,.1f} TFLOP at half of this "
        "machine's "
        f"{plan['gemm_flops_per_second'] / 1e9:,.0f} GFLOP/s)"
    )
