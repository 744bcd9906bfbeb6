"""The command line: one file per command; heavy packages are imported only when a command runs."""

from __future__ import annotations

import io
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from lockadapt.cli import (
    assemble,
    attach,
    cache,
    chat,
    check,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    merge,
    plan,
    quickstart,
    report,
    schema,
    search,
    tokenizer,
    train,
    unmerge,
    verify,
)
from lockadapt.cli.launching import end_launched
from lockadapt.console import emit
from lockadapt.errors import (
    DiskError,
    DoesNotFitError,
    LockadaptError,
    ProcessEndedError,
    RecipeError,
    disk_ran_out,
    first_line,
    memory_cause,
    memory_line,
)
from lockadapt.processes import is_first, launched, lost
from lockadapt.version import __version__

app = typer.Typer(
    name="lockadapt",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Give a frozen language model vision: assemble, train, verify, merge. Results go to stdout, "
    "everything else to stderr. "
    "Exit codes: 0 success, 2 usage or recipe, 3 data, 4 environment, 5 out of memory, 6 training "
    "diverged or cannot learn, "
    "7 disk, 8 verification failed, 10 refused for safety.",
)
for name, verb in (
    ("quickstart", quickstart.quickstart),
    ("check", check.check),
    ("plan", plan.plan),
    ("cache", cache.cache),
    ("train", train.train),
    ("eval", evaluate.evaluate),
    ("report", report.report),
    ("merge", merge.merge),
    ("unmerge", unmerge.unmerge),
    ("verify", verify.verify),
    ("export", export.export),
    ("chat", chat.chat),
    ("demo", demo.demo),
    ("generate", generate.generate),
    ("search", search.search),
    ("attach", attach.attach),
    ("assemble", assemble.assemble),
    ("schema", schema.schema),
    ("doctor", doctor.doctor),
):
    app.command(name)(verb)
app.add_typer(tokenizer.app, name="tokenizer")


def _version(wanted: bool) -> None:
    if wanted:
        emit(f"lockadapt {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line: report lockadapt's errors as one message on stderr with their exit code."""
    # Deprecation warnings from libraries concern developers, not users.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    arguments = sys.argv[1:]
    error: Exception | None = None
    try:
        code = _run(arguments)
    except Exception as raised:  # a bug, or what several processes say of it
        if not launched():
            raise
        error, code = raised, _say(raised)
    if launched():
        end_launched(code, error)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Runs a command, and says what went wrong.

    Args:
        arguments: of the command line.

    Returns:
        The exit code.

    Raises:
        Exception: a bug; on several processes any error.
    """
    code: Any
    try:
        _refuse_odd_arguments(arguments)
        # Typer would end the process itself, print arguments as they are, and stay silent on Ctrl-C.
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        shown = io.StringIO()
        error.show(shown)
        emit(shown.getvalue(), end="", error=True)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if launched() or told_to_users(error) is None:  # a bug: its traceback is what a report of it needs
            raise
        return _say(error)
    if code == INTERRUPTED and is_first():
        emit(f"\ninterrupted: {_how_to_go_on(arguments)}", error=True)
    return code if isinstance(code, int) else 0


def _say(error: Exception) -> int:
    """Says what went wrong, unless another process says it; gives the exit code."""
    told = told_to_users(error)
    if told is None:
        traceback.print_exception(error)
        return 1
    if not isinstance(error, ProcessEndedError):
        emit(f"error: {told}", error=True)
    return told.exit_code


INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""

# ClickException, of the Click that Typer brings along (newer versions) or imports (older ones).
_UsageError: Any = typer.BadParameter.__mro__[2]


def told_to_users(error: Exception) -> LockadaptError | None:
    """What a user is told about any exception, by its cause rather than by where it surfaced.

    Args:
        error: whatever ended a command.

    Returns:
        An error with message, place, fix and exit code; None for what is a bug.
    """
    if isinstance(error, (DoesNotFitError, DiskError)):
        return error
    if (last := memory_cause(error)) is not None:
        return DoesNotFitError(
            f"out of memory: {memory_line(last).split('. GPU ')[0].removesuffix('.')}",
            where=error.where if isinstance(error, LockadaptError) else None,
            fix="halve training.batch_size and double training.accumulation, use quantization: nf4 or a "
            "smaller LLM, or raise the limit (ulimit -v) if there is one",
        )
    if disk_ran_out(error):
        where = error.where if isinstance(error, LockadaptError) else getattr(error, "filename", None)
        return DiskError(
            f"the disk is full, or a limit on file sizes is reached: {first_line(_root(error))}",
            where=None if where is None else str(where),
            fix="free space, choose another --output, or let TMPDIR name a folder on a larger disk",
        )
    if isinstance(error, LockadaptError):
        return error
    if lost(error):
        return ProcessEndedError("the connection to another process was lost")
    if isinstance(error, OSError):
        return DiskError(
            f"{error.strerror or first_line(error)}",
            where=str(error.filename or ""),
            fix="check the path and the disk",
        )
    return None


def _root(error: BaseException) -> BaseException:
    """What an exception of lockadapt's own was raised from."""
    while isinstance(error, LockadaptError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refuse_odd_arguments(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: Python hands them on as lone surrogates, which no file can hold."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise RecipeError(
                "is not UTF-8 text",
                where=f"the argument {argument!r}",
                fix="rename the file, or mend the text",
            )


def _how_to_go_on(arguments: Sequence[str]) -> str:
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    if verb == "train":
        again = (
            "run the same command again" if "--resume" in arguments else "add --resume to the same command"
        )
        return f"{again} to go on from the last checkpoint"
    if verb in ("cache", "search"):
        return "run the same command again; images that are done are not done again"
    return "run the same command again; nothing unfinished was left"
