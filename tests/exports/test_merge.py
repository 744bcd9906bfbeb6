"""A run is written, evaluated, merged and proved; a merge that differs fails and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, RecipeError, VerificationError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.exports.merge import merge_run
from lockadapt.exports.proofs.merged_folder import compare_logits
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import load_run
from lockadapt.training.loop import train
from tests.support.runs import values

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module", params=["none", "nf4"])
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = values(tiny, folder)
    recipe["model"]["quantization"] = request.param
    train(load_recipe(None, (), recipe).recipe, folder / "run", QUIET)
    return folder / "run"


def test_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "adapter",
        "projector.safetensors",
    } <= names
    assert {"processor", "base", "README.md", "probe"} <= names
    facts = json.loads((run / "run.json").read_text())
    assert facts["locked"] is True
    assert facts["stages"][0]["locked"] > 30
    assert facts["versions"]["transformers"]
    assert len(facts["base_fingerprint"]) == 64
    keys = set(load_file(run / "adapter" / "adapter_model.safetensors"))
    assert all(".language_model.layers." in key and ".lora_" in key for key in keys)
    assert not list(run.rglob("*.bin")) + list(run.rglob("*.pt")) + list(run.rglob("*.pth"))


@pytest.mark.slow
@pytest.mark.cold
def test_merge_is_proved_and_scores_the_same(run: Path, tmp_path: Path) -> None:
    before = evaluate_folder(run, None, (), False, None, QUIET)
    result = merge_run(run, tmp_path / "merged", QUIET)
    assert result["max_abs_logit_diff"] < 1e-4
    assert result["top1_agreement"] == 1.0
    assert result["kl"] < 1e-8
    assert result["missing_keys"] == result["unexpected_keys"] == []
    assert result["prompts_equal"] is True
    assert result["answers_equal"] == result["answers"] > 3
    for path in (tmp_path / "merged").iterdir():
        assert path.stat().st_mode & 0o044 == 0o044 & ~_umask(), path.name
    assert not any("lora" in key for key in load_file(tmp_path / "merged" / "model.safetensors"))
    after = evaluate_folder(tmp_path / "merged", None, (), False, None, QUIET)
    assert before == after


@pytest.mark.slow
def test_a_wrong_merge_fails_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are written wrong behind the proof's back: the fresh process must see it."""
    from lockadapt.exports.weights.changes import LowRank

    apply = LowRank.apply

    def wrong(self: LowRank, matrix: torch.Tensor, first: int) -> None:
        apply(self, matrix, first)
        matrix *= 1.05

    monkeypatch.setattr(LowRank, "apply", wrong)
    with pytest.raises(VerificationError, match="not the trained model") as error:
        merge_run(run, tmp_path / "merged", QUIET)
    assert error.value.exit_code == 8
    assert list(tmp_path.iterdir()) == []


def forget_digests(folder: Path) -> None:
    """As runs of older versions are, whose record says nothing of their files."""
    file = folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "artifacts": None}))


def test_a_foreign_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)
    with pytest.raises(VerificationError, match="is not what this run wrote"):
        load_run(copy)
    forget_digests(copy)
    with pytest.raises(VerificationError, match="missing"):
        load_run(copy)


def test_a_lost_projector_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "projector.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)
    with pytest.raises(VerificationError, match="is not what this run wrote"):
        load_run(copy)
    forget_digests(copy)
    with pytest.raises(VerificationError, match="do not match"):
        load_run(copy)


