"""`--processes`: starts a command several times by torch's elastic launcher, and ends as the first did."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from lockadapt.console import emit
from lockadapt.errors import ProcessEndedError, RecipeError
from lockadapt.processes import launched, lost

OPTION = "--processes"
LINGER = 5.0
"""Seconds that a process waits for the launcher where it ends because another did."""
SHELL_SIGNAL = 128
"""Shells give a process that a signal ended this and the signal's number as exit code."""


def launch(arguments: Sequence[str], count: int) -> int:
    """Runs `lockadapt` with these arguments in several processes on this machine.

    Args:
        arguments: of the command, `--processes` among them.
        count: how many.

    Returns:
        0, or the exit code of the first process that failed by itself.

    Raises:
        RecipeError: this process was itself started by a launcher.
    """
    if launched():
        raise RecipeError(
            "a launcher has started several processes already", where=OPTION, fix="leave the option out"
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it says of its own work is for those who debug it; failures are told below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="lockadapt",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        command = ["-m", "lockadapt", *without_option(arguments)]
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return _failure(error.failures)
        except SignalException as error:
            return SHELL_SIGNAL + int(error.sigval)
    return 0


def end_launched(code: int, error: Exception | None) -> NoReturn:
    """Ends a process that a launcher started: it is told why, and nothing is torn down that could wait.

    Args:
        code: exit code.
        error: what ended the command, if anything did.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if error is not None:
        why = ProcessEndedError(str(error)) if lost(error) else error
        get_error_handler().record_exception(why)
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(why, ProcessEndedError):
            # The launcher must see the end of the process that ended first; it ends this one then.
            time.sleep(LINGER)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def without_option(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--processes N` or `--processes=N`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != OPTION and not argument.startswith(f"{OPTION}="):
            kept.append(argument)
        skip = argument == OPTION
    return kept


def _failure(failures: dict[int, Any]) -> int:
    """The exit code of a process that failed by itself, not as another had; says what none could say."""
    consequence = f"{ProcessEndedError.__name__}:"
    ordered = sorted(failures.values(), key=lambda failure: (failure.timestamp, failure.global_rank))
    first = next((failure for failure in ordered if consequence not in str(failure.message)), ordered[0])
    if first.exitcode >= 0:
        return int(first.exitcode)
    number = -int(first.exitcode)
    emit(
        f"error: process {first.global_rank} was ended by {signal.Signals(number).name}"
        + (", which the system sends where memory is used up" if number == signal.SIGKILL else ""),
        error=True,
    )
    return SHELL_SIGNAL + number
