"""Files and folders appear whole, and what killed writers left is cleared without touching what others write."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lockadapt import files
from lockadapt.files import (
    clear_abandoned,
    new_folder,
    nothing_but_abandoned,
    remove_folder,
    write_json,
    write_tensors,
    write_text,
)


def killed_while_writing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fork leaves that is killed before it renames its temporary."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_text(path, "half")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_removes_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: the temporary stayed for good."""
    killed_while_writing(tmp_path / "a.json", monkeypatch)
    (left,) = names(tmp_path)
    assert left.startswith(".a.json.writing-")
    write_json(tmp_path / "b.json", 1)
    assert names(tmp_path) == [left, "b.json"]
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == ["a.json", "b.json"]


def test_what_somebody_writes_just_now_stays(tmp_path: Path) -> None:
    handle, name = files._locked_file(tmp_path, ".a.json.writing-")
    write_json(tmp_path / "a.json", 1)
    clear_abandoned(tmp_path)
    assert names(tmp_path) == [Path(name).name, "a.json"]
    os.close(handle)
    clear_abandoned(tmp_path)
    assert names(tmp_path) == ["a.json"]


def test_a_temporary_that_went_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = files._lock
    made: list[int] = []

    def late(handle: int) -> None:
        if not made:
            for path in tmp_path.iterdir():
                path.unlink()
        made.append(handle)
        lock(handle)

    monkeypatch.setattr(files, "_lock", late)
    write_text(tmp_path / "a", "whole")
    assert len(made) == 2
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_folder_is_cleared_of_all_kinds_and_of_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.writing-ab_12cd9", "deep/.tmpAb3dEf", "deep/.index.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "deep" / ".base.writing-xyzxyzxy" / "inner").mkdir(parents=True)
    kept = (".lock", ".tmp", "a.writing-x", ".gitignore", "deep/.tmpfile.txt")
    for name in kept:
        (tmp_path / name).write_text("")
    assert not nothing_but_abandoned(tmp_path)
    clear_abandoned(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == sorted((*kept, "deep"))


def test_a_killed_start_leaves_a_folder_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_writing(tmp_path / "recipe.yaml", monkeypatch)
    assert nothing_but_abandoned(tmp_path)


def test_a_folder_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        remove_folder(tmp_path / "old")
    assert not (tmp_path / "old").exists()
    clear_abandoned(tmp_path)
    remove_folder(tmp_path / "old")
    assert names(tmp_path) == []


def test_tensors_are_on_the_disk_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert synced == [tmp_path / "a.safetensors", tmp_path]
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "new", what="this") as folder:
            (folder / "a").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert names(tmp_path) == []
