"""A resumed run is the run that nothing interrupted: every file of its folder but for times."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.data.claims import Claims
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import LOCK, train
from lockadapt.training.progress import forget_after, read_metrics
from tests.support.interruption import interrupted
from tests.support.rows import embedding_recipe
from tests.support.runs import values
from tests.support.timeless import contents

QUIET = Reporter(quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vqa", "stages", "mixed"])
def test_a_resumed_folder_is_the_uninterrupted_one(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = embedding_recipe(tiny, tmp_path, "llama") if kind == "mixed" else values(tiny, tmp_path)
    training = {"steps": 9, "save_every": 2, "log_every": 5, "batch_size": 2}
    given["training"] = {**given["training"], **training}
    if kind == "vqa":
        rows = given["objectives"]["vqa"]
        rows["validation"] = rows["train"]
        given["training"] |= {"validate_every": 2, "patience": 8}
    if kind == "stages":
        given["stages"] = [
            {"name": "first", "train": ["projector"], "steps": 3},
            {"name": "second", "train": ["projector", "lora"], "steps": 9},
        ]
    recipe = load_recipe(None, (), given).recipe
    train(recipe, tmp_path / "whole", QUIET)
    interrupted(recipe, tmp_path / "other", 7, monkeypatch)
    torn = tmp_path / "other" / "metrics.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"stage": "tr')
    train(recipe, tmp_path / "other", QUIET, resume=True)
    whole, other = contents(tmp_path / "whole"), contents(tmp_path / "other")
    assert list(whole) == list(other)
    assert [name for name in whole if whole[name] != other[name]] == []
    targets = json.loads((tmp_path / "other" / "adapter" / "adapter_config.json").read_text())[
        "target_modules"
    ]
    assert targets == sorted(targets)


def test_another_recipe_says_which_keys_differ(tiny: Path, tmp_path: Path) -> None:
    given = values(tiny, tmp_path)
    recipe = load_recipe(None, (), given).recipe
    train(load_recipe(None, ("training.steps=5",), given).recipe, tmp_path / "run", QUIET)
    changed = load_recipe(None, ("training.seed=7", "lora.rank=8"), given).recipe
    with pytest.raises(RecipeError, match="training.seed was 0, is 7") as error:
        train(changed, tmp_path / "run", QUIET, resume=True)
    assert "lora.rank was 4, is 8" in error.value.message
    assert "steps" not in error.value.message
    assert recipe.training.steps == 5


def _hold(path: Path, ready: Any, done: Any) -> None:
    with Claims(path) as claims:
        claims.take(0)
        ready.set()
        done.wait()


def test_two_trainings_in_one_folder_are_refused(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(None, (), values(tiny, tmp_path)).recipe
    train(recipe, tmp_path / "run", QUIET)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run" / LOCK, ready, done))
    other.start()
    try:
        ready.wait()
        with pytest.raises(RecipeError, match="another process is training"):
            train(recipe, tmp_path / "run", QUIET, resume=True)
    finally:
        done.set()
        other.join()
    shutil.rmtree(tmp_path / "run" / "processor")
    train(recipe, tmp_path / "run", QUIET, resume=True)


def test_a_torn_last_line_of_metrics_is_left_out_and_others_are_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [{"stage": "a", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(whole + '{"stage": "a", "st')
    assert read_metrics(file) == lines
    forget_after(file, "a", tmp_path / "checkpoint-2")
    assert read_metrics(file) == lines[:2]
    assert list(tmp_path.iterdir()) == [file]
    file.write_text("[]\n" + whole)
    with pytest.raises(VerificationError, match="no line of metrics") as error:
        forget_after(file, "a", None)
    assert error.value.where == f"{file}:1"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["one value of the base", "a row", "nothing"])
def test_what_an_interrupted_run_began_with_is_compared(
    change: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: a resumed run went on with another base, or other rows, and said nothing."""
    given = values(tiny, tmp_path)
    given["training"] = {**given["training"], "steps": 6, "save_every": 2}
    recipe = load_recipe(None, (), given).recipe
    interrupted(recipe, tmp_path / "run", 3, monkeypatch)
    if change == "a row":
        rows = tmp_path / "rows.jsonl"
        rows.write_text(rows.read_text().replace("what color", "which color", 1))
    elif change != "nothing":
        weights = tmp_path / "run" / "base" / "model.safetensors"
        tensors = load_file(weights)
        name = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
        tensors[name][7, 11] += 1e-4
        save_file(tensors, weights, {"format": "pt"})
    else:
        train(recipe, tmp_path / "run", QUIET, resume=True)
        return
    words = "the rows of vqa" if change == "a row" else r"up_proj\S* changed"
    with pytest.raises(VerificationError, match=words):
        train(recipe, tmp_path / "run", QUIET, resume=True)
