"""Draws inputs, reads each in a folder of its own, and counts how that ended."""

from __future__ import annotations

import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis

from lockadapt.cli import told_to_users
from lockadapt.errors import LockadaptError
from tests.fuzz.targets import Target

SECONDS = 60
"""That one input may take; what takes longer hangs."""


class HangError(BaseException):
    """Raised by the alarm; nothing that catches exceptions catches it."""


@dataclass
class Counts:
    """How the inputs of a target ended.

    Attributes:
        ends: by exit code; 0 for what is taken.
        faults: tracebacks and hangs, each with its input.
        slowest: seconds of one input.
    """

    ends: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0


def fuzz(target: Target, examples: int, seed: int | None, counts: Counts) -> None:
    """Draws and reads inputs.

    Args:
        target: what is fuzzed.
        examples: how many inputs at most; smaller ones that show a fault are looked for on top.
        seed: of the draws; None: the same ones every time.
        counts: is added to.
    """
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )

    def check(value: Any) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                with _alarm():
                    target.read(value, Path(folder))
                code = 0
            except (Exception, HangError) as error:
                told = told_to_users(error) if isinstance(error, Exception) else None
                if told is None:
                    where = "".join(traceback.format_exception(error)[-4:])
                    counts.faults.append(f"{target.name}: {str(value)[:2000]}\n{where}")
                code = -1 if told is None else _printed(told)
        counts.ends[code] += 1
        counts.slowest = max(counts.slowest, time.monotonic() - started)

    drawn = hypothesis.given(target.inputs)(settings(check))
    (drawn if seed is None else hypothesis.seed(seed)(drawn))()


def _printed(error: LockadaptError) -> int:
    """Its exit code, after it was written as it would be printed."""
    assert error.message.strip(), "an error without words"
    assert len(str(error)) < 20_000, "an endless message"
    return error.exit_code


@contextmanager
def _alarm() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise HangError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
