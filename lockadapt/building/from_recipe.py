"""Turns the sections of a recipe into plain objects: the only place where recipe and training meet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.dual_encoder.assemble import DualAssembled, assemble_dual
from lockadapt.data.readers import read_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError, SetupError
from lockadapt.features.on_disk import DEFAULT_CACHE, FeatureSettings
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.objectives import KINDS, ImageText, Objective
from lockadapt.recipe.schema import (
    DataSection,
    LoraSection,
    ModelSection,
    Recipe,
    SourceSection,
    StageSection,
    kind_of,
)
from lockadapt.training.config import GroundingConfig
from lockadapt.tuning.adapters import LoraSettings, attach_adapters

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}
CHECKPOINTS_A_STAGE = 5
"""How often a stage is saved when the recipe does not say."""


def objectives_of(recipe: Recipe, stage: Stage | None = None) -> dict[str, Objective]:
    """The recipe's objectives by name, or those of a stage with its ratios.

    Every key of an objective's section that its class has a field for becomes that field.
    """
    chosen: dict[str, Objective] = {}
    for name, section in recipe.objectives.items():
        if stage is not None and name not in stage.objectives:
            continue
        make: Any = KINDS[kind_of(name, section)]
        given = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in section
            if value is not None
        }
        if kind_of(name, section) == "itc":
            given["mode"] = "dual" if is_dual(recipe) else "vlm"
        if "answers" in given:
            given["answers"] = _answers(name, section.answers)
        if stage is not None:
            given["ratio"] = stage.ratios.get(name, section.ratio)
        fields = {field.name for field in dataclasses.fields(make)}
        chosen[name] = make(**{key: value for key, value in given.items() if key in fields})
    return chosen


def is_dual(recipe: Recipe) -> bool:
    """Whether a recipe trains a dual encoder: so it is where it only retrieves and does not say otherwise."""
    sections = recipe.objectives.items()
    return all(kind_of(name, one) == "itc" and one.mode != "vlm" for name, one in sections)


def samples_of(recipe: Recipe, part: str) -> dict[str, list[Sample]]:
    """Samples of `train`, `validation` or `test` by objective; objectives without such rows are left out."""
    found: dict[str, list[Sample]] = {}
    for name, section in recipe.objectives.items():
        source: SourceSection | None = getattr(section, part)
        if source is None:
            continue
        found[name] = read_samples(
            source.format, _source(source, KINDS[kind_of(name, section)].rows, section.prompt, part)
        )
        if part == "validation":
            found[name] = found[name][: recipe.training.validation_samples]
        if not found[name]:
            raise DataError("holds no rows", where=f"objectives.{name}.{part}", fix="name a file with rows")
    return found


def assembled(
    section: ModelSection,
    output: Path | None,
    images: Sequence[Image.Image],
    seed: int,
    *,
    prove: bool,
    query_tokens: int = 0,
    dimension: int | None = None,
) -> Assembled | DualAssembled:
    """The LLM and the tower of a recipe in a stock class; `images` calibrate the projector, if there are any.

    Args:
        dimension: of embeddings: the LLM and the tower become a dual encoder.
    """
    assert section.llm is not None
    assert section.tower is not None
    if dimension is not None:
        return assemble_dual(
            section.llm,
            section.tower,
            output,
            dimension=dimension,
            image_size=section.image_size,
            dtype=section.dtype,
            fitting_images=images or None,
            seed=seed,
            prove=prove,
        )
    return assemble(
        section.llm,
        section.tower,
        output,
        fusion_name=section.fusion,
        image_size=section.image_size,
        feature_layer=section.feature_layer,
        dtype=section.dtype,
        calibration_images=images or None,
        image_tokenizer=section.image_tokenizer,
        seed=seed,
        prove=prove,
        query_tokens=query_tokens,
    )


def query_tokens_of(recipe: Recipe) -> int:
    """How many query tokens the recipe's objectives need."""
    return max(objective.query_tokens for objective in objectives_of(recipe).values())


def dimension_of(recipe: Recipe) -> int | None:
    """Of the embeddings of a dual encoder; None: the recipe trains another model."""
    if not is_dual(recipe):
        return None
    dimensions = {one.dimension for one in objectives_of(recipe).values() if isinstance(one, ImageText)}
    if len(dimensions) > 1:
        raise RecipeError("a dual encoder has one dimension", where="objectives.….dimension", fix="give one")
    return dimensions.pop()


def adapted(recipe: Recipe, model: Any, processor: Any) -> Any:
    """The model with the recipe's adapters: LoRA, trained query tokens."""
    ids = query_token_ids(processor.tokenizer, query_tokens_of(recipe))
    return attach_adapters(model, lora_settings(recipe.lora) if recipe.lora else None, ids)


def lora_settings(section: LoraSection) -> LoraSettings:
    """What the adapter is made from."""
    targets = section.targets if isinstance(section.targets, str) else tuple(section.targets)
    return LoraSettings(
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=targets,
        rslora=section.rslora,
        dora=section.dora,
        init=section.init,
    )


def feature_settings(section: DataSection) -> FeatureSettings:
    """Where the frozen tower's outputs are kept."""
    return FeatureSettings(
        section.features,
        section.feature_memory_gib,
        section.feature_disk_gib,
        section.feature_dtype,
        Path(section.cache) if section.cache else DEFAULT_CACHE,
        section.workers,
    )


