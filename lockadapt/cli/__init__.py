"""The command line: one file per command; heavy packages are imported only when a command runs."""

from __future__ import annotations

import sys
import warnings

import typer

from lockadapt.cli import (
    assemble,
    attach,
    cache,
    chat,
    check,
    doctor,
    evaluate,
    export,
    generate,
    merge,
    plan,
    quickstart,
    schema,
    search,
    tokenizer,
    train,
    unmerge,
    verify,
)
from lockadapt.errors import DiskError, DoesNotFitError, LockadaptError
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
    ("merge", merge.merge),
    ("unmerge", unmerge.unmerge),
    ("verify", verify.verify),
    ("export", export.export),
    ("chat", chat.chat),
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
        print(f"lockadapt {__version__}")
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
    try:
        app()
    except LockadaptError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted; continue a training run with --resume", file=sys.stderr)
        sys.exit(130)
    except MemoryError as error:
        _fail(
            DoesNotFitError(
                f"out of memory: {error}", fix="use a smaller batch_size, quantization: nf4 or a smaller LLM"
            )
        )
    except OSError as error:
        _fail(
            DiskError(
                f"{error.strerror or error}",
                where=str(error.filename or ""),
                fix="check the path and the disk",
            )
        )
    except RuntimeError as error:
        # torch's out-of-memory errors are RuntimeErrors; anything else is a bug and keeps its traceback.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        from lockadapt.training.batch_size_search import (
            reason,  # torch is loaded by now; --help does without it
        )

        _fail(
            DoesNotFitError(
                f"out of memory: {reason(error)}",
                fix="halve training.batch_size and double training.accumulation, or use quantization: nf4",
            )
        )


def _fail(error: LockadaptError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
