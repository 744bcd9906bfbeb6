"""Draws `loss.png` from `metrics.jsonl`: losses, and in a mixed run what the objectives do to each other."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[int, float]]]


def plot_losses(metrics: Path, picture: Path) -> None:
    """Plots training loss by objective and validation loss over all stages; log scale across decades.

    With several objectives also samples seen, gradient norms on what they share, and the cosines between
    gradients.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines, starts = _read(metrics)
    norms, cosines = _curves(lines, _suffix("/grad_norm")), _curves(lines, _cosine)
    mixed = bool(cosines)
    figure, grid = plt.subplots(
        *((2, 2) if mixed else (1, 1)),
        figsize=(11, 7) if mixed else (7, 4),
        layout="constrained",
        squeeze=False,
    )
    panels = list(grid.flat)
    _panel(panels[0], _curves(lines, _loss), starts, "loss (nats; each objective's own mean)", "Training")
    if mixed:
        _panel(panels[1], _curves(lines, _suffix("/samples")), starts, "samples seen", "Mixture")
        _panel(panels[2], norms, starts, "norm", "Gradient of each objective on LoRA and projector")
        _panel(panels[3], cosines, starts, "cosine", "Between objectives' gradients", log=False)
        panels[3].set_ylim(-1, 1)
        panels[3].axhline(0, color="grey", linewidth=0.8)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def _read(metrics: Path) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, int]]:
    """Lines with their step over all stages, and where each stage starts."""
    starts: dict[str, int] = {}
    lines, end = [], 0
    for text in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(text)
        step = starts.setdefault(entry["stage"], end) + entry["step"]
        end = max(end, step)
        lines.append((step, entry))
    return lines, starts


def _curves(lines: list[tuple[int, dict[str, Any]]], name_of: Callable[[str], str | None]) -> Curves:
    curves: Curves = defaultdict(list)
    for step, entry in lines:
        for key, value in entry.items():
            name = name_of(key)
            if name is not None:
                curves[name].append((step, value))
    return dict(sorted(curves.items()))


def _loss(key: str) -> str | None:
    if key.endswith("/loss"):
        return key.removesuffix("/loss")
    if key.startswith("eval_") and key.endswith("_loss") and key != "eval_loss":
        return f"{key.removeprefix('eval_').removesuffix('_loss')} (validation)"
    return None


def _suffix(suffix: str) -> Callable[[str], str | None]:
    return lambda key: key.removesuffix(suffix) if key.endswith(suffix) else None


def _cosine(key: str) -> str | None:
    return key.removeprefix("cosine/") if key.startswith("cosine/") else None


def _panel(
    axes: Any, curves: Curves, starts: Mapping[str, int], label: str, title: str, log: bool = True
) -> None:
    for name, points in curves.items():
        held_out = name.endswith("(validation)")
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            linewidth=1.2,
            marker="o" if held_out else None,
            markersize=3,
        )
    values = [value for points in curves.values() for _, value in points if value > 0]
    if log and values and max(values) > 5 * min(values):
        axes.set_yscale("log")
    for name, start in list(starts.items())[1:]:
        axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
        axes.text(start, axes.get_ylim()[1], f" {name}", va="top", fontsize=8, color="grey")
    axes.set(xlabel="optimiser step", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