def test_no_run_no_merge(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no run folder"):
        merge_run(tmp_path, tmp_path / "out", QUIET)


def test_a_full_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(LockadaptError, match="would overwrite"):
        merge_run(run, tmp_path, QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_numbers_of_a_comparison() -> None:
    first = {"a": torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])}
    second = {"a": torch.tensor([[[0.0, 1.0], [0.0, 2.0]]])}
    same, other = compare_logits(first, first), compare_logits(first, second)
    assert same == {
        "max_abs_logit_diff": 0.0,
        "kl": 0.0,
        "top1_agreement": 1.0,
        "decided_agreement": 1.0,
    }
    p = torch.tensor([2.0, 0.0]).double().softmax(-1)
    q = torch.tensor([0.0, 2.0]).double().softmax(-1)
    assert other["max_abs_logit_diff"] == 2.0
    assert other["top1_agreement"] == 0.5
    assert other["kl"] == pytest.approx(float((p * (p / q).log()).sum()) / 2)


@pytest.mark.slow
def test_interrupted_run_goes_on_to_the_same_end(tiny: Path, tmp_path: Path) -> None:
    """Two stages; the first process stops in the second stage, `resume` finishes it: same adapter, bit for bit."""
    recipe = values(
        tiny,
        tmp_path,
        stages=[{"name": "align", "train": ["projector"], "steps": 3}, {"name": "instruct", "steps": 6}],
    )
    recipe["training"] = {
        "batch_size": 4,
        "save_every": 2,
        "learning_rate": 1e-2,
        "projector_learning_rate": 1e-2,
        "log_every": 1,
    }
    loaded = load_recipe(None, (), recipe).recipe
    train(loaded, tmp_path / "whole", QUIET)
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from transformers import TrainerCallback\n"
        "import lockadapt.training.progress as progress\n"
        "from lockadapt.recipe.read import load_recipe\n"
        "from lockadapt.training.loop import train\n"
        "import torch; torch.set_num_threads(1)\n"
        "import os\n"
        "class Stop(progress.ProgressCallback):\n"
        "    def on_step_end(self, args, state, control, **kw):\n"
        "        if self.stage == 'instruct' and state.global_step == 5: os._exit(9)\n"
        "import lockadapt.training.stage as stage\n"
        "stage.ProgressCallback = Stop\n"
        "train(load_recipe(None, (), json.loads(sys.argv[1])).recipe, sys.argv[2], progress.Reporter(True))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, json.dumps(recipe), str(tmp_path / "part")], check=False
    )
    assert killed.returncode == 9
    with pytest.raises(RecipeError, match="not empty"):
        train(loaded, tmp_path / "part", QUIET)
    train(loaded, tmp_path / "part", QUIET, resume=True)
    for name in ("adapter/adapter_model.safetensors", "projector.safetensors"):
        first, second = load_file(tmp_path / "whole" / name), load_file(tmp_path / "part" / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), key
    curves = [
        [
            (e["stage"], e["step"], e["loss"])
            for e in map(json.loads, (tmp_path / p / "metrics.jsonl").read_text().splitlines())
            if "loss" in e
        ]
        for p in ("whole", "part")
    ]
    assert curves[0] == curves[1]
    with pytest.raises(RecipeError, match="differs from the recipe"):
        train(load_recipe(None, ("training.seed=1",), recipe).recipe, tmp_path / "part", QUIET, resume=True)


def test_blind_run_shows_one_picture(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path, blind=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    assert (tmp_path / "run" / "mean_image.png").is_file()
    predictions = tmp_path / "answers.jsonl"
    evaluate_folder(tmp_path / "run", None, (), False, predictions, QUIET)
    colours = {
        row["answer"]
        for row in map(json.loads, predictions.read_text().splitlines())
        if "color" in row["question"]
    }
    assert len(colours) == 1
    assert "blind" in json.loads((tmp_path / "run" / "evaluation.json").read_text())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.slow
@pytest.mark.parametrize("run", ["none"], indirect=True)
def test_a_killed_merge_leaves_nothing_or_everything(run: Path, tmp_path: Path) -> None:
    """The whole command; more kills of the writing alone are in streaming/test_killed.py."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing_merges.py")), str(run), str(tmp_path), "5"],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["absent"] + outcomes["complete"] >= 5
    assert outcomes["abandoned"] > 0
