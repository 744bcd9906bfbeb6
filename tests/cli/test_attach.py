"""`lockadapt attach --check`: findings on stdout, exit codes by kind, nothing changed on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lockadapt.architectures.assemble import assemble
from lockadapt.console import Reporter
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.command import lockadapt
from tests.support.runs import values
from tests.support.tiny import tiny_llm


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attach")
    train(load_recipe(None, (), values(tiny, folder)).recipe, folder / "run", Reporter(quiet=True))
    return folder / "run"


def test_fits(run: Path) -> None:
    done = lockadapt("attach", run / "base", run, "--check")
    assert (done.returncode, done.stdout) == (0, "fits\n"), done.stderr
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = lockadapt("attach", run / "base", run, "--check", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "fits": True,
        "model_class": "LlavaForConditionalGeneration",
        **{key: [] for key in ("class", "base", "tokenizer", "tensors", "not_compared")},
    }
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_does_not_fit(run: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assemble(
        tiny_llm("llama", tmp_path / "llm", seed=3), tiny / "clip-vision", other, dtype="float32", prove=False
    )
    done = lockadapt("attach", other, run, "--check", "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    assert report["fits"] is False
    assert report["base"] == ["head has other weights", "llm has other weights"]
    assert report["tensors"] == []
    assert "this is not the adapter's base" in done.stderr
    done = lockadapt("attach", other, run, "--check", "--force-base")
    assert done.returncode == 0
    assert done.stdout == "fits\n  base: head has other weights\n  base: llm has other weights\n"

    wrong = tmp_path / "wrong"
    assemble(tiny / "llama", tiny / "mobilenet-v2", wrong, dtype="float32", prove=False)
    done = lockadapt("attach", wrong, run, "--check", "--json", "--force-base")
    assert done.returncode == 2
    assert json.loads(done.stdout)["class"] == [
        "the adapter was trained on LlavaForConditionalGeneration, the model is FastVlmForConditionalGeneration"
    ]

    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("base"))
    tensors = load_file(broken / "projector.safetensors")
    lost, _ = tensors.popitem()
    save_file(tensors, broken / "projector.safetensors")
    done = lockadapt("attach", run / "base", broken, "--check", "--json", "--force-base")
    assert (done.returncode, done.stdout) == (8, "")
    assert "is not what this run wrote" in done.stderr
    record = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**record, "artifacts": None}))  # as older versions wrote it
    done = lockadapt("attach", run / "base", broken, "--check", "--json", "--force-base")
    assert done.returncode == 8
    assert lost in json.loads(done.stdout)["tensors"][0]


def test_usage(run: Path, tmp_path: Path) -> None:
    assert lockadapt("attach", run / "base", run).returncode == 2
    assert lockadapt("attach", run / "base", tmp_path, "--check").returncode == 2
    done = lockadapt("attach", run / "base", tmp_path / "nowhere", "--check", "--json")
    assert (done.returncode, done.stdout) == (4, "")
