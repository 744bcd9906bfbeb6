"""Every error that a user can meet: what went wrong, where, how to fix it, and the exit code of its kind.

Exit codes (documented in `docs/cli.md`): 0 done, 2 usage or recipe, 3 data, 4 environment, 5 does not fit,
6 diverged or would not learn, 7 disk, 8 verification failed, 10 refused for safety.
"""

from __future__ import annotations


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
        text = f"{self.where}: {self.message}" if self.where else self.message
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


class DiskError(LockadaptError):
    """A file cannot be written or read."""

    exit_code = 7


class VerificationError(LockadaptError):
    """A proof failed: a frozen tensor moved, a reloaded model differs, a key is missing or unexpected."""

    exit_code = 8


class LockError(VerificationError):
    """A frozen tensor changed during training."""


class SafetyError(LockadaptError):
    """Refused for safety: remote code, a path outside the data root, pickle, a decompression bomb."""

    exit_code = 10
