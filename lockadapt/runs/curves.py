"""Reads `metrics.jsonl` as curves: what was logged, over the steps of all stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.runs.kept_json import METRICS

Curves = dict[str, list[tuple[int, float]]]
"""Points (step over all stages, value) by name."""

LARGEST = 1e300
"""Values beyond it, and NaN, are not drawn: axes cannot hold them."""


@dataclass(frozen=True)
class MetricLines:
    """All lines of a run, each with its step over all stages.

    Attributes:
        lines: (step, what was logged).
        starts: step at which each stage starts, by its name.
    """

    lines: Sequence[tuple[int, dict[str, Any]]]
    starts: dict[str, int]

    def curves(self, name_of: Callable[[str], str | None]) -> Curves:
        """Collects curves.

        Args:
            name_of: logged key -> name of its curve; None for keys that are left out.

        Returns:
            Curves in the order of their names.
        """
        curves: Curves = defaultdict(list)
        for step, entry in self.lines:
            for key, value in entry.items():
                name = name_of(key)
                if name is not None and isinstance(value, (int, float)) and abs(value) <= LARGEST:
                    curves[name].append((step, float(value)))
        return dict(sorted(curves.items()))


def read_curves(metrics: Path) -> MetricLines:
    """Reads `metrics.jsonl`; a last line that is still being written is left out.

    Args:
        metrics: the file; it may be missing.

    Returns:
        Its lines.

    Raises:
        VerificationError: a line is damaged.
    """
    starts: dict[str, int] = {}
    lines, end = [], 0
    for entry in METRICS.read_lines(metrics):
        step = starts.setdefault(entry["stage"], end) + entry["step"]
        end = max(end, step)
        lines.append((step, entry))
    return MetricLines(lines, starts)


def loss_name(key: str) -> str | None:
    """`vqa/loss` -> `vqa`; `eval_vqa_loss` -> `vqa (validation)`."""
    if key.endswith("/loss"):
        return key.removesuffix("/loss")
    if key.startswith("eval_") and key.endswith("_loss") and key != "eval_loss":
        return f"{key.removeprefix('eval_').removesuffix('_loss')} (validation)"
    return None


def before(suffix: str) -> Callable[[str], str | None]:
    """Names curves by what stands before a suffix, such as `/grad_norm`."""
    return lambda key: key.removesuffix(suffix) if key.endswith(suffix) else None


def cosine_name(key: str) -> str | None:
    """`cosine/caption-vqa` -> `caption-vqa`."""
    return key.removeprefix("cosine/") if key.startswith("cosine/") else None


REWARDS = {"reward": "reward", "rewards/margins": "margin", "rewards/accuracies": "chosen preferred"}
"""Keys of rewards in lines of metrics, and names of their curves."""


def reward_name(key: str) -> str | None:
    """`reward` -> `reward`, `eval_rewards/margins` -> `margin (validation)`, `rewards/vqa/mean` -> `vqa`."""
    own = key.removeprefix("eval_")
    name = REWARDS.get(own)
    if name is None and own.startswith("rewards/") and own.endswith("/mean"):
        name = own.removeprefix("rewards/").removesuffix("/mean")
    return name if name is None or own == key else f"{name} (validation)"
