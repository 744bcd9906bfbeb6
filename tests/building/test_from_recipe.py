"""Every recipe key has an effect: shown here where it reaches the trainer, or in the test that is named for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.building import from_recipe
from lockadapt.building.from_recipe import (
    Stage,
    _source,
    grounding_config,
    lora_settings,
    objectives_of,
    samples_of,
    stages_of,
)
from lockadapt.data.readers.source import Source
from lockadapt.errors import DataError, RecipeError, SetupError
from lockadapt.objectives import KINDS
from lockadapt.recipe.objectives import KEYS_OF_KINDS
from lockadapt.recipe.schema import Recipe
from lockadapt.training.config import GroundingConfig
from lockadapt.tuning.adapters import LoraSettings
from tests.support.runs import recipe

ROOT = Path(__file__).resolve().parents[2]


def stage(own: Recipe) -> Stage:
    return stages_of(own, {"vqa": 80})[0]


def config(own: Recipe, validated: bool = True) -> GroundingConfig:
    return grounding_config(own, stage(own), Path("out"), torch.float32, validated)


def source(own: Recipe) -> Source:
    return _source(own.objectives["vqa"].train, "vqa", own.objectives["vqa"].prompt, "train")


def lora(own: Recipe) -> LoraSettings:
    assert own.lora is not None
    return lora_settings(own.lora)


Observer = Callable[[Recipe], Any]
SEEN: dict[str, tuple[str, Observer, Any]] = {
    "lora.rank": ("lora.rank=3", lambda r: lora(r).rank, 3),
    "lora.alpha": ("lora.alpha=3.0", lambda r: lora(r).alpha, 3.0),
    "lora.dropout": ("lora.dropout=0.5", lambda r: lora(r).dropout, 0.5),
    "lora.targets": ("lora.targets=[q_proj]", lambda r: lora(r).targets, ("q_proj",)),
    "lora.rslora": ("lora.rslora=true", lambda r: lora(r).rslora, True),
    "lora.dora": ("lora.dora=true", lambda r: lora(r).dora, True),
    "lora.init": ("lora.init=gaussian", lambda r: lora(r).init, "gaussian"),
    "lora.plus_ratio": ("lora.plus_ratio=16.0", lambda r: config(r).lora_plus_ratio, 16.0),
    "data.packing": ("data.packing=none", lambda r: config(r).packing, "none"),
    "data.row_tokens": ("data.row_tokens=64", lambda r: config(r).row_tokens, 64),
    "data.samples_per_image": ("data.samples_per_image=3", lambda r: config(r).samples_per_image, 3),
    "lora": ("lora=null", lambda r: stage(r).train, ("projector",)),
    "objectives.train.columns": (
        "objectives.vqa.train.columns={question: q}",
        lambda r: source(r).columns,
        {"question": "q"},
    ),
    "objectives.train.image_name": (
        "objectives.vqa.train.image_name='{}.png'",
        lambda r: source(r).image_name,
        "{}.png",
    ),
    "objectives.train.limit": (
        "objectives.vqa.train.limit=3",
        lambda r: len(samples_of(r, "train")["vqa"]),
        3,
    ),
    "objectives.kind": ("objectives.vqa.kind=dialogue", lambda r: objectives_of(r)["vqa"].kind, "dialogue"),
    "objectives.ratio": ("objectives.vqa.ratio=3.0", lambda r: objectives_of(r)["vqa"].ratio, 3.0),
    "objectives.batch_size": (
        "objectives.vqa.batch_size=3",
        lambda r: objectives_of(r)["vqa"].batch_size,
        3,
    ),
    "objectives.weight": ("objectives.vqa.weight=3.0", lambda r: objectives_of(r)["vqa"].weight, 3.0),
    "objectives.prompt": (
        "objectives.vqa.prompt='Q: {question} A:'",
        lambda r: samples_of(r, "train")["vqa"][0].turns[0].text,
        "Q: what color is the shape? A:",
    ),
    "objectives.answers": (
        "objectives.vqa.answers=[a, b]",
        lambda r: objectives_of(r)["vqa"].answers,
        ("a", "b"),
    ),
    "objectives.max_new_tokens": (
        "objectives.vqa.max_new_tokens=5",
        lambda r: objectives_of(r)["vqa"].max_new_tokens,
        5,
    ),
    "objectives.validation": ("objectives.vqa.validation=null", lambda r: samples_of(r, "validation"), {}),
    "objectives.test": ("objectives.vqa.test=null", lambda r: samples_of(r, "test"), {}),
    "training.steps": ("training.steps=7", lambda r: config(r).max_steps, 7),
    "training.epochs": ("training={epochs: 2.0, batch_size: 8}", lambda r: config(r).max_steps, 20),
    "training.batch_size": ("training.batch_size=5", lambda r: config(r).per_device_train_batch_size, 5),
    "training.accumulation": ("training.accumulation=3", lambda r: config(r).gradient_accumulation_steps, 3),
    "training.learning_rate": ("training.learning_rate=0.5", lambda r: config(r).learning_rate, 0.5),
    "training.projector_learning_rate": (
        "training.projector_learning_rate=0.5",
        lambda r: config(r).projector_learning_rate,
        0.5,
    ),
    "training.retrieval_learning_rate": (
        "training.retrieval_learning_rate=0.5",
        lambda r: config(r).retrieval_learning_rate,
        0.5,
    ),
    "training.generation_learning_rate": (
        "training.generation_learning_rate=0.5",
        lambda r: config(r).generation_learning_rate,
        0.5,
    ),
    "training.schedule": ("training.schedule=constant", lambda r: config(r).lr_scheduler_type, "constant"),
    "training.warmup": ("training.warmup=0.5", lambda r: config(r).get_warmup_steps(40), 20),
    "training.weight_decay": ("training.weight_decay=0.5", lambda r: config(r).weight_decay, 0.5),
    "training.max_grad_norm": ("training.max_grad_norm=0.5", lambda r: config(r).max_grad_norm, 0.5),
    "training.optimizer": (
        "training.optimizer=paged-adamw-8bit",
        lambda r: config(r).optim,
        "paged_adamw_8bit",
    ),
    "training.gradient_checkpointing": (
        "training.gradient_checkpointing=true",
        lambda r: config(r).activation_checkpointing,
        True,
    ),
    "training.seed": ("training.seed=9", lambda r: config(r).seed, 9),
    "training.log_every": ("training.log_every=3", lambda r: config(r).logging_steps, 3),
    "training.validate_every": (
        "training.validate_every=4",
        lambda r: (config(r).eval_steps, config(r).save_steps),
        (4, 4),
    ),
    "training.validation_samples": (
        "training.validation_samples=2",
        lambda r: len(samples_of(r, "validation")["vqa"]),
        2,
    ),
    "training.save_every": ("training.save_every=3", lambda r: config(r, validated=False).save_steps, 3),
    "training.keep_checkpoints": ("training.keep_checkpoints=5", lambda r: config(r).save_total_limit, 5),
    "data.workers": ("data.workers=2", lambda r: config(r).dataloader_num_workers, 2),
    "evaluation.batch_size": ("evaluation.batch_size=3", lambda r: config(r).per_device_eval_batch_size, 3),
    "blind": ("blind=true", lambda r: config(r).blind, True),
    "stages.name": ("stages=[{name: x}]", lambda r: stage(r).name, "x"),
    "stages.train": ("stages=[{name: x, train: [lora]}]", lambda r: stage(r).train, ("lora",)),
    "stages.steps": ("stages=[{name: x, steps: 3}]", lambda r: stage(r).steps, 3),
    "stages.epochs": ("stages=[{name: x, epochs: 3.0}]", lambda r: stage(r).steps, 15),
    "stages.batch_size": ("stages=[{name: x, batch_size: 3}]", lambda r: stage(r).batch_size, 3),
    "stages.accumulation": ("stages=[{name: x, accumulation: 3}]", lambda r: stage(r).accumulation, 3),
    "stages.learning_rate": ("stages=[{name: x, learning_rate: 0.5}]", lambda r: stage(r).learning_rate, 0.5),
    "stages.projector_learning_rate": (
        "stages=[{name: x, projector_learning_rate: 0.5}]",
        lambda r: stage(r).projector_learning_rate,
        0.5,
    ),
    "stages.retrieval_learning_rate": (
        "stages=[{name: x, retrieval_learning_rate: 0.5}]",
        lambda r: config(r).retrieval_learning_rate,
        0.5,
    ),
    "stages.generation_learning_rate": (
        "stages=[{name: x, generation_learning_rate: 0.5}]",
        lambda r: config(r).generation_learning_rate,
        0.5,
    ),
}

ELSEWHERE = {
    "model.llm": "tests/architectures/test_assemble.py::test_llm_keeps_its_logits_and_its_tie",
    "model.tower": "tests/architectures/test_assemble.py::test_tower_keeps_its_features",
    "model.vlm": "tests/training/test_session.py::test_an_existing_vlm_is_a_start",
    "model.fusion": "tests/architectures/test_assemble.py::test_linear_fusion_is_linear",
    "model.image_size": "tests/architectures/test_assemble.py::test_image_size_is_a_choice",
    "model.feature_layer": "tests/training/test_session.py::test_model_keys_reach_the_assembly",
    "model.calibration_images": "tests/training/test_session.py::test_model_keys_reach_the_assembly",
    "model.dtype": "tests/training/test_session.py::test_model_keys_reach_the_assembly",
    "model.quantization": "tests/tuning/test_quantize.py::test_blocks_only",
    "objectives.train.format": "tests/data/readers",
    "objectives.train.path": "tests/data/readers",
    "objectives.train.images": "tests/data/readers",
    "objectives.train.annotations": "tests/data/readers",
    "objectives.train.split": "tests/data/readers",
    "data.max_length": "tests/training/test_session.py::test_data_keys",
    "data.on_bad_image": "tests/training/test_session.py::test_data_keys",
    "data.max_bad_fraction": "tests/training/test_session.py::test_data_keys",
    "data.max_pixels": "tests/cli/test_cli.py::test_failures_end_in_one_message_and_their_code",
    "data.features": "tests/training/test_session.py::test_features_key",
    "data.feature_memory_gib": "tests/training/test_session.py::test_features_key",
    "data.feature_disk_gib": "tests/training/test_session.py::test_features_key",
    "data.feature_dtype": "tests/features/test_policy.py::test_smaller_dtypes_train_nearly_the_same",
    "data.cache": "tests/features/test_policy.py::test_cache_verb",
    "training.patience": "tests/training/test_session.py::test_early_stopping",
    "training.report_to": "tests/building/test_from_recipe.py::test_report_to_reaches_the_trainer",
    "evaluation.method": "tests/training/test_session.py::test_evaluation_keys",
    "evaluation.samples": "tests/training/test_session.py::test_evaluation_keys",
    "model.image_tokenizer": "tests/architectures/janus/test_graft.py",
    "stages.ratios": "tests/building/test_from_recipe.py::test_a_stage_may_have_ratios_of_its_own",
    "stages.objectives": "tests/building/test_from_recipe.py::test_a_stage_may_take_some_objectives",
    "output": "tests/cli/test_cli.py::test_failures_end_in_one_message_and_their_code",
}


@pytest.mark.parametrize("key", SEEN)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    override, observe, expected = SEEN[key]
    before, after = observe(recipe(tmp_path)), observe(recipe(tmp_path, override))
    assert after == expected
    assert before != expected


ITC: dict[str, tuple[str, Any]] = {
    "mode": ("vlm", "vlm"),
    "contrast": ("sigmoid", "sigmoid"),
    "dimension": ("7", 7),
    "queries": ("3", 3),
    "pooling": ("mean", "mean"),
    "chunk": ("5", 5),
    "scale": ("20.0", 20.0),
    "learn_scale": ("false", False),
    "feature_dropout": ("0.5", 0.5),
    "image_prompt": ("'Look:'", "Look:"),
    "text_prompt": ("'say {caption}'", "say {caption}"),
    "templates": ("['a {}']", ("a {}",)),
}
T2I: dict[str, tuple[str, Any]] = {
    "prompt_drop": ("0.3", 0.3),
    "code_noise": ("0.2", 0.2),
    "crops": ("true", True),
    "guidance_scale": ("4.0", 4.0),
    "temperature": ("0.5", 0.5),
    "top_k": ("9", 9),
    "top_p": ("0.5", 0.5),
    "drawing_seed": ("4", 4),
    "probe": ("./tower", "./tower"),
}


@pytest.mark.parametrize(("kind", "key"), [*(("itc", key) for key in ITC), *(("t2i", key) for key in T2I)])
def test_keys_of_contrastive_and_drawing_objectives(kind: str, key: str, tmp_path: Path) -> None:
    text, expected = {"itc": ITC, "t2i": T2I}[kind][key]
    rows = "train: {format: jsonl, path: rows.jsonl}"
    before = recipe(tmp_path, f"objectives={{{kind}: {{{rows}}}}}")
    after = recipe(tmp_path, f"objectives={{{kind}: {{{rows}, {key}: {text}}}}}")
    assert getattr(objectives_of(after)[kind], key) == expected
    assert getattr(objectives_of(before)[kind], key) != expected


def test_every_key_is_accounted_for() -> None:
    keys = {
        key
        for key in _keys(Recipe)
        if key not in ("model", "data", "training", "evaluation", "stages", "objectives")
    }
    keys -= {"objectives.train"}
    special = {f"objectives.{key}" for key in (*ITC, *T2I)}
    assert keys == set(SEEN) | set(ELSEWHERE) | special


@pytest.mark.parametrize("key", ELSEWHERE)
def test_named_tests_exist(key: str) -> None:
    file, _, name = ELSEWHERE[key].partition("::")
    assert (ROOT / file).exists(), file
    assert not name or f"def {name}(" in (ROOT / file).read_text()


def test_report_to_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = recipe(tmp_path, "training.report_to=[trackio, wandb]")
    monkeypatch.setattr(from_recipe, "find_spec", lambda package: None if package == "wandb" else object())
    with pytest.raises(SetupError, match="wandb is not installed"):
        config(own)
    monkeypatch.setattr(from_recipe, "find_spec", lambda package: object())
    assert config(own).report_to == ["trackio", "wandb"]
    assert config(recipe(tmp_path)).report_to == []


def test_a_stage_may_take_some_objectives(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        "objectives.caption={train: {format: jsonl, path: captions.jsonl}}",
        "stages=[{name: a, epochs: 1.0, objectives: [vqa]}, {name: b, epochs: 1.0}]",
    )
    first, second = stages_of(own, {"vqa": 80, "caption": 160})
    assert first.objectives == ("vqa",)
    assert second.objectives == ("vqa", "caption")
    assert (first.steps, second.steps) == (5, 15)


def test_a_stage_leaves_its_rates_to_training(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        "training.generation_learning_rate=0.3",
        "stages=[{name: a}, {name: b, generation_learning_rate: 0.1, retrieval_learning_rate: 0.2}]",
    )
    first, second = stages_of(own, {"vqa": 80})
    assert (first.generation_learning_rate, first.retrieval_learning_rate) == (0.3, None)
    assert (second.generation_learning_rate, second.retrieval_learning_rate) == (0.1, 0.2)


def test_a_stage_may_have_ratios_of_its_own(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        "objectives.caption={train: {format: jsonl, path: captions.jsonl}, batch_size: 48}",
        "stages=[{name: a, epochs: 1.0, ratios: {vqa: 3.0}}, {name: b, steps: 2}]",
    )
    first, second = stages_of(own, {"vqa": 80, "caption": 160})
    assert {name: one.ratio for name, one in objectives_of(own, first).items()} == {
        "vqa": 3.0,
        "caption": 1.0,
    }
    assert {name: one.ratio for name, one in objectives_of(own, second).items()} == {
        "vqa": 1.0,
        "caption": 1.0,
    }
    # Three micro-batches of 16 to one of 48: 24 rows on average.
    assert (first.micro_batch, first.steps, second.micro_batch) == (24, 10, 32)


def test_the_keys_of_a_kind_are_the_fields_of_its_class() -> None:
    for kind, objective in KINDS.items():
        fields = {field.name for field in dataclasses.fields(objective)} - {"weight", "ratio", "batch_size"}
        assert fields == set(KEYS_OF_KINDS[kind]) - {"prompt"}, kind


def test_best_cannot_be_kept_between_validations(tmp_path: Path) -> None:
    own = recipe(tmp_path, "training.save_every=3", "training.validate_every=2")
    with pytest.raises(RecipeError, match="no multiple of validate_every"):
        config(own)


@pytest.mark.parametrize(("answers", "said"), [("[a]", "two answers or more"), ("nowhere.txt", "is no file")])
def test_closed_lists_are_checked(answers: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        objectives_of(recipe(tmp_path, f"objectives.vqa.answers={answers}"))


def _keys(model: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a pydantic section; names of objectives and positions of stages are left out."""
    from typing import get_args

    from pydantic import BaseModel

    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        found.append(key)
        if key in ("objectives.validation", "objectives.test"):
            continue
        pending, inner = [field.annotation], None
        while pending:
            part = pending.pop()
            if isinstance(part, type) and issubclass(part, BaseModel):
                inner = part
            pending += get_args(part)
        if inner is not None:
            found += _keys(inner, f"{key}.")
    return found
