"""A plan as a person reads it."""

from __future__ import annotations

from typing import Any

from lockadapt.console import table_text


def plan_text(found: dict[str, Any]) -> str:
    """The plan of `plan_recipe` as lines of plain text."""
    batch = found["worst_batch"]
    cells = [
        (name, _cell(entry.get("parameters")), _cell(entry.get("trained")), _cell(entry["bytes"] / 1e6, 1))
        for name, entry in found["components"].items()
    ]
    cells.append((f"peak, {found['dtype']}", "", "", _cell(found["peak_bytes"] / 1e6, 1)))
    lines = [
        table_text(("component", "parameters", "trained", "MB"), cells, right=(1, 2, 3)),
        "",
        f"at the largest micro-batch: {batch['rows']} rows of {batch['objective']} in stage {batch['stage']}, "
        f"up to {batch['longest']:,} tokens, {batch['learned_tokens']:,} learned",
        f"tokens an epoch: {_count(found['tokens_per_epoch'])} packed, "
        f"{_count(found['tokens_per_epoch_unpacked'])} unpacked; {_count(found['images'])} images",
        f"features of all images on disk: {_megabytes(found['cache_bytes'])}",
        f"time: {_time(found)}",
        "",
        f"on a card, in {found['card_dtype']}: {found['card_peak_bytes'] / 1e9:.2f} GB",
    ]
    for name, fits in found["fits"].items():
        change = found["changes"].get(name)
        near = f"with {change}" if change else "no single change is enough"
        lines.append(f"  {name:<6}{'fits' if fits else f'does not fit; {near}'}")
    return "\n".join([*lines, *(f"assumed: {text}" for text in found["assumptions"])])


def _cell(number: float | None, digits: int = 0) -> str:
    return "" if number is None else f"{number:,.{digits}f}"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _time(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return "unknown, as there are no rows"
    minutes = found["seconds"] / 60
    long = f"{minutes / 60:,.1f} hours" if minutes >= 90 else f"{minutes:,.1f} minutes"
    return (
        f"about {long} for {found['steps']:,} steps ({found['flops'] / 1e12:,.1f} TFLOP at half of this machine's "
        f"{found['gemm_flops_per_second'] / 1e9:,.0f} GFLOP/s)"
    )
