"""`--processes`: starts a command several times by torch's elastic launcher, and ends as the first did."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lockadapt.console import emit
from lockadapt.errors import ProcessEndedError, RecipeError
from lockadapt.processes import launched, lost

OPTION, RESTARTS = "--processes", "--max-restarts"
LINGER = 5.0
"""Seconds that a process waits for the launcher where it ends because another did."""
SHELL_SIGNAL = 128
"""Shells give a process that a signal ended this and the signal's number as exit code."""


def launch(arguments: Sequence[str], count: int, restarts: int = 0) -> int:
    """Runs `lockadapt` with these arguments in several processes on this machine.

    Args:
        arguments: of the command, `--processes` among them.
        count: how many.
        restarts: how often all of them are started again where one ends by itself or by a signal.

    Returns:
        0, or the exit code of the first process that failed by itself.

    Raises:
        RecipeError: this process was itself started by a launcher.
        SystemExit: a signal ended it; 128 and its number.
    """
    if launched():
        raise RecipeError(
            "a launcher has started several processes already", where=OPTION, fix="leave the option out"
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What the launcher logs of its own work is for those who debug it; failures are told below.
    logging.disable(logging.CRITICAL)
    if restarts:
        # Otherwise processes that are started again look for the store of those that ended (torch 2.13).
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="lockadapt",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        command = ["-m", "lockadapt", *without_option(arguments)]
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return exit_code(error.failures)
        except SignalException as error:
            sys.exit(SHELL_SIGNAL + int(error.sigval))  # the processes have said how to go on
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
    """The arguments without `--processes N`, `--max-restarts N` and the same with `=`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        own = argument.partition("=")[0] in (OPTION, RESTARTS)
        if not skip and not own:
            kept.append(argument)
        skip = not skip and argument in (OPTION, RESTARTS)
    return kept


def exit_code(failures: Mapping[int, Any]) -> int:
    """The exit code of the process that failed by itself; what a signal ended is told here.

    Args:
        failures: of torch's launcher (`ProcessFailure`), by rank.

    Returns:
        The code; 128 and the number of the signal where one ended the process.
    """
    consequence = f"{ProcessEndedError.__name__}:"
    ordered = sorted(failures.items(), key=lambda entry: (entry[1].timestamp, entry[0]))
    own = [entry for entry in ordered if consequence not in str(entry[1].message)]
    # What the launcher ended itself, with SIGTERM, is listed as well.
    rank, first = min(
        own or ordered, key=lambda entry: (entry[1].exitcode < 0, entry[1].exitcode == -signal.SIGTERM)
    )
    if first.exitcode >= 0:
        return int(first.exitcode)
    number = -int(first.exitcode)
    why = ", which the system sends where memory is used up" if number == signal.SIGKILL else ""
    emit(
        f"error: process {rank} was ended by {signal.Signals(number).name}{why}\n"
        "  fix: add --resume to go on from the last checkpoint",
        error=True,
    )
    return SHELL_SIGNAL + number
