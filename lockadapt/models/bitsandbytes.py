"""Imports bitsandbytes before anything else does, without the line that it prints about CPU kernels."""

from __future__ import annotations

import contextlib
import io
import logging

from lockadapt.errors import SetupError

_failure: Exception | None = None
_quiet = io.StringIO()
_level = logging.root.manager.disable
try:
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(_quiet), contextlib.redirect_stderr(_quiet):
        import bitsandbytes  # noqa: F401
except Exception as error:
    # Whoever asks for no quantization need not care; `require_bitsandbytes` tells the others.
    _failure = error
finally:
    logging.disable(_level)


def require_bitsandbytes() -> None:
    """Makes sure that bitsandbytes is there.

    Raises:
        SetupError: it is not installed or does not load.
    """
    if _failure is not None:
        raise SetupError(
            f"bitsandbytes does not load: {_failure}",
            where="model.quantization",
            fix="pip install -U bitsandbytes",
        ) from _failure
