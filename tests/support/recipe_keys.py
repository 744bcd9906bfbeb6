"""Every recipe key with what shows its effect: an override, what to look at, and what must be seen there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.building.samples import row_source, video_rules
from lockadapt.building.stages import Stage
from lockadapt.data.readers.source import Source
from lockadapt.training.arguments import grounding_config
from lockadapt.training.config import GroundingConfig
from tests.support.runs import recipe

Table = dict[str, tuple[str, Callable[[Experiment], Any], Any]]


def built(folder: Path, *overrides: str) -> Experiment:
    """The experiment of a small recipe."""
    return build_experiment(recipe(folder, *overrides))


def stages(own: Experiment) -> list[Stage]:
    """Its stages, of 80 rows."""
    return own.stages({"vqa": 80})


def arguments(own: Experiment, validated: bool = True) -> GroundingConfig:
    """The trainer's arguments in its first stage."""
    return grounding_config(own, stages(own)[0], Path("out"), torch.float32, validated)


def source(own: Experiment) -> Source:
    """What the reader of its training rows is told."""
    section = own.recipe.objectives["vqa"]
    return row_source(section.train, "vqa", section.prompt, "train")


def has_its_effect(table: Table, key: str, folder: Path) -> None:
    """Assert that an override is seen where the table says, and that it was not so without it."""
    override, observe, expected = table[key]
    before, after = observe(built(folder)), observe(built(folder, override))
    assert after == expected
    assert before != expected


