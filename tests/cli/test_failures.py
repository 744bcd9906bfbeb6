"""How commands end that did not go well: what is said of interrupts, memory, disks and odd arguments, and how it is printed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lockadapt.cli import told_to_users
from lockadapt.console import Reporter, emit, printable
from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, DiskError, DoesNotFitError, RecipeError, SetupError
from lockadapt.files import disk_errors, new_folder, write_tensors
from lockadapt.objectives.image_generation import ImageGenerationConfig
from lockadapt.planning.plan import parse_size
from lockadapt.recipe.read import load_recipe
from tests.support.command import lockadapt
from tests.support.runs import RECIPE_TEXT

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202egnp.exe\ud800\x7f"


def clean(text: str) -> bool:
    """Whether nothing in a text could act on a terminal."""
    return all(c.isprintable() or c in "\n\t" for c in text)


@pytest.mark.parametrize(
    "character", [*map(chr, range(32)), "\x7f", "\x85", "\x9b", "\u202e", "\u2066", "\ud800"]
)
def test_control_characters_are_written_out(character: str) -> None:
    shown = printable(f"a{character}b")
    assert shown == f"a{character}b" if character in "\n\t" else clean(shown)
    assert shown.startswith("a")
    assert shown.endswith("b")


def test_text_of_any_script_is_left_alone() -> None:
    text = "Ünïcödé 图片 👩\u200d👧 e\u0301\tאדום\n"
    assert printable(text) == text


def test_everything_that_is_printed_goes_through_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ESCAPES)
    emit(ESCAPES, error=True)
    Reporter().note(ESCAPES)
    shown = capsys.readouterr()
    assert clean(shown.out)
    assert clean(shown.err)
    assert "\\x1b[31mred" in shown.out
    assert shown.err.count("\\u202egnp.exe") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{bad}.yaml", "-o", "out"],
        ["train", "recipe.yaml", "lo\x1b[31mra.rank=3", "-o", "out"],
        ["train", "recipe.yaml", "output=\x1b[31m", "objectives.vqa.train.path=\x1b[31m", "-o", "out"],
        ["\x1b[31m"],
        ["train", "recipe.yaml", "-o", "out", "--\x1b[31m"],
        ["plan", "recipe.yaml", "--memory", "\x1b[31m"],
        ["eval", "{bad}"],
        ["merge", "{bad}", "-o", "out"],
        ["check", "keys.yaml"],
    ],
)
def test_names_with_escapes_reach_no_terminal(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE_TEXT)
    (tmp_path / "keys.yaml").write_text(RECIPE_TEXT + '"a\\e[31m\\nb": 3\n')
    done = lockadapt(*[argument.replace("{bad}", "a\x1b[31m\nb") for argument in arguments], cwd=tmp_path)
    assert done.returncode != 0
    assert "\\x1b[31m" in done.stderr
    assert clean(done.stderr + done.stdout)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("can't start new thread"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has …"),
        ImportError("\nIMPORTANT: PLEASE READ THIS FOR ADVICE\nlibopenblas.so: failed to map segment"),
    ],
)
def test_memory_that_runs_out_is_exit_5_with_a_reason(error: Exception) -> None:
    told = told_to_users(error)
    assert told is not None
    assert told.exit_code == 5
    assert not told.message.endswith(": ")
    assert "IMPORTANT" not in told.message
    try:
        raise SetupError("the LLM cannot be loaded", where="llm") from error
    except SetupError as wrapped:
        within = told_to_users(wrapped)
    assert isinstance(within, DoesNotFitError)
    assert within.where == "llm"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
)
def test_a_full_disk_is_exit_7_whoever_meets_it(error: Exception, tmp_path: Path) -> None:
    told = told_to_users(error)
    assert isinstance(told, DiskError)
    for block in (disk_errors(tmp_path), new_folder(tmp_path / "new", what="this")):
        with pytest.raises(DiskError, match="full"), block:
            raise error
    assert not (tmp_path / "new").exists()


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    """Red before: safetensors raises an error of its own, which ended in a traceback."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = {"a": torch.zeros(100_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(SafetensorError):
            save_file(tensors, tmp_path / "a")
        with pytest.raises(DiskError, match="full"):
            write_tensors(tmp_path / "a", tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_bug_keeps_its_traceback() -> None:
    assert told_to_users(ValueError("a bug")) is None
    error = DataError("the answer is 'no space left on device, out of memory'", where="rows:1")
    assert told_to_users(error) is error


def test_an_image_without_memory_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    from PIL import Image

    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(picture, "load", full)
    with pytest.raises(MemoryError):
        open_image(ImageRef("a", picture=picture), 100)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """Red before: Typer ended silently."""
    script = (
        "import os, signal\n"
        # Whoever starts the tests may have them ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import lockadapt.recipe.read as read\n"
        "read.load_recipe = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(30)\n"
        "from lockadapt.cli import main\n"
        "main()\n"
    )
    for arguments, words in (
        (["train", "r.yaml", "-o", "x"], "add --resume"),
        (["cache", "r.yaml"], "not done again"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 130
        assert "interrupted" in done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_arguments_that_are_no_text() -> None:
    done = lockadapt("train", os.fsdecode(b"r\xff.yaml"), "-o", "out")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr
    assert clean(done.stderr)


@pytest.mark.parametrize(
    "bad",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -0.5},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
    ],
)
def test_image_generation_has_bounds(bad: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(bad))):
        ImageGenerationConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "0GB", "99999999999GB"])
def test_memory_has_bounds(text: str) -> None:
    with pytest.raises(RecipeError, match="--memory"):
        parse_size(text)


@pytest.mark.parametrize(
    "override",
    [
        "lora.rank=1000000",
        "lora.alpha=1e300",
        "training.batch_size=1000000",
        "training.accumulation=1000000",
        "training.epochs=1e308",
        "data.workers=100000",
        "data.feature_memory_gib=1e308",
        "data.feature_disk_gib=1e308",
        "data.max_row_tokens=900000000",
        "model.image_size=1000000",
        "objectives.vqa.sampling_weight=1e308",
        "objectives.vqa.sampling_weight=1e-308",
        "objectives.vqa.weight=1e308",
        "objectives.vqa.max_new_tokens=900000000",
        "stages.0.sampling_weights={vqa: 1e308}",
        "stages.0.batch_size=1000000",
        "objectives.vqa.train.image_name='{}{x}.png'",
        "objectives.vqa.train.image_name='{:>9999999d}'",
        "objectives.vqa.train.image_name='{}{'",
        "objectives.vqa.train.image_name='{}.{id.real}'",
        "objectives.vqa.train.image_name='{split}/{}.png'",
    ],
)
def test_recipes_have_bounds(override: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE_TEXT)
    with pytest.raises(RecipeError, match=override.split("=")[0].replace(".", r"\.")):
        load_recipe(file, [override])
