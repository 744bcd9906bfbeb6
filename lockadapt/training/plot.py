"""Draws `loss.png` from `metrics.jsonl`: losses, and in a mixed run what the objectives do to each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.runs.curves import Curves, before, cosine_name, loss_name, read_curves, reward_name


def plot_losses(metrics: Path, picture: Path) -> None:
    """Plots training loss by objective and validation loss over all stages; log scale across decades.

    Where a stage has rewards also these. With several objectives also samples seen, gradient norms on what
    they share, and the cosines between gradients.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    logged = read_curves(metrics)
    starts = logged.starts
    norms, cosines = logged.curves(before("/grad_norm")), logged.curves(cosine_name)
    mixed, rewards = bool(cosines), logged.curves(reward_name)
    rows, columns = (2, 2) if mixed else (1, 2 if rewards else 1)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(11, 7) if mixed else (7 * columns, 4),
        layout="constrained",
        squeeze=False,
    )
    panels = list(grid.flat)
    _panel(panels[0], logged.curves(loss_name), starts, "loss (nats; each objective's own mean)", "Training")
    if rewards and not mixed:
        _panel(panels[1], rewards, starts, "reward", "Rewards", log=False)
    if mixed:
        _panel(panels[1], logged.curves(before("/samples")), starts, "samples seen", "Mixture")
        _panel(panels[2], norms, starts, "norm", "Gradient of each objective on LoRA and projector")
        _panel(panels[3], cosines, starts, "cosine", "Between objectives' gradients", log=False)
        panels[3].set_ylim(-1, 1)
        panels[3].axhline(0, color="grey", linewidth=0.8)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


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
