"""A run that mixes sources: the same in memory, on disk and resumed; record and `check` say what each gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.files import sha256_of
from lockadapt.planning.check import check_recipe
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from tests.support.interruption import QUIET, interrupted
from tests.support.runs import values


def weights(folder: Path) -> str:
    return sha256_of(folder / "checkpoints" / "train" / "finished" / "trainable.safetensors")


def made(tiny: Path, folder: Path, *overrides: str, **first: Any) -> Recipe:
    """Two sources: the rows of the file, and three questions of its own."""
    given = values(tiny, folder)
    source = given["objectives"]["vqa"]["train"]
    lines = Path(source["path"]).read_text().splitlines()
    other = folder / "other.jsonl"
    changed = [{**json.loads(line), "question": "which color?"} for line in lines[:3]]
    other.write_text("".join(json.dumps(row) + "\n" for row in changed))
    given["objectives"]["vqa"]["train"] = [{**source, **first}, {**source, "path": str(other), **first}]
    given["training"] |= {"steps": 6, "save_every": 2, "log_every": 1}
    given["data"] = {"cache": str(folder / "cache")}
    return load_recipe(None, overrides, given).recipe


@pytest.mark.parametrize("rows", ["memory", "disk"])
def test_resumed_the_weights_are_the_same(
    rows: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(
        tiny, tmp_path, f"data.rows={rows}", "objectives.vqa.train.1.weight=3.0", weight=1.0, shuffle=True
    )
    train(recipe, tmp_path / "whole", QUIET)
    interrupted(recipe, tmp_path / "resumed", 3, monkeypatch)
    train(recipe, tmp_path / "resumed", QUIET, resume=True)
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    even = made(tiny, tmp_path, f"data.rows={rows}", weight=1.0)
    train(even, tmp_path / "even", QUIET)
    assert weights(tmp_path / "even") != weights(tmp_path / "whole")
    recorded = read_record(tmp_path / "whole").rows
    assert recorded is not None
    sections = recipe.objectives["vqa"].sources("train")
    assert [(s.path, s.share) for s in recorded["vqa"]] == [
        (sections[0].path, 0.25),
        (sections[1].path, 0.75),
    ]
    assert [s.rows for s in recorded["vqa"]] == [8, 3]


def test_check_counts_the_rows_of_each(tiny: Path, tmp_path: Path) -> None:
    recipe = made(tiny, tmp_path, "objectives.vqa.train.0.limit=5")
    checked = check_recipe(recipe, Reporter(quiet=True))["objectives"]["vqa"]["train"]
    assert checked["rows"] == 8
    assert [(s["rows"], s["share"]) for s in checked["sources"]] == [(5, 0.625), (3, 0.375)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objectives.vqa.train.0.weight=1.0"], "train.1.weight: give all sources"),
        (["objectives.vqa.train.0.weight=0.0"], "train.0.weight=0.0': should be at least"),
        (["objectives.vqa.train.0.weight=-1.0"], "should be at least 1e-09"),
        (["objectives.vqa.train.0.weight=.nan"], "should be a finite number"),
        (["objectives.vqa.train=[]"], "should not be empty"),
        (["objectives.vqa.train.weight=1.0"], "objectives.vqa.train is a list"),
        (
            ["objectives.vqa.validation={format: jsonl, path: a, weight: 1.0}"],
            "says how training rows are drawn",
        ),
        (["objectives.vqa.validation={format: jsonl, path: a, shuffle: true}"], "says how training rows"),
        (
            ["objectives.vqa.train.0.shuffle=false", "stages=[{name: a, method: grpo, rewards: {vqa: {}}}]"],
            "draws all rows alike",
        ),
    ],
)
def test_bad_weights_are_errors(overrides: list[str], expected: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=expected):
        made(tiny, tmp_path, *overrides)


def test_one_source_has_nothing_to_weigh_against(tiny: Path, tmp_path: Path) -> None:
    given = values(tiny, tmp_path)
    given["objectives"]["vqa"]["train"] |= {"weight": 1.0}
    with pytest.raises(RecipeError, match="vqa.train.weight: weighs sources against others"):
        load_recipe(None, (), given)
