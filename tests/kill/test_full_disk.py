"""Disks that run full under every command that writes: exit 7, nothing half-written, and training goes on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lockadapt.cli import main
from lockadapt.models import proof
from tests.exports.killing_merges import forked
from tests.kill.__main__ import compared
from tests.kill.commands import OUT, Killed, commands
from tests.kill.points import run_to_its_end

DISK = 7


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Killed]:
    folder = tmp_path_factory.mktemp("full")
    assemble = ["assemble", "--llm", str(folder / "llama-tied"), "--tower", str(folder / "clip-vision")]
    writing = [
        *commands(folder),
        Killed("assemble", lambda target: [*assemble, "--output", str(target / OUT)], lambda target: None, 0),
    ]
    return {command.name: command for command in writing}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = _mount(folder, "size=600k")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("train", 100_000),
        ("assemble", 100_000),
        ("merge", 100_000),
        ("merge", 300),
        ("export", 100_000),
        ("cache", 2_000),
        ("search index", 1_000),
        ("search index", 300),
    ],
)
def test_a_limit_on_file_sizes(name: str, limit: int, writing: dict[str, Killed], tmp_path: Path) -> None:
    code, messages = _run(writing[name].arguments(tmp_path), limit)
    assert code == DISK, messages
    assert "full" in messages
    assert "Traceback" not in messages
    if name in ("assemble", "merge", "export", "cache"):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_goes_on_once_there_is_space(
    writing: dict[str, Killed], small_disk: Path, tmp_path: Path
) -> None:
    """The disk holds the assembled model, but not all checkpoints."""
    whole = tmp_path / "same"
    whole.mkdir()
    run_to_its_end(writing["train"].arguments(whole), whole)
    code, messages = _run(writing["train"].arguments(small_disk), None)
    assert code == DISK, messages
    assert "the disk is full" in messages
    assert _mount(small_disk, "remount,size=60m").returncode == 0
    again = writing["train"].again(small_disk)
    assert again is not None
    assert "--resume" in again
    run_to_its_end(again, small_disk)
    wanted, got = compared(whole), compared(small_disk)
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if wanted[name] != got[name]] == []


@pytest.mark.slow
def test_a_full_disk_of_temporary_files_is_named(
    writing: dict[str, Killed], small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: it messages that the disk of the output is full, and to choose another."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    (small_disk / "filling").write_bytes(b"x" * 590 * 1024)
    code, messages = _run(writing["assemble"].arguments(tmp_path), None)
    assert code == DISK, messages
    assert str(small_disk) in messages
    assert "TMPDIR" in messages
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_messages_that_cannot_be_written_leave_the_exit_code(tmp_path: Path) -> None:
    """Red before: the exit code was 1, as printing the message failed."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "from lockadapt.cli import main\n"
        "main()\n"
    )
    with open(tmp_path / "messages", "w", encoding="utf-8") as messages:
        arguments = [sys.executable, "-c", script, "train", "nowhere.yaml", "-o", "out"]
        ended = subprocess.run(arguments, stderr=messages, stdout=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert (tmp_path / "messages").read_text() == "error: now"


def _mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    if sys.platform != "linux" or os.geteuid():
        return subprocess.CompletedProcess([], 1, stderr="only root mounts, on Linux")
    arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def _run(arguments: Sequence[str], limit: int | None) -> tuple[int, str]:
    """Exit code and output of a command line in a fork, whose files may have so many bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for stream in (1, 2):
                os.dup2(writing, stream)
            os.close(reading)
            os.close(writing)
            proof.run_python = forked
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv[:] = ["lockadapt", *arguments]
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        messages = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), messages