EXPERIMENT: Table = {
    "lora.rank": ("lora.rank=3", lambda r: r.lora.rank, 3),
    "lora.alpha": ("lora.alpha=3.0", lambda r: r.lora.alpha, 3.0),
    "lora.dropout": ("lora.dropout=0.5", lambda r: r.lora.dropout, 0.5),
    "lora.targets": ("lora.targets=[q_proj]", lambda r: r.lora.targets, ("q_proj",)),
    "lora.rslora": ("lora.rslora=true", lambda r: r.lora.rslora, True),
    "lora.dora": ("lora.dora=true", lambda r: r.lora.dora, True),
    "lora.init": ("lora.init=gaussian", lambda r: r.lora.init, "gaussian"),
}
SAMPLES: Table = {
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
    "data.video_frames": (
        "data.video_frames=3",
        lambda r: len(video_rules(r.recipe).moments(10.0)),
        3,
    ),
    "data.video_rate": ("data.video_rate=0.5", lambda r: video_rules(r.recipe).moments(4.0), (1.0, 3.0)),
    "data.video_times": ("data.video_times=true", lambda r: video_rules(r.recipe).times, True),
    "data.max_video_seconds": (
        "data.max_video_seconds=5.0",
        lambda r: video_rules(r.recipe).max_seconds,
        5.0,
    ),
    "objectives.train.limit": (
        "objectives.vqa.train.limit=3",
        lambda r: len(r.samples("train")["vqa"]),
        3,
    ),
    "objectives.prompt": (
        "objectives.vqa.prompt='Q: {question} A:'",
        lambda r: r.samples("train")["vqa"][0].turns[0].text,
        "Q: what color is the shape? A:",
    ),
    "objectives.validation": ("objectives.vqa.validation=null", lambda r: r.samples("validation"), {}),
    "objectives.test": ("objectives.vqa.test=null", lambda r: r.samples("test"), {}),
    "training.validation_samples": (
        "training.validation_samples=2",
        lambda r: len(r.samples("validation")["vqa"]),
        2,
    ),
}
OBJECTIVES: Table = {
    "objectives.kind": ("objectives.vqa.kind=dialogue", lambda r: r.objectives["vqa"].kind, "dialogue"),
    "objectives.sampling_weight": (
        "objectives.vqa.sampling_weight=3.0",
        lambda r: r.objectives["vqa"].sampling_weight,
        3.0,
    ),
    "objectives.batch_size": (
        "objectives.vqa.batch_size=3",
        lambda r: r.objectives["vqa"].batch_size,
        3,
    ),
    "objectives.weight": ("objectives.vqa.weight=3.0", lambda r: r.objectives["vqa"].weight, 3.0),
    "objectives.answers": (
        "objectives.vqa.answers=[a, b]",
        lambda r: r.objectives["vqa"].answers,
        ("a", "b"),
    ),
    "objectives.max_new_tokens": (
        "objectives.vqa.max_new_tokens=5",
        lambda r: r.objectives["vqa"].max_new_tokens,
        5,
    ),
}
STAGES: Table = {
    "lora": ("lora=null", lambda r: stages(r)[0].train, ("projector",)),
    "stages.name": ("stages=[{name: x}]", lambda r: stages(r)[0].name, "x"),
    "stages.train": ("stages=[{name: x, train: [lora]}]", lambda r: stages(r)[0].train, ("lora",)),
    "stages.steps": ("stages=[{name: x, steps: 3}]", lambda r: stages(r)[0].steps, 3),
    "stages.epochs": ("stages=[{name: x, epochs: 3.0}]", lambda r: stages(r)[0].steps, 15),
    "stages.batch_size": ("stages=[{name: x, batch_size: 3}]", lambda r: stages(r)[0].batch_size, 3),
    "stages.accumulation": ("stages=[{name: x, accumulation: 3}]", lambda r: stages(r)[0].accumulation, 3),
    "stages.learning_rate": (
        "stages=[{name: x, learning_rate: 0.5}]",
        lambda r: stages(r)[0].learning_rate,
        0.5,
    ),
    "stages.projector_learning_rate": (
        "stages=[{name: x, projector_learning_rate: 0.5}]",
        lambda r: stages(r)[0].projector_learning_rate,
        0.5,
    ),
}
ARGUMENTS: Table = {
    "lora.plus_ratio": ("lora.plus_ratio=16.0", lambda r: arguments(r).lora_plus_ratio, 16.0),
    "data.allow_special_tokens": (
        "data.allow_special_tokens=true",
        lambda r: arguments(r).allow_special_tokens,
        True,
    ),
    "data.packing": ("data.packing=none", lambda r: arguments(r).packing, "none"),
    "data.max_row_tokens": ("data.max_row_tokens=64", lambda r: arguments(r).max_row_tokens, 64),
    "data.max_samples_per_image": (
        "data.max_samples_per_image=3",
        lambda r: arguments(r).max_samples_per_image,
        3,
    ),
    "training.steps": ("training.steps=7", lambda r: arguments(r).max_steps, 7),
    "training.epochs": ("training={epochs: 2.0, batch_size: 8}", lambda r: arguments(r).max_steps, 20),
    "training.batch_size": ("training.batch_size=5", lambda r: arguments(r).per_device_train_batch_size, 5),
    "training.accumulation": (
        "training.accumulation=3",
        lambda r: arguments(r).gradient_accumulation_steps,
        3,
    ),
    "training.learning_rate": ("training.learning_rate=0.5", lambda r: arguments(r).learning_rate, 0.5),
    "training.projector_learning_rate": (
        "training.projector_learning_rate=0.5",
        lambda r: arguments(r).projector_learning_rate,
        0.5,
    ),
    "training.retrieval_learning_rate": (
        "training.retrieval_learning_rate=0.5",
        lambda r: arguments(r).retrieval_learning_rate,
        0.5,
    ),
    "training.generation_learning_rate": (
        "training.generation_learning_rate=0.5",
        lambda r: arguments(r).generation_learning_rate,
        0.5,
    ),
    "training.schedule": ("training.schedule=constant", lambda r: arguments(r).lr_scheduler_type, "constant"),
    "training.warmup": ("training.warmup=0.5", lambda r: arguments(r).get_warmup_steps(40), 20),
    "training.weight_decay": ("training.weight_decay=0.5", lambda r: arguments(r).weight_decay, 0.5),
    "training.max_grad_norm": ("training.max_grad_norm=0.5", lambda r: arguments(r).max_grad_norm, 0.5),
    "training.optimizer": (
        "training.optimizer=paged-adamw-8bit",
        lambda r: arguments(r).optim,
        "paged_adamw_8bit",
    ),
    "training.gradient_checkpointing": (
        "training.gradient_checkpointing=true",
        lambda r: arguments(r).activation_checkpointing,
        True,
    ),
    "training.sharding": ("training.sharding=fsdp", lambda r: arguments(r).sharding, "fsdp"),
    "training.seed": ("training.seed=9", lambda r: arguments(r).seed, 9),
    "training.log_every": ("training.log_every=3", lambda r: arguments(r).logging_steps, 3),
    "training.validate_every": (
        "training.validate_every=4",
        lambda r: (arguments(r).eval_steps, arguments(r).save_steps),
        (4, 4),
    ),
    "training.save_every": ("training.save_every=3", lambda r: arguments(r, validated=False).save_steps, 3),
    "training.keep_checkpoints": ("training.keep_checkpoints=5", lambda r: arguments(r).save_total_limit, 5),
    "data.workers": ("data.workers=2", lambda r: arguments(r).dataloader_num_workers, 2),
    "evaluation.batch_size": (
        "evaluation.batch_size=3",
        lambda r: arguments(r).per_device_eval_batch_size,
        3,
    ),
    "blind": ("blind=true", lambda r: arguments(r).blind, True),
    "stages.retrieval_learning_rate": (
        "stages=[{name: x, retrieval_learning_rate: 0.5}]",
        lambda r: arguments(r).retrieval_learning_rate,
        0.5,
    ),
    "stages.generation_learning_rate": (
        "stages=[{name: x, generation_learning_rate: 0.5}]",
        lambda r: arguments(r).generation_learning_rate,
        0.5,
    ),
}
SEEN: Table = {**EXPERIMENT, **SAMPLES, **OBJECTIVES, **STAGES, **ARGUMENTS}

