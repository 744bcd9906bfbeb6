"""Adapters stacked on a base, taken out again, and both ways to merge a quantized run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, RecipeError, VerificationError
from lockadapt.evaluation.target import open_target
from lockadapt.exports.merge_command import MergeRequest, merge_command, text_of
from lockadapt.exports.stack import parse_adapter
from lockadapt.exports.unmerge import unmerge
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.adapters import read_all
from tests.support.runs import values

QUIET = Reporter(quiet=True)
PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on one base."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = values(tiny, folder)
    train(load_recipe(None, (), recipe).recipe, folder / "one", QUIET)
    recipe["model"] = {"vlm": str(folder / "one" / "base"), "dtype": "float32"}
    recipe["training"] = {**recipe["training"], "seed": 5}
    recipe["lora"] = {"rank": 3}
    train(load_recipe(None, (), recipe).recipe, folder / "two", QUIET)
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def nf4(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nf4")
    recipe = values(tiny, folder)
    recipe["model"]["quantization"] = "nf4"
    train(load_recipe(None, (), recipe).recipe, folder / "run", QUIET)
    return folder / "run"


@pytest.mark.slow
def test_runs_are_stacked_with_weights_and_taken_out_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, two = runs
    base = str(first / "base")
    adapters = [f"{first}:0.7", f"{two}:0.3"]
    result = merge_command(MergeRequest(base, tmp_path / "both", adapters), QUIET)
    assert result["max_abs_logit_diff"] < 1e-4
    assert result["missing_keys"] == result["unexpected_keys"] == []
    stored, mixed = read_all(first / "base"), read_all(tmp_path / "both")
    trained = [_projector(run) for run in runs]
    wanted = (
        stored[PROJECTOR] + 0.7 * (trained[0] - stored[PROJECTOR]) + 0.3 * (trained[1] - stored[PROJECTOR])
    )
    assert torch.allclose(mixed[PROJECTOR], wanted, atol=1e-6)
    assert not torch.allclose(mixed[PROJECTOR], stored[PROJECTOR], atol=1e-4)
    assert open_target(tmp_path / "both").experiment is None

    stack = [parse_adapter(text) for text in adapters]
    report = unmerge(tmp_path / "both", stack, base, tmp_path / "back", QUIET)
    assert report["tensors"] == len(stored)
    assert report["identical"] > 0.2 * len(stored)
    assert report["max_abs_weight_diff"] < 1e-6
    assert report["max_roundings"] <= 4
    wrong = [parse_adapter(text) for text in (f"{first}:0.6", adapters[1])]
    with pytest.raises(VerificationError, match="did not come back") as error:
        unmerge(tmp_path / "both", wrong, base, tmp_path / "wrong", QUIET)
    assert error.value.where
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_both_bases_of_a_quantized_run_are_compared(nf4: Path, tmp_path: Path) -> None:
    report = merge_command(MergeRequest(str(nf4), None, compare=True, samples=4), QUIET)
    assert set(report) == {"unmerged", "dequantized", "original"}
    assert report["dequantized"]["kl"] < 1e-8
    assert report["original"]["kl"] > 100 * report["dequantized"]["kl"]
    assert report["original"]["max_abs_logit_diff"] > 100 * report["dequantized"]["max_abs_logit_diff"]
    assert all(entry["scores"]["vqa"]["n"] == 4 for entry in report.values())
    assert report["dequantized"]["scores"] == report["unmerged"]["scores"]
    lines = text_of(report).splitlines()
    assert [line.split()[0] for line in lines] == ["base", "unmerged", "dequantized", "original"]
    assert "vqa accuracy" in lines[0]


@pytest.mark.slow
def test_the_original_base_is_proved_too_and_says_how_far_it_is(nf4: Path, tmp_path: Path) -> None:
    result = merge_command(MergeRequest(str(nf4), tmp_path / "merged", base="original"), QUIET)
    assert result["max_abs_logit_diff"] < 1e-4
    assert result["from_trained"]["max_abs_logit_diff"] > 1e-3
    assert result["base"] == "original"
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["base"] == "original"
    # It knows which base it was merged on; without that it is another model than the one that was trained.
    assert verify_folder(tmp_path / "merged", nf4, QUIET)["max_abs_logit_diff"] < 1e-4
    (tmp_path / "merged" / "merge.json").unlink()
    with pytest.raises(VerificationError, match="not the trained model"):
        verify_folder(tmp_path / "merged", nf4, QUIET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": "quantized"}, "no base 'quantized'"),
        ({"output": None}, "is missing"),
        ({"compare": True}, "writes nothing"),
        ({"samples": 3}, "counts what --compare scores"),
        ({"adapters": ["x"]}, "has its own adapter"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any], message: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"output": tmp_path / "out"}
    with pytest.raises(RecipeError, match=message):
        merge_command(MergeRequest(str(runs[0]), **{**usual, **given}), QUIET)
    assert list(tmp_path.iterdir()) == []


def test_adapters_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a:1").mkdir()
    assert parse_adapter(str(tmp_path / "a:1")).weight == 1.0
    assert parse_adapter(f"{tmp_path / 'a:1'}:-0.25").weight == -0.25
    for text in ("a:b", "nowhere", f"{tmp_path}:0", f"{tmp_path}:nan"):
        with pytest.raises(LockadaptError) as error:
            parse_adapter(text)
        assert error.value.where == f"--adapter {text}"


def _projector(run: Path) -> torch.Tensor:
    return read_all_parts(run)[f"model.{PROJECTOR}"]


def read_all_parts(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    assert json.loads((run / "run.json").read_text())["quantization"] == "none"
    return load_file(run / "projector.safetensors")
