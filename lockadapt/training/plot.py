"""Draws `loss.png` from `metrics.jsonl`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path


def plot_losses(metrics: Path, picture: Path) -> None:
    """Training loss by objective and validation loss over the steps of all stages; log scale where it spans decades."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    offsets: dict[str, int] = {}
    end = 0
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["stage"] not in offsets:
            offsets[entry["stage"]] = end
        step = offsets[entry["stage"]] + entry["step"]
        end = max(end, step)
        for key, value in entry.items():
            if key.endswith("/loss"):
                curves[key.removesuffix("/loss")].append((step, value))
            elif key.startswith("eval_") and key.endswith("_loss") and key != "eval_loss":
                curves[f"{key.removeprefix('eval_').removesuffix('_loss')} (validation)"].append(
                    (step, value)
                )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in sorted(curves.items()):
        held_out = name.endswith("(validation)")
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            linewidth=1.2,
            marker="o" if held_out else None,
            markersize=3,
        )
    values = [value for points in curves.values() for _, value in points if value > 0]
    if values and max(values) > 5 * min(values):
        axes.set_yscale("log")
    for name, start in list(offsets.items())[1:]:
        axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
        axes.text(start, axes.get_ylim()[1], f" {name}", va="top", fontsize=8, color="grey")
    axes.set(xlabel="optimiser step", ylabel="cross-entropy of answer tokens (nats)", title="Training")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    figure.savefig(picture, dpi=130)
    plt.close(figure)
