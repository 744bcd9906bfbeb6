"""Stages: what they take from the rest of the recipe, and how long they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.building.experiment import build_experiment
from lockadapt.building.objectives import stage_objectives
from lockadapt.recipe.read import load_recipe
from tests.support.recipe_keys import STAGES, built, has_its_effect


@pytest.mark.parametrize("key", STAGES)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(STAGES, key, tmp_path)


def test_a_stage_may_take_some_objectives(tmp_path: Path) -> None:
    own = built(
        tmp_path,
        "objectives.caption={train: {format: jsonl, path: captions.jsonl}}",
        "stages=[{name: a, epochs: 1.0, objectives: [vqa]}, {name: b, epochs: 1.0}]",
    )
    first, second = own.stages({"vqa": 80, "caption": 160})
    assert first.objectives == ("vqa",)
    assert second.objectives == ("vqa", "caption")
    assert (first.steps, second.steps) == (5, 15)


def test_a_stage_leaves_its_rates_to_training(tmp_path: Path) -> None:
    own = built(
        tmp_path,
        "training.generation_learning_rate=0.3",
        "stages=[{name: a}, {name: b, generation_learning_rate: 0.1, retrieval_learning_rate: 0.2}]",
    )
    first, second = own.stages({"vqa": 80})
    assert (first.generation_learning_rate, first.retrieval_learning_rate) == (0.3, None)
    assert (second.generation_learning_rate, second.retrieval_learning_rate) == (0.1, 0.2)


def test_a_new_projector_learns_fast_once(tmp_path: Path) -> None:
    stages = "stages=[{name: a, train: [lora]}, {name: b}, {name: c}]"
    rates = [stage.projector_learning_rate for stage in built(tmp_path, stages).stages({"vqa": 80})]
    assert rates == [1e-3, 1e-3, 2e-5]
    given = built(tmp_path, stages, "training.projector_learning_rate=0.5").stages({"vqa": 80})
    assert [stage.projector_learning_rate for stage in given] == [0.5, 0.5, 0.5]
    existing = built(tmp_path, "model={vlm: some/vlm}").stages({"vqa": 80})
    assert [stage.projector_learning_rate for stage in existing] == [2e-5]


def test_a_stage_may_have_ratios_of_its_own(tmp_path: Path) -> None:
    own = built(
        tmp_path,
        "objectives.caption={train: {format: jsonl, path: captions.jsonl}, batch_size: 48}",
        "stages=[{name: a, epochs: 1.0, sampling_weights: {vqa: 3.0}}, {name: b, steps: 2}]",
    )
    first, second = own.stages({"vqa": 80, "caption": 160})
    assert {
        name: objective.sampling_weight
        for name, objective in stage_objectives(
            own.objectives, first.objectives, first.sampling_weights
        ).items()
    } == {
        "vqa": 3.0,
        "caption": 1.0,
    }
    assert {
        name: objective.sampling_weight
        for name, objective in stage_objectives(
            own.objectives, second.objectives, second.sampling_weights
        ).items()
    } == {
        "vqa": 1.0,
        "caption": 1.0,
    }
    # Three micro-batches of 16 to one of 48: 24 rows on average.
    assert (first.micro_batch, first.steps, second.micro_batch) == (24, 10, 32)


def test_contrastive_batches_are_counted_as_they_are_drawn(tmp_path: Path) -> None:
    """Red before: the default batch of itc, 256, was taken for the stage's 16."""
    rows = {"format": "jsonl", "path": "rows.jsonl"}
    given = {
        "model": {"llm": "./llm", "tower": "./tower"},
        "objectives": {"itc": {"train": rows}},
        "training": {"epochs": 2.0},
    }
    experiment = build_experiment(load_recipe(None, (), given).recipe)
    (stage,) = experiment.stages({"itc": 1024})
    assert stage.micro_batch == 256
    assert stage.steps == 8


def test_a_stage_with_a_method_has_its_settings(tmp_path: Path) -> None:
    rewards = (
        "{vqa: {}, exact: {weight: 0.5}, caption: {weight: 0.1}, iou: {box_format: plain, weight: 2.0}, "
        "format: {pattern: '[a-z]+', weight: 0.2}, function: {function: 'a.py:b', weight: 3.0}, "
        "retrieval: {run: runs/dual, pool: 9, weight: 4.0}}"
    )
    own = built(
        tmp_path,
        "training={epochs: 1.0, batch_size: 16}",
        "stages=[{name: a, method: grpo, trl: {num_generations: 4}, guard: {steps: 5, max_kl: 2.0}, "
        f"rewards: {rewards}}}]",
    )
    [stage] = own.stages({"vqa": 80})
    assert stage.method is not None
    assert (stage.method.name, stage.method.guard_steps, stage.method.max_kl) == ("grpo", 5, 2.0)
    assert stage.method.rewards == {
        "vqa": {"weight": 1.0},
        "exact": {"weight": 0.5},
        "iou": {"weight": 2.0, "box_format": "plain"},
        "caption": {"weight": 0.1},
        "retrieval": {"weight": 4.0, "run": "runs/dual", "pool": 9},
        "format": {"weight": 0.2, "pattern": "[a-z]+"},
        "function": {"weight": 3.0, "function": "a.py:b"},
    }
    assert stage.steps == 20  # 80 prompts, four a step
