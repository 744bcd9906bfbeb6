"""Whole runs from recipes: model keys, data keys, features, early stopping, stages, evaluation keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockadapt.architectures.assemble import Assembled
from lockadapt.building import model as building_model
from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import build_model
from lockadapt.console import Reporter
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.training.rows import Rows, encode_rows, image_policy, load_samples
from tests.support.rows import embedding_recipe
from tests.support.runs import rows_file, values

QUIET = Reporter(quiet=True)


def loaded(tiny: Path, folder: Path, *overrides: str, **changes: Any):
    return load_recipe(None, overrides, values(tiny, folder, **changes)).recipe


def test_an_existing_vlm_is_a_start(assembled: Assembled, tiny: Path, tmp_path: Path) -> None:
    recipe = loaded(tiny, tmp_path, f"model={{vlm: '{assembled.folder}', dtype: float32}}")
    train(recipe, tmp_path / "run", QUIET)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["base"] == str(assembled.folder)
    assert facts["stages"][0]["largest_batch_bytes"] > 100_000
    assert not (tmp_path / "run" / "base").exists()
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(assembled.folder)
    assert 0 <= evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)["vqa"]["accuracy"] <= 1


def test_model_keys_reach_the_assembly(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(*arguments: Any, **named: Any) -> Any:
        seen.update(named)
        raise KeyboardInterrupt

    monkeypatch.setattr(building_model, "assemble", noted)
    overrides = (
        "model.feature_layer=-1",
        "model.calibration_images=3",
        "model.dtype=bfloat16",
        "model.fusion=linear",
    )
    experiment = build_experiment(loaded(tiny, tmp_path, *overrides))
    samples = load_samples(experiment, QUIET)["train"]["vqa"]
    with pytest.raises(KeyboardInterrupt):
        build_model(experiment, tmp_path / "base", samples, QUIET)
    assert seen["feature_layer"] == -1
    assert len(seen["calibration_images"]) == 3
    answers: dict[str, list[str]] = {}
    for sample in samples:
        answers.setdefault(sample.images[0].key, []).append(sample.answer)
    step = len(answers) // 3
    assert seen["calibration_texts"] == list(answers.values())[::step][:3]
    assert seen["dtype"] == "bfloat16"
    assert seen["fusion_name"] == "linear"


def test_calibration_words_key(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(building_model, "assemble", lambda *arguments, **named: seen.update(named))
    experiment = build_experiment(loaded(tiny, tmp_path, "model.calibration_words=false"))
    samples = load_samples(experiment, QUIET)["train"]["vqa"]
    pictures, answers = building_model.calibration_images(experiment, samples)
    building_model.assemble_model(experiment, None, pictures, prove=False, answers=answers)
    assert seen["calibration_images"]
    assert seen["calibration_texts"] is None


def rows_of(recipe: Any, assembled: Assembled) -> Rows:
    experiment = build_experiment(recipe)
    samples = load_samples(experiment, QUIET)
    return encode_rows(
        experiment, assembled.model, assembled.processor, samples, image_policy(experiment, QUIET)
    )


def test_features_key(tiny: Path, assembled: Assembled, tmp_path: Path) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    kinds = {
        text: type(rows_of(loaded(tiny, tmp_path, *text.split(), cache), assembled).images["vqa"])
        for text in (
            "data.features=auto",
            "data.features=none",
            "data.features=auto data.feature_memory_gib=0.000001 data.feature_disk_gib=0.0",
            "data.features=auto data.feature_memory_gib=0.000001",
            "data.features=disk training.steps=1",
            "data.features=memory data.feature_memory_gib=0.000001",
            "data.features=auto training.steps=1",
        )
    }
    assert [kind.__name__ for kind in kinds.values()] == [
        *("FeatureInputs", "PixelInputs", "PixelInputs", "DiskFeatures", "DiskFeatures"),
        *("FeatureInputs", "PixelInputs"),
    ]


def test_data_keys(tiny: Path, assembled: Assembled, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample is left"):
        rows_of(loaded(tiny, tmp_path, "data.max_length=6"), assembled)
    recipe = loaded(tiny, tmp_path)
    rows = Path(recipe.objectives["vqa"].train.path)
    rows.write_text(rows.read_text() + '{"image": "gone.png", "question": "?", "answer": "no"}\n')

    def kept(*overrides: str) -> int:
        changed = load_recipe(None, overrides, recipe.model_dump(mode="json")).recipe
        return len(load_samples(build_experiment(changed), QUIET)["train"]["vqa"])

    with pytest.raises(DataError, match="rows.jsonl:9"):
        kept()
    with pytest.raises(DataError):
        kept("data.on_bad_image=skip", "data.max_bad_fraction=0.1")
    assert kept("data.on_bad_image=skip", "data.max_bad_fraction=0.5") == 8


def test_other_images_are_opened_when_they_are_drawn(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = loaded(tiny, tmp_path, "data.features=none", "training.batch_size=9")
    rows = Path(recipe.objectives["vqa"].train.path)
    rows.write_text(rows.read_text() + '{"image": "gone.png", "question": "?", "answer": "no"}\n')
    monkeypatch.setattr("lockadapt.training.rows.IMAGES_FIRST", 1)
    load_samples(build_experiment(recipe), QUIET)  # draws another one
    with pytest.raises(DataError, match="gone.png") as raised:
        train(recipe, tmp_path / "run", QUIET)
    assert raised.value.where == "rows.jsonl:9"


def test_control_tokens_in_rows_are_learned_only_where_the_recipe_allows_it(
    tiny: Path, assembled: Assembled, tmp_path: Path
) -> None:
    recipe = loaded(tiny, tmp_path)
    token = assembled.processor.tokenizer.eos_token
    rows = Path(recipe.objectives["vqa"].train.path)
    rows.write_text(
        json.dumps({"image": "red.png", "question": f"what color {token} is it?", "answer": "red"})
    )

    def ends(*overrides: str) -> int:
        changed = load_recipe(None, overrides, recipe.model_dump(mode="json")).recipe
        (row,) = rows_of(changed, assembled).train["vqa"]
        return int((row.input_ids == assembled.processor.tokenizer.eos_token_id).sum())

    assert ends("data.allow_special_tokens=true") == ends() + 1


def test_early_stopping(tiny: Path, tmp_path: Path) -> None:
    """Learning that everything is red, validation on the other colours gets worse, and the run ends early."""
    recipe = values(tiny, tmp_path)
    vqa = recipe["objectives"]["vqa"]
    lines = [json.loads(line) for line in rows_file(tmp_path).read_text().splitlines()]
    for name, kept in (("red", "red"), ("blue", "blue")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(x) + "\n" for x in lines if x["answer"] == kept)
        )
    vqa["validation"] = {**vqa["train"], "path": str(tmp_path / "blue.jsonl")}
    vqa["train"] = {**vqa["train"], "path": str(tmp_path / "red.jsonl")}
    recipe["training"] = {
        "steps": 60,
        "batch_size": 2,
        "learning_rate": 0.02,
        "projector_learning_rate": 0.02,
        "validate_every": 2,
        "patience": 2,
        "schedule": "constant",
    }
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["stages"][0]["steps"] < 60
    assert facts["stages"][0]["best_validation_loss"] is not None


def test_two_stages_lock_what_they_do_not_train(tiny: Path, tmp_path: Path) -> None:
    stages = [{"name": "align", "train": ["projector"]}, {"name": "adapt", "train": ["lora"]}]
    train(loaded(tiny, tmp_path, stages=stages), tmp_path / "run", QUIET)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    states = [{row["component"]: row["state"] for row in stage["components"]} for stage in facts["stages"]]
    assert states[0]["projector"] == "trained"
    assert states[0]["lora"] == "frozen"
    assert states[1]["projector"] == "frozen"
    assert states[1]["lora"] == "trained"
    assert facts["stages"][1]["locked"] == facts["stages"][0]["locked"] + 4


def test_an_objective_that_no_stage_trains_is_evaluated(tiny: Path, tmp_path: Path) -> None:
    recipe = embedding_recipe(tiny, tmp_path, "llama")
    stages = "stages=[{name: answers, objectives: [vqa], steps: 2}]"
    train(load_recipe(None, [stages], recipe).recipe, tmp_path / "run", QUIET)
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]
    assert set(stage["samples_by_objective"]) == {"vqa"}
    report = evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)
    assert report["retrieval"]["n"] == 4


def test_evaluation_keys(tiny: Path, tmp_path: Path) -> None:
    train(loaded(tiny, tmp_path), tmp_path / "run", QUIET)

    def answers(*overrides: str) -> list[str]:
        evaluate_folder(tmp_path / "run", None, overrides, False, tmp_path / "said.jsonl", QUIET)
        return [json.loads(line)["answer"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]

    ranked, generated = answers(), answers("evaluation.method=generate", "objectives.vqa.max_new_tokens=2")
    assert set(ranked) <= {"red", "green", "blue", "yellow", "yes", "no"}
    assert not set(generated) <= set(ranked)
    assert len(answers("evaluation.samples=3")) == 3
    generate = ("evaluation.method=generate", "objectives.vqa.max_new_tokens=8")
    assert answers(*generate) != answers(*generate, "evaluation.beams=4")
    with pytest.raises(RecipeError):
        answers("objectives.vqa.answers=null", "evaluation.method=rank")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"accumulation": 2, "batch_size": 2}])
def test_memory_savers_change_nothing(changes: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    ends = []
    for number, extra in enumerate(({}, changes)):
        recipe = values(tiny, tmp_path)
        recipe["training"].update({"steps": 3, **extra})
        train(load_recipe(None, (), recipe).recipe, tmp_path / f"run{number}", QUIET)
        lines = (tmp_path / f"run{number}" / "metrics.jsonl").read_text().splitlines()
        ends.append(json.loads(lines[-1])["train_loss"])
    assert ends[0] == pytest.approx(ends[1], abs=0.02 if "accumulation" in changes else 1e-5)


@pytest.mark.slow
def test_half_precision_trains_in_float32_masters(tiny: Path, tmp_path: Path) -> None:
    train(loaded(tiny, tmp_path, "model.dtype=bfloat16"), tmp_path / "run", QUIET)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = {row["component"]: row["dtype"] for row in facts["stages"][0]["components"]}
    assert rows["llm"] == rows["tower"] == "bfloat16"
    assert rows["projector"] == rows["lora"] == "float32"


def test_what_failed_before_it_made_anything_can_be_started_again(tiny: Path, tmp_path: Path) -> None:
    """The rows are mended, and the same command is given: there is nothing to resume."""
    recipe = load_recipe(None, (), values(tiny, tmp_path)).recipe
    rows = next(iter(recipe.objectives.values())).train
    file = Path((rows[0] if isinstance(rows, list) else rows).path)
    good = file.read_text(encoding="utf-8")
    file.write_text("no rows\n", encoding="utf-8")
    with pytest.raises(DataError):
        train(recipe, tmp_path / "run", QUIET)
    assert list((tmp_path / "run").iterdir()) == []
    file.write_text(good, encoding="utf-8")
    train(recipe, tmp_path / "run", QUIET)
    with pytest.raises(RecipeError, match="exists and is not empty"):
        train(recipe, tmp_path / "run", QUIET)