ELSEWHERE = {
    "model.lock_text": "tests/architectures/test_idefics.py::test_trained_merged_and_verified",
    "report": "tests/report/test_report.py::test_report_false_leaves_nothing",
    "model.llm": "tests/architectures/test_assemble.py::test_llm_keeps_its_logits_and_its_tie",
    "model.tower": "tests/architectures/test_assemble.py::test_tower_keeps_its_features",
    "model.run": "tests/training/methods/test_dpo.py::test_a_finished_run_is_a_start",
    "model.vlm": "tests/training/test_loop.py::test_an_existing_vlm_is_a_start",
    "model.factor": "tests/architectures/test_choose.py::test_what_is_not_offered",
    "model.grid": "tests/architectures/test_llava_next.py::test_the_recipe_says_which_grids_there_are",
    "model.max_tiles": "tests/architectures/test_llava_next.py::test_the_recipe_says_which_grids_there_are",
    "model.queries": "tests/architectures/blip2/test_decoders.py::test_trained_merged_exported_and_verified",
    "model.fusion": "tests/architectures/test_assemble.py::test_linear_fusion_is_linear",
    "model.image_size": "tests/architectures/test_assemble.py::test_image_size_is_a_choice",
    "model.max_image_tokens": "tests/architectures/test_limits.py::test_a_run_trains_and_merges_with_it",
    "model.feature_layer": "tests/training/test_loop.py::test_model_keys_reach_the_assembly",
    "model.calibration_images": "tests/training/test_loop.py::test_model_keys_reach_the_assembly",
    "model.calibration_words": "tests/training/test_loop.py::test_calibration_words_key",
    "model.dtype": "tests/training/test_loop.py::test_model_keys_reach_the_assembly",
    "model.quantization": "tests/tuning/test_quantize.py::test_blocks_only",
    "objectives.train.format": "tests/data/readers",
    "objectives.train.path": "tests/data/readers",
    "objectives.train.images": "tests/data/readers",
    "objectives.train.annotations": "tests/data/readers",
    "objectives.train.split": "tests/data/readers",
    "objectives.train.weight": "tests/data/test_sources.py::test_each_source_gives_its_share",
    "objectives.train.streaming": "tests/training/test_hub_streams.py::test_a_run_keeps_to_its_commit",
    "objectives.train.revision": "tests/training/test_hub_streams.py::test_a_run_keeps_to_its_commit",
    "objectives.train.shuffle": "tests/data/test_sources.py::test_a_source_may_keep_its_order",
    "data.max_length": "tests/training/test_loop.py::test_data_keys",
    "data.rows": "tests/training/test_rows_on_disk.py::test_which_rows_stay_on_disk",
    "data.on_bad_image": "tests/training/test_loop.py::test_data_keys",
    "data.max_bad_fraction": "tests/training/test_loop.py::test_data_keys",
    "data.on_bad_row": "tests/building/test_samples.py::test_bad_rows_are_left_out_where_the_recipe_says_so",
    "data.max_bad_row_fraction": "tests/building/test_samples.py::test_bad_rows_are_left_out_where_the_recipe_says_so",
    "data.max_pixels": "tests/cli/test_cli.py::test_failures_end_in_one_message_and_their_code",
    "data.features": "tests/training/test_loop.py::test_features_key",
    "data.feature_memory_gib": "tests/training/test_loop.py::test_features_key",
    "data.feature_disk_gib": "tests/training/test_loop.py::test_features_key",
    "data.feature_dtype": "tests/features/test_policy.py::test_smaller_dtypes_train_nearly_the_same",
    "data.cache": "tests/features/test_policy.py::test_cache_verb",
    "training.patience": "tests/training/test_loop.py::test_early_stopping",
    "training.report_to": "tests/training/test_arguments.py::test_report_to_reaches_the_trainer",
    "evaluation.beams": "tests/training/test_loop.py::test_evaluation_keys",
    "evaluation.method": "tests/training/test_loop.py::test_evaluation_keys",
    "evaluation.samples": "tests/training/test_loop.py::test_evaluation_keys",
    "model.image_tokenizer": "tests/architectures/janus/test_graft.py",
    "stages.sampling_weights": "tests/building/test_stages.py::test_a_stage_may_have_ratios_of_its_own",
    "stages.method": "tests/training/methods/test_dpo.py::test_an_ordinary_run",
    "stages.trl": "tests/training/methods/test_dpo.py::test_fields_of_trl_reach_its_config",
    **{
        f"stages.{key}": "tests/building/test_stages.py::test_a_stage_with_a_method_has_its_settings"
        for key in (
            *("rewards", "rewards.vqa", "rewards.exact", "rewards.caption", "rewards.function"),
            *("rewards.iou", "rewards.retrieval", "rewards.format", "guard", "guard.steps", "guard.max_kl"),
            *(f"rewards.{name}.weight" for name in ("vqa", "exact", "caption", "function")),
            *(f"rewards.{name}.weight" for name in ("iou", "retrieval", "format")),
            *("rewards.function.function", "rewards.iou.box_format", "rewards.format.pattern"),
            *("rewards.retrieval.run", "rewards.retrieval.pool"),
        )
    },
    "stages.objectives": "tests/building/test_stages.py::test_a_stage_may_take_some_objectives",
    "output": "tests/cli/test_cli.py::test_failures_end_in_one_message_and_their_code",
}
"""Key -> the test that shows its effect."""

ITC: dict[str, tuple[str, Any]] = {
    "mode": ("vlm", "vlm"),
    "contrast": ("sigmoid", "sigmoid"),
    "dimension": ("7", 7),
    "queries": ("3", 3),
    "pooling": ("mean", "mean"),
    "head": ("mlp", "mlp"),
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
    "image_token_noise": ("0.2", 0.2),
    "crops": ("true", True),
    "guidance_scale": ("4.0", 4.0),
    "temperature": ("0.5", 0.5),
    "top_k": ("9", 9),
    "top_p": ("0.5", 0.5),
    "generation_seed": ("4", 4),
    "probe": ("./tower", "./tower"),
}
GROUNDING: dict[str, tuple[str, Any]] = {
    "box_format": ("plain", "plain"),
    "coordinates": ("xywh", "xywh"),
    "jitter": ("0.1", 0.1),
    "flip": ("true", True),
}
"""Keys of contrastive objectives, of those that draw and of boxes: value in a recipe, and in the objective."""
