"""A function of the user's own, from a file that the recipe names and the command line allows."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError, SafetyError
from lockadapt.rewards.base import Reward, RewardAccess, references_of

WHERE = "rewards.function"


@dataclass(frozen=True)
class FunctionReward(Reward):
    """Whatever the function says; it is called with keywords, lists of one entry an answer.

    `answers` are texts, `questions` the last user turns, `references` lists of accepted answers, `boxes`
    lists of true boxes as fractions of the image's sides, `images` lists of paths (None of an image without
    one).

    Attributes:
        function: `file.py:name`, the file relative to the working folder.
        call: the function.
    """

    name: ClassVar[str] = "function"
    reads_thoughts: ClassVar[bool] = True

    function: str = ""
    call: Callable[..., Sequence[float]] | None = None

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Loads the function; refused unless the user allowed code."""
        named = settings["function"]
        if not access.code:
            raise SafetyError(
                f"the recipe wants to run code: {named}",
                where=WHERE,
                fix="read the file, then allow it with `lockadapt train --allow-reward-code`",
            )
        return cls(**settings, call=_load(named))

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """Calls it, and refuses what are not as many finite numbers."""
        assert self.call is not None
        made = self.call(
            answers=list(answers),
            questions=[_question(sample) for sample in samples],
            references=[list(texts) for texts in references_of(samples)],
            boxes=[list(sample.boxes) for sample in samples],
            images=[[image.path and str(image.path) for image in sample.images] for sample in samples],
        )
        try:
            numbers = [float(number) for number in made]
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.function} returned no list of numbers: {error}", where=WHERE) from error
        if len(numbers) != len(answers) or not all(map(math.isfinite, numbers)):
            raise DataError(
                f"{self.function} returned {len(numbers)} numbers for {len(answers)} answers, "
                f"{sum(map(math.isfinite, numbers))} of them finite",
                where=WHERE,
                fix="return one finite number for each answer",
            )
        return numbers


def _question(sample: Sample) -> str:
    return next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")


def _load(named: str) -> Callable[..., Sequence[float]]:
    text, _, name = named.rpartition(":")
    file = Path(text)
    if file.suffix != ".py" or not file.is_file() or not name.isidentifier():
        raise RecipeError(
            f"{named!r} names no function in a Python file", where=WHERE, fix="write `my_rewards.py:score`"
        )
    specification = importlib.util.spec_from_file_location(f"lockadapt_reward_{file.stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{file} has no function {name}", where=WHERE, fix="correct the name")
    return function