@dataclass(frozen=True)
class Stage:
    """One stage with every value filled in."""

    name: str
    train: tuple[str, ...]
    objectives: tuple[str, ...]
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    projector_learning_rate: float
    retrieval_learning_rate: float | None
    """None: the projector's."""
    generation_learning_rate: float | None
    """None: the projector's."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    micro_batch: float = 0.0
    """Samples in a micro-batch on average over the objectives."""

    @property
    def samples(self) -> int:
        """That the stage sees, all objectives together."""
        return round(self.steps * self.micro_batch * self.accumulation)


def stages_of(recipe: Recipe, rows: Mapping[str, int], processes: int = 1) -> list[Stage]:
    """The recipe's stages, lengths in optimiser steps.

    Args:
        rows: training rows by objective; an epoch is one pass over the rows of a stage's objectives.
    """
    training = recipe.training
    whole = StageSection(name="train")
    stages = []
    for section in recipe.stages or [whole]:
        names = tuple(section.objectives or recipe.objectives)
        batch_size = section.batch_size or training.batch_size
        accumulation = section.accumulation or training.accumulation
        steps, epochs = section.steps, section.epochs
        if steps is None and epochs is None:
            steps, epochs = training.steps, training.epochs
        if steps is None:
            per_step = _micro_batch(recipe, names, section.ratios, batch_size) * accumulation * processes
            steps = max(1, math.ceil((epochs or 1.0) * sum(rows[name] for name in names) / per_step))
        stages.append(
            Stage(
                section.name,
                tuple(section.train or _parts(recipe, names)),
                names,
                steps,
                batch_size,
                accumulation,
                section.learning_rate or training.learning_rate,
                section.projector_learning_rate or training.projector_learning_rate,
                section.retrieval_learning_rate or training.retrieval_learning_rate,
                section.generation_learning_rate or training.generation_learning_rate,
                section.ratios,
                _micro_batch(recipe, names, section.ratios, batch_size),
            )
        )
    return stages


def _micro_batch(recipe: Recipe, names: Sequence[str], ratios: Mapping[str, float], batch_size: int) -> float:
    """Samples in a micro-batch on average: objectives may have sizes of their own."""
    sections = {name: recipe.objectives[name] for name in names}
    shares = {name: ratios.get(name, section.ratio) for name, section in sections.items()}
    total = sum(shares[name] * (section.batch_size or batch_size) for name, section in sections.items())
    return total / sum(shares.values())


def _parts(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """LoRA if there is any, and what these objectives need."""
    needed = [part for name, one in objectives_of(recipe).items() if name in names for part in one.parts]
    return list(dict.fromkeys([*needed, *(["lora"] if recipe.lora else [])]))


def grounding_config(
    recipe: Recipe, stage: Stage, folder: Path, dtype: torch.dtype, validated: bool
) -> GroundingConfig:
    """Trainer arguments of one stage.

    Raises:
        SetupError: a package that `report_to` names is not installed.
        RecipeError: checkpoints are asked for at steps where nothing is validated, so that no best one can be kept.
    """
    training = recipe.training
    for package in training.report_to:
        if find_spec(package) is None:
            raise SetupError(
                f"{package} is not installed",
                where="training.report_to",
                fix=f"pip install {package}, or leave it out",
            )
    validate_every = min(training.validate_every or stage.steps, stage.steps)
    save_every = training.save_every or (
        validate_every if validated else math.ceil(stage.steps / CHECKPOINTS_A_STAGE)
    )
    if validated and save_every % validate_every:
        raise RecipeError(
            f"save_every is {save_every}, which is no multiple of validate_every, {validate_every}",
            where="training.save_every",
            fix="make it a multiple, so that the best model can be kept",
        )
    return GroundingConfig(
        output_dir=str(folder),
        train_parts=list(stage.train),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=stage.learning_rate,
        projector_learning_rate=stage.projector_learning_rate,
        retrieval_learning_rate=stage.retrieval_learning_rate,
        generation_learning_rate=stage.generation_learning_rate,
        lora_plus_ratio=recipe.lora.plus_ratio if recipe.lora else 1.0,
        lr_scheduler_type=training.schedule,
        warmup_steps=_warmup(training.warmup, stage.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=OPTIMIZERS[training.optimizer],
        activation_checkpointing=training.gradient_checkpointing,
        seed=training.seed,
        logging_steps=training.log_every,
        eval_strategy="steps" if validated else "no",
        eval_steps=validate_every,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=training.keep_checkpoints,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=recipe.data.workers,
        report_to=list(training.report_to) or "none",
        packing=recipe.data.packing,
        row_tokens=recipe.data.row_tokens,
        samples_per_image=recipe.data.samples_per_image,
        blind=recipe.blind,
    )


def _warmup(share: float, steps: int) -> float:
    """Trainer takes 1 or more as steps and less as a share, so a share is turned into steps here."""
    return float(math.ceil(share * steps))


def _source(section: SourceSection, kind: str, prompt: str | None, part: str) -> Source:
    return Source(
        path=section.path,
        images=section.images,
        annotations=section.annotations,
        split=section.split,
        columns=dict(section.columns),
        image_name=section.image_name,
        limit=section.limit,
        kind=kind,
        prompt=prompt,
        # An image with five captions is five lessons, but one question.
        expand=part == "train",
    )


def _answers(name: str, answers: list[str] | str | None) -> tuple[str, ...] | None:
    if answers is None:
        return None
    if isinstance(answers, str):
        file = Path(answers)
        if not file.is_file():
            raise DataError(
                "the list of answers is no file",
                where=f"objectives.{name}.answers: {answers}",
                fix="name a text file",
            )
        answers = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(answers)) < 2:
        raise DataError("a closed list needs two answers or more", where=f"objectives.{name}.answers")
    return tuple(dict.fromkeys(answers))
