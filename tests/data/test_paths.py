"""A name in a row reaches files inside its root and nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockadapt.data.paths import DataRoot, refuse_pickle, safe_join
from lockadapt.errors import DataError, LockadaptError, SafetyError

ATTACKS = {
    "absolute": "/etc/passwd",
    "absolute, Windows": "\\Windows\\win.ini",
    "parent": "../secret.png",
    "parent inside": "images/../../secret.png",
    "parent, Windows": "images\\..\\..\\secret.png",
    "parent at the end": "images/..",
    "parent with a blank, as Windows reads it": ".. /secret.png",
    "drive": "C:\\secret.png",
    "drive without separator": "C:secret.png",
    "drive further down": "images/c:/secret.png",
    "UNC": "\\\\server\\share\\x.png",
    "UNC with slashes": "//server/share/x.png",
    "device": "\\\\?\\C:\\x.png",
    "NUL": "images/0.png\0.jpg",
    "http": "http://169.254.169.254/latest/meta-data",
    "https": "https://example.com/x.png",
    "file": "file:///etc/passwd",
    "Hub": "hf://datasets/a/b/x.png",
    "chained": "zip://x.png::/etc/x.zip",
    "data URL": "data:image/png;base64,AAAA",
    "surrogate": "images/\ud800.png",
}


@pytest.mark.parametrize("name", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SafetyError) as caught:
        safe_join(tmp_path, name, "train.jsonl:17")
    assert caught.value.exit_code == 10
    assert caught.value.where == "train.jsonl:17"
    assert caught.value.fix
    str(caught.value).encode()  # whatever the name holds, the message can be printed


@pytest.mark.parametrize("name", ["", ".", "./", "/".join("...")])
def test_names_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(LockadaptError):
        safe_join(tmp_path, name, "row 1")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("0.png", "0.png"),
        ("images/0.png", "images/0.png"),
        ("./images//0.png", "images/0.png"),
        ("images\\0.png", "images/0.png"),
        ("a..b/..0.png", "a..b/..0.png"),
        ("später/№ 1.png", "später/№ 1.png"),
    ],
)
def test_honest_names(tmp_path: Path, name: str, inside: str) -> None:
    assert safe_join(tmp_path, name, "row 1") == tmp_path.resolve() / inside


def test_symlinks(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "images").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"x")
    (root / "images" / "0.png").write_bytes(b"x")
    (root / "file.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "dangling.png").symlink_to(outside / "later.png")
    (root / "inside.png").symlink_to(root / "images" / "0.png")
    for name in ("file.png", "folder/secret.png", "folder/absent.png", "dangling.png"):
        with pytest.raises(SafetyError, match="symlink"):
            safe_join(root, name, "row 1")
    # One file has one path, whichever name led to it; a root that is itself a symlink is fine.
    (tmp_path / "alias").symlink_to(root)
    alias = DataRoot(tmp_path / "alias")
    assert (
        alias.join("inside.png", "row 1") == alias.join("images/0.png", "row 2") == root / "images" / "0.png"
    )


def test_a_sibling_with_the_same_start_is_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data-private").mkdir()
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data-private")
    with pytest.raises(SafetyError):
        safe_join(tmp_path / "data", "up/x.png", "row 1")


@given(st.text() | st.text(alphabet="./\\:C ~\0a"))
@example("a/.. /b")
@example("a" * 5000)
def test_never_outside(name: str) -> None:
    root = Path("/nowhere/at/all")
    try:
        path = safe_join(root, name, "row 1")
    except (SafetyError, DataError):
        return
    assert path.is_relative_to(root)
    assert path != root
    assert ".." not in path.parts


@pytest.mark.parametrize("name", ["x.pkl", "x.PT", "x.pth", "x.bin", "x.npy", "x.npz", "x.pkl.gz", "x.ckpt"])
def test_pickle_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(SafetyError, match="pickle") as caught:
        refuse_pickle(tmp_path / name)
    assert caught.value.exit_code == 10
    assert name in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_by_content(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(pickle.dumps([1], protocol=protocol))
    with pytest.raises(SafetyError, match="pickle"):
        refuse_pickle(file)


def test_numpy_by_content_and_names_that_only_look_alike(tmp_path: Path) -> None:
    with (tmp_path / "rows.json").open("wb") as file:
        np.save(file, np.zeros(2))
    with pytest.raises(SafetyError):
        refuse_pickle(tmp_path / "rows.json")
    (tmp_path / "captions.pt.jsonl").write_text("{}")  # Portuguese, not PyTorch
    refuse_pickle(tmp_path / "captions.pt.jsonl")
