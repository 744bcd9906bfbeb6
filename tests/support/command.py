"""The command line, in the process of the test."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lockadapt.cli import main


def lockadapt(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Calls the entry point in this process, which saves the seconds that importing torch takes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["lockadapt", *map(str, arguments)])
        os.chdir(cwd or before)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.chdir(before)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())
