"""Curves as SVG inside the page: matplotlib draws them, the page's own colours and font write them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

from lockadapt.runs.curves import Curves

INK = "#010203"
"""Stands for the page's text colour, which differs between light and dark."""
COLOURS = ("#1c7ed6", "#e8590c", "#2f9e44", "#c2255c", "#9c36b5", "#b08900", "#0c8599", "#748094")
"""Each is told from a white and from a near-black ground (contrast of 3 or more)."""
DASHES = ("-", "--", ":", "-.")
WIDTH, HEIGHT, LINE = 5.6, 3.2, 0.21
"""Inches: of the figure, of its axes with their labels, and of a line of the legend below them."""
LEFT, LOWER, WIDE, HIGH = 0.14, 0.51, 0.83, 2.43
"""Place of the axes, heights in inches: a layout that is computed takes half of the time of drawing."""


class Charts:
    """Draws the charts of one page, whose element ids may not repeat."""

    def __init__(self) -> None:
        self._count = 0

    def draw(
        self,
        title: str,
        label: str,
        runs: Mapping[str, Curves],
        starts: Mapping[str, int],
        *,
        log: bool = False,
    ) -> str:
        """Draws one chart.

        Args:
            title: says what it shows; also its text for screen readers.
            label: of the vertical axis, with its unit.
            runs: curves by run; with several runs each has its own dashes.
            starts: step at which each stage starts.
            log: a logarithmic axis, where values span more than a factor of five.

        Returns:
            An `<svg>` element; empty where there is no curve.
        """
        if not any(runs.values()):
            return ""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
            figure = Figure(figsize=(WIDTH, HEIGHT))
            axes = figure.add_axes((LEFT, LOWER / HEIGHT, WIDE, HIGH / HEIGHT))
            _curves(axes, runs)
            values = [value for curves in runs.values() for points in curves.values() for _, value in points]
            positive = [value for value in values if value > 0]
            if log and positive and len(positive) == len(values) and max(positive) > 5 * min(positive):
                axes.set_yscale("log")
            else:
                axes.ticklabel_format(axis="y", scilimits=(-2, 4))  # as wide labels as there is space for
            for name, start in list(starts.items())[1:]:
                axes.axvline(start, color=INK, linewidth=0.6, linestyle=":")
                axes.text(start, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="top", color=INK)
            _styled(axes, label)
            _legend(figure, axes)
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        self._count += 1
        return _embedded(file.getvalue(), title, f"c{self._count}-")


def _curves(axes: Any, runs: Mapping[str, Curves]) -> None:
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    for number, (run, curves) in enumerate(runs.items()):
        for name, points in curves.items():
            held_out = name.endswith("(validation)")
            axes.plot(
                *zip(*points, strict=True),
                label=name if len(runs) == 1 else f"{run}: {name}",
                color=COLOURS[names.index(name) % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.3,
                marker="o" if held_out or len(points) == 1 else None,
                markersize=3,
            )


def _styled(axes: Any, label: str) -> None:
    axes.set_xlabel("optimiser step", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(alpha=0.2, color=INK)


def _legend(figure: Any, axes: Any) -> None:
    """Names the curves below the axes, where they hide none; the figure grows by as many lines."""
    handles, names = axes.get_legend_handles_labels()
    longest = max(map(len, names))
    columns = 3 if longest <= 18 else 2 if longest <= 30 else 1
    grown = HEIGHT + LINE * math.ceil(len(names) / columns)
    figure.set_size_inches(WIDTH, grown)
    axes.set_position((LEFT, (LOWER + grown - HEIGHT) / grown, WIDE, HIGH / grown))
    figure.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(LEFT - 0.02, 0.0),
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=10,
        borderaxespad=0.0,
    )


def _embedded(svg: str, title: str, prefix: str) -> str:
    """The element alone, in the page's colours, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("font: 9px 'DejaVu Sans'", "font: 9px inherit")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    if size:
        svg = svg.replace(size[0], "", 1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
