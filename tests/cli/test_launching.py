"""What `--processes` starts, and which of several exit codes it ends with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lockadapt.cli.launching import exit_code, without_option


def failure(folder: Path, rank: int, code: int, message: str | None, time: int) -> ProcessFailure:
    """As torch's launcher tells of a process, from the file that it wrote."""
    file = folder / f"{rank}.json"
    if message is not None:
        file.write_text(json.dumps({"message": {"message": message, "extraInfo": {"timestamp": str(time)}}}))
    return ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(file))


def test_the_option_is_for_the_launcher_alone() -> None:
    given = ["train", "r.yaml", "--processes", "2", "-o", "runs/a", "--processes=3", "a=--processes"]
    assert without_option(given) == ["train", "r.yaml", "-o", "runs/a", "a=--processes"]
    given = ["train", "--max-restarts", "--processes", "--max-restarts=1", "r.yaml", "--processes", "4"]
    assert without_option(given) == ["train", "r.yaml"]


def test_the_exit_code_is_of_the_process_that_failed_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "ProcessEndedError: another process ended", 10),
        1: failure(tmp_path, 1, 5, "OutOfMemoryError: CUDA out of memory", 10),
    }
    assert exit_code(failures) == 5
    assert exit_code({0: failures[0]}) == 1
    ended = failure(tmp_path, 2, -signal.SIGTERM, None, 0)
    assert exit_code({**failures, 2: ended}) == 5
    assert capsys.readouterr().err == ""


def test_a_signal_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "ProcessEndedError: another process ended", 10),
        1: failure(tmp_path, 1, -signal.SIGKILL, None, 0),
    }
    failures[2] = failure(tmp_path, 2, -signal.SIGTERM, None, 0)
    assert exit_code(failures) == 128 + signal.SIGKILL
    assert "process 1 was ended by SIGKILL" in capsys.readouterr().err
