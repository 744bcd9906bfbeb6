"""Every error that a user can meet: what went wrong, where, how to fix it, and the exit code of its kind.

Exit codes (documented in `docs/cli.md`): 0 done, 2 usage or recipe, 3 data, 4 environment, 5 does not fit,
6 diverged or would not learn, 7 disk, 8 verification failed, 10 refused for safety.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator


class LockadaptError(Exception):
    """Base of all errors that lockadapt raises on purpose.

    Args:
        message: what is wrong, in one sentence that names the thing.
        where: the place: `file:line`, a row, a tensor name, a recipe key.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.message, self.where, self.fix = message, where, fix
        super().__init__(message)

    def __str__(self) -> str:
        # A file name may hold a line break, which must not look like the start of another message.
        where = (self.where or "").replace("\n", "\\n")
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class RecipeError(LockadaptError):
    """The recipe, an override or a command-line argument is wrong. May gather several problems at once."""

    exit_code = 2


class DataError(LockadaptError):
    """A row, an image or an annotation cannot be used."""

    exit_code = 3


class NoLabelError(DataError):
    """A sample has no token to learn from."""


class SetupError(LockadaptError):
    """A package, a device or a model file that is needed is absent or too old."""

    exit_code = 4


class AssemblyError(LockadaptError):
    """The stock class cannot hold this LLM or this tower exactly; the message names what it cannot hold."""

    exit_code = 4


class AdapterError(LockadaptError):
    """A LoRA target matches nothing, or lies outside the LLM."""

    exit_code = 2


class DoesNotFitError(LockadaptError):
    """The run needs more memory than there is."""

    exit_code = 5


class WouldNotLearnError(LockadaptError):
    """The run would waste its time: it cannot learn, or stopped being able to. Children say why."""

    exit_code = 6


class NoGradientError(WouldNotLearnError):
    """A tensor that should train got no gradient, or only zeros."""


class NotMovingError(WouldNotLearnError):
    """A tensor that should train has not changed after several optimiser steps."""


class NonFiniteLossError(WouldNotLearnError):
    """The loss is NaN or infinite."""


class ImageIgnoredError(WouldNotLearnError):
    """Swapping the images for others does not change the loss: the model does not look."""


class RewardCollapseError(WouldNotLearnError):
    """A stage with a method has no signal left, or left what it started from."""


class DiskError(LockadaptError):
    """A file cannot be written or read."""

    exit_code = 7


class VerificationError(LockadaptError):
    """A proof failed: a frozen tensor moved, a reloaded model differs, a key is missing or unexpected."""

    exit_code = 8


class LockError(VerificationError):
    """A frozen tensor changed during training."""


class ProcessEndedError(LockadaptError):
    """Another process of a run on several processes ended; it says why itself.

    Args:
        message: as of `LockadaptError`.
        code: exit code of the other process, if it is known.
    """

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message, fix="see what the process that ended first says")
        self.exit_code = code


class SafetyError(LockadaptError):
    """Refused for safety: remote code, a path outside the data root, pickle, a decompression bomb."""

    exit_code = 10


_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "std::bad_alloc",
    "can't start new thread",
    "failed to map segment",
    "memory allocation of",
)
_DISK_WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    "os error 28)",
    "os error 122)",
    "os error 27)",
)


def memory_ran_out(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that memory is used up.

    Libraries have no type for it: torch raises RuntimeError, the loader of shared objects ImportError.
    """
    return memory_cause(error) is not None


def memory_cause(error: BaseException) -> BaseException | None:
    """The exception, or the one behind it, that says that memory is used up; None if none does."""
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or _says(cause, _MEMORY_WORDS):
            return cause
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return cause
    return None


def disk_ran_out(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that a disk or a quota is full.

    safetensors and torch say so in errors of their own, which are no OSError.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(
        (isinstance(cause, OSError) and cause.errno in full) or _says(cause, _DISK_WORDS)
        for cause in _chain(error)
    )


def memory_line(error: BaseException) -> str:
    """The line of an exception that says that memory is used up; its first where none does."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if _has(line, _MEMORY_WORDS)), first_line(error))


def first_line(error: BaseException) -> str:
    """What an exception says in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    # What lockadapt says itself names rows and files, whose words mean nothing here.
    if isinstance(error, LockadaptError):
        return False
    return _has(str(error), words)


def _has(text: str, words: tuple[str, ...]) -> bool:
    text = text.lower()
    return any(word in text for word in words)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
