"""Stops a stage whose rewards tell nothing apart any more, or that is too far from its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt.errors import RewardCollapseError

if TYPE_CHECKING:
    from lockadapt.training.methods.locked import LockedStage

SMALLEST = 1e-7
"""A margin of rewards below this is none."""


class RewardGuard(TrainerCallback):
    """Looks at TRL's numbers of every optimiser step.

    Args:
        trainer: whose stage it is.
    """

    def __init__(self, trainer: LockedStage) -> None:
        self.trainer = trainer
        self.signals = 0
        """Steps whose rewards differed."""
        self._same, self._cut, self._length = 0, 0, 0
        self._lengths_varied = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judges the step; raises RewardCollapseError where the stage collapsed, and says how."""
        numbers: Mapping[str, Sequence[float]] = self.trainer._metrics["train"]  # type: ignore[attr-defined]
        now = {key: values[-1] for key, values in numbers.items() if values}
        method, where = self.trainer.setup.method, f"step {state.global_step}"
        kl = now.get("kl")
        if kl is not None and not kl <= method.max_kl:
            raise RewardCollapseError(
                f"the KL from the start of the stage is {kl:.3g} nats per token, above {method.max_kl:g}",
                where=where,
                fix="lower the stage's learning rates, raise trl.beta, or raise guard.max_kl",
            )
        flat = now.get("frac_reward_zero_std") == 1.0 or abs(now.get("rewards/margins", 1.0)) < SMALLEST
        self._same = self._same + 1 if flat else 0
        self.signals += not flat
        if self._same >= method.guard_steps:
            raise RewardCollapseError(
                f"for {self._same} steps all rewards of every prompt were equal, so nothing is learned",
                where=where,
                fix="give a reward that tells answers apart, raise trl.temperature, or raise guard.steps",
            )
        self._judge_lengths(now, method.guard_steps, where)

    def _judge_lengths(self, now: Mapping[str, float], steps: int, where: str) -> None:
        """Answers that all run into the limit, or that have become all equally long."""
        if "completions/max_length" not in now:
            return
        self._cut = self._cut + 1 if now["completions/clipped_ratio"] == 1.0 else 0
        if self._cut >= steps:
            raise RewardCollapseError(
                f"for {self._cut} steps no answer ended before the limit of "
                f"{now['completions/max_length']:.0f} tokens",
                where=where,
                fix="raise trl.max_completion_length, or train a supervised stage first",
            )
        same = now["completions/min_length"] == now["completions/max_length"]
        self._lengths_varied |= not same
        self._length = self._length + 1 if same and self._lengths_varied else 0
        if self._length >= steps:
            raise RewardCollapseError(
                f"for {self._length} steps all answers had {now['completions/max_length']:.0f} tokens, which "
                "they had not before",
                where=where,
                fix="look at followed.jsonl; lower the learning rates, or change the reward",
            )
