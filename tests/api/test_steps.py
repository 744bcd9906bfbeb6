"""The steps of a run from Python: text for paths, no reporter, results as objects, and the command line's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lockadapt
from lockadapt.errors import RecipeError
from tests.support.command import lockadapt as command
from tests.support.runs import recipe_file, values


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> lockadapt.TrainResult:
    folder = tmp_path_factory.mktemp("api")
    return lockadapt.train(values(tiny, folder), output=str(folder / "run"), quiet=True)


def test_training_takes_a_file_values_or_a_checked_recipe(
    run: lockadapt.TrainResult, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (run.steps, run.locked, run.output.name) == (5, True, "run")
    file = recipe_file(tmp_path, values(tiny, tmp_path))
    first = lockadapt.train(str(file), output=tmp_path / "one", overrides=["training.steps=2"], quiet=True)
    assert capfd.readouterr().err == ""
    checked = lockadapt.load_recipe(file, overrides=["training.steps=2", f"output={tmp_path / 'two'}"])
    two = lockadapt.train(checked)
    assert "lock proof" in capfd.readouterr().err
    assert (first.steps, two.steps, two.output) == (2, 2, tmp_path / "two")
    weights = [first.output / "projector.safetensors", two.output / "projector.safetensors"]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = lockadapt.train(checked, overrides=["training.steps=2"], resume=True, quiet=True)
    assert again.output == two.output
    with pytest.raises(RecipeError, match="add output=FOLDER"):
        lockadapt.train(file)


def test_notices_of_former_keys_are_told(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = values(tiny, tmp_path, data={"row_tokens": 64})
    lockadapt.train(recipe, output=tmp_path / "run", overrides=["training.steps=1"])
    assert "note: values: data.row_tokens is now called data.max_row_tokens" in capfd.readouterr().err


def test_a_run_is_evaluated_by_its_folder_or_as_it_is_loaded(
    run: lockadapt.TrainResult, tmp_path: Path
) -> None:
    by_folder = lockadapt.evaluate(str(run.output), predictions=str(tmp_path / "rows.jsonl"), quiet=True)
    loaded = lockadapt.load_run(str(run.output))
    assert lockadapt.evaluate(loaded, quiet=True) == by_folder
    assert lockadapt.evaluate(loaded.run, quiet=True) == by_folder
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == by_folder.scores["vqa"]["n"] == 8
    fewer = lockadapt.evaluate(loaded, overrides=["evaluation.samples=3"], quiet=True)
    assert fewer.scores["vqa"]["n"] == 3
    for override in ("model.llm=other", "lora.rank=2", "training.steps=9"):
        with pytest.raises(RecipeError, match="changes nothing here"):
            lockadapt.evaluate(loaded, overrides=[override], quiet=True)
    printed = command("eval", run.output, "--json").stdout
    assert printed == json.dumps(by_folder.to_json()) + "\n"


def test_a_run_is_merged_verified_and_exported(
    run: lockadapt.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.output.parent)
    merged = lockadapt.merge("run", str(tmp_path / "merged"), quiet=True)
    assert merged.model_class == "LlavaForConditionalGeneration"
    assert merged.max_abs_logit_diff < 1e-3
    assert merged.output == tmp_path / "merged"
    kept = json.loads((merged.output / "merge.json").read_text())
    assert merged.to_json() == {"output": str(merged.output), **kept}
    alone = lockadapt.verify(str(merged.output), quiet=True)
    assert alone.max_abs_logit_diff is None
    assert alone.image_effect is not None
    against = lockadapt.verify(merged.output, against="run", quiet=True)
    assert against.max_abs_logit_diff == merged.max_abs_logit_diff
    printed = command("verify", merged.output, "--json", "--quiet").stdout
    assert printed == json.dumps(alone.to_json()) + "\n"

    opened = lockadapt.load_run("run")
    exported = lockadapt.export(opened, to="bridge", output=str(tmp_path / "bridge"), quiet=True)
    assert (exported.target, exported.output) == ("bridge", tmp_path / "bridge")
    assert list(exported.to_json())[:2] == ["target", "output"]
    with pytest.raises(RecipeError, match="there is no base 'best'"):
        lockadapt.merge(opened, tmp_path / "other", base="best")
    with pytest.raises(RecipeError, match="did you mean bridge"):
        lockadapt.export("run", to="brigde", output=tmp_path / "other")


def test_adapters_are_stacked(run: lockadapt.TrainResult, tmp_path: Path) -> None:
    base = run.output / "base"
    stacked = lockadapt.merge(base, tmp_path / "stack", adapters=[f"{run.output}:0.5"], quiet=True)
    assert stacked.max_abs_logit_diff < 1e-3
    assert stacked.output.is_dir()


def test_json_of_training_is_that_of_the_command_line(tiny: Path, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, values(tiny, tmp_path))
    done = command("train", file, "training.steps=1", "-o", tmp_path / "run", "--json", "--quiet")
    printed = json.loads(done.stdout)
    assert list(printed) == ["output", "steps", "seconds", "samples_per_second", "locked"]
    assert (printed["output"], printed["steps"]) == (str(tmp_path / "run"), 1)
    assert printed == lockadapt.TrainResult(tmp_path / "run", **_without_output(printed)).to_json()


def _without_output(printed: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in printed.items() if key != "output"}
