"""Draws inputs, reads each in a fork with a folder, a time and memory of its own, and counts how that ended."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hypothesis

from lockadapt.cli import told_to_users
from tests.fuzz.targets import Target

SECONDS = 60
"""That one input may take; what takes longer hangs."""
GRACE = 20
"""Seconds after those, in which a library may hand the alarm over to Python."""
MEMORY = 1536 * 1024**2
"""Bytes that one input may map on top of what the process has; what needs more is a fault, refused or not."""
DOES_NOT_FIT = 5


class HangError(BaseException):
    """Raised by the alarm; nothing that catches exceptions catches it."""


@dataclass
class Counts:
    """How the inputs of a target ended.

    Attributes:
        ends: by exit code; 0 for what is taken, -1 for faults.
        faults: tracebacks, hangs, crashes and what takes too much memory, each with its input.
        slowest: seconds of one input, and the input.
        peak: bytes of memory of the largest process, and its input.
    """

    ends: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak: tuple[int, str] = (0, "")


def fuzz(target: Target, examples: int, seed: int | None, counts: Counts) -> None:
    """Draws and reads inputs.

    Args:
        target: what is fuzzed.
        examples: how many inputs at most.
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
            ended, peak = _read_in_a_fork(target, value, Path(folder))
        shown = str(value)[:2000]
        if ended["fault"]:
            counts.faults.append(f"{target.name}: {shown}\n{ended['fault']}")
        counts.ends[ended["code"]] += 1
        counts.slowest = max(counts.slowest, (time.monotonic() - started, shown))
        counts.peak = max(counts.peak, (peak, shown))

    drawn = hypothesis.given(target.inputs)(settings(check))
    (drawn if seed is None else hypothesis.seed(seed)(drawn))()


def _read_in_a_fork(target: Target, value: Any, folder: Path) -> tuple[dict[str, Any], int]:
    """How reading ended (`code`, and `fault` or an empty text), and the bytes that the process had at most."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _read(target, value, folder, writing)
    os.close(writing)
    late = not select.select([reading], [], [], SECONDS + GRACE)[0]
    if late:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if late:
        ended = {"code": -1, "fault": f"took more than {SECONDS} s within a library"}
    elif code or not text:
        ended = {"code": -1, "fault": f"the process ended with {code}"}
    else:
        ended = json.loads(text)
    return ended, usage.ru_maxrss * 1024


def _read(target: Target, value: Any, folder: Path, pipe: int) -> NoReturn:
    """The child."""
    try:
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY,) * 2)
        ended = _ended(target, value, folder)
        signal.alarm(0)
        os.write(pipe, json.dumps(ended).encode()[:60_000])
        os._exit(0)
    finally:
        os._exit(1)


def _ended(target: Target, value: Any, folder: Path) -> dict[str, Any]:
    try:
        target.read(value, folder)
    except (Exception, HangError) as error:
        told = told_to_users(error) if isinstance(error, Exception) else None
        if told is None:
            fault = "".join(traceback.format_exception(error)[-4:])
        elif not told.message.strip() or len(str(told)) > 20_000:
            fault = f"an error without words, or an endless one: {str(told)[:200]!r}"
        elif told.exit_code == DOES_NOT_FIT:
            fault = (
                f"takes more than {MEMORY:,} bytes: {told}\n{''.join(traceback.format_exception(error)[-4:])}"
            )
        else:
            return {"code": told.exit_code, "fault": ""}
        return {"code": -1, "fault": fault[-10_000:]}
    return {"code": 0, "fault": ""}


def _late(number: int, frame: FrameType | None) -> None:
    raise HangError(f"took more than {SECONDS} s")


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
