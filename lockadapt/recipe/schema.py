"""The recipe schema: every key with its type, default and description. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lockadapt.recipe.former_keys import with_present_keys
from lockadapt.recipe.models import LoraSection, ModelSection, with_lora_of_run
from lockadapt.recipe.objectives import (
    AnswerSection,
    AnyObjective,
    ItcSection,
    PreferenceSection,
    kinds_in_schema,
    with_kinds,
)
from lockadapt.recipe.rewards import GuardSection, RewardsSection
from lockadapt.recipe.sections import (
    NAME,
    NAME_RULE,
    Epochs,
    Fraction,
    Gibibytes,
    InconsistentError,
    KeyPath,
    Positive,
    Rate,
    RowCount,
    Section,
    Text,
    Tokens,
    Weight,
    refuse,
)
from lockadapt.recipe.sources import SourceSection

__all__ = ["InconsistentError", "Recipe", "Section", "SourceSection"]

Part = Literal["projector", "lora", "retrieval", "generation"]
Plain = bool | int | float | str
TrlValue = Plain | list[Plain] | None


class DataSection(Section):
    """How rows become batches."""

    max_length: Tokens | None = Field(
        default=None,
        description="maximum number of tokens in a sample; default: the LLM's context length. Text is "
        "truncated, images never are",
    )
    allow_special_tokens: bool = Field(
        default=False,
        description="let text in rows produce control tokens (`</s>`, `<|im_end|>`); otherwise they are "
        "encoded as plain text, and rows are refused where the tokenizer cannot do that",
    )
    rows: Literal["auto", "memory", "disk"] = Field(
        default="auto",
        description="where training rows are: memory reads and encodes all before step 1; disk reads, checks "
        "and encodes each when it is drawn; auto: disk for files of more than 50,000 rows",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error", description="stop at a missing or damaged image, or skip its samples"
    )
    max_bad_fraction: Fraction = Field(
        default=0.01, description="with `skip`: largest fraction of images that may be missing or damaged"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        default="error",
        description="stop at a row that cannot be used, such as one with an empty answer, or leave it out; "
        "rows that are refused for safety always stop",
    )
    max_bad_row_fraction: Fraction = Field(
        default=0.01, description="with `on_bad_row: skip`: largest fraction of a file's rows that may be bad"
    )
    max_pixels: Positive = Field(
        default=50_000_000,
        description="reject images, and videos whose frames have, more pixels before decoding them",
    )
    video_frames: Annotated[int, Field(gt=0, le=4096)] = Field(
        default=8, description="frames that are shown of a video, in the middles of equal parts of it"
    )
    video_rate: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="frames per second of video; longer videos get `video_frames` over their whole length",
    )
    video_times: bool = Field(
        default=False, description="write the moment of each frame before it, as `[12.5s]`"
    )
    max_video_seconds: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        default=3600.0, description="reject longer videos before decoding them"
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="number of processes that decode images"
    )
    packing: Literal["auto", "shared", "none"] = Field(
        default="auto",
        description="put samples about the same images into one row that stores their common prefix once; "
        "auto: where this is exact and saves at least 10 % of the tokens",
    )
    max_row_tokens: Tokens = Field(
        default=2048,
        description="maximum number of tokens in a packed row; samples that exceed it are split over "
        "several rows",
    )
    max_samples_per_image: Positive | None = Field(
        default=None,
        description="maximum number of samples of one image drawn together for packing; default: a quarter "
        "of the samples in an optimiser step, so that a step sees at least four images",
    )
    features: Literal["auto", "memory", "disk", "none"] = Field(
        default="auto",
        description="where to cache the frozen tower's outputs; auto: in memory, else on disk, if they fit "
        "and images are reused",
    )
    feature_memory_gib: Gibibytes = Field(
        default=2.0, description="auto: memory limit for cached features, in GiB"
    )
    feature_disk_gib: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        default=20.0,
        description="disk limit for the cached features of one tower, in GiB; larger caches are refused",
    )
    feature_dtype: Literal["bfloat16", "float32", "int8"] = Field(
        default="bfloat16", description="storage format of cached features on disk"
    )
    cache: Text | None = Field(
        default=None,
        description="folder of the feature cache, and of indexes of rows on disk; default: "
        "`~/.cache/lockadapt/features`",
    )


class TrainingSection(Section):
    """Optimisation: length (`steps` or `epochs`), batch size, learning rates and checkpoints."""

    steps: Positive | None = Field(default=None, description="optimiser steps")
    epochs: Epochs | None = Field(
        default=None, description="passes over the training rows; alternative to steps"
    )
    batch_size: RowCount = Field(default=16, description="samples in a micro-batch, per device")
    accumulation: RowCount = Field(default=1, description="micro-batches per optimiser step")
    learning_rate: Rate = Field(default=2e-4, description="learning rate of the LoRA adapters")
    projector_learning_rate: Rate | None = Field(
        default=None,
        description="learning rate of the projector; default: 1e-3 in the first stage that trains "
        "a new one, 2e-5 afterwards and where `model.vlm` brings one",
    )
    retrieval_learning_rate: Rate | None = Field(
        default=None,
        description="learning rate of query tokens, embedding projections and temperature; default: "
        "projector_learning_rate",
    )
    generation_learning_rate: Rate | None = Field(
        default=None,
        description="learning rate of the image-generation head; default: projector_learning_rate",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning-rate schedule after the warm-up"
    )
    warmup: Fraction = Field(default=0.03, description="fraction of the steps spent on learning-rate warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="decoupled weight decay, as in AdamW"
    )
    max_grad_norm: Rate = Field(default=1.0, description="gradients are clipped to this norm")
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        default="adamw",
        description="8-bit optimisers are those of bitsandbytes; paged: moves its state to the CPU when the "
        "GPU is full",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations instead of storing them: less memory, slower"
    )
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="fsdp: processes share the blocks of the LLM, one after the other whole; needs several "
        "processes",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="random seed of initialisation, sample order and dropout"
    )
    log_every: Positive = Field(default=10, description="optimiser steps between logged metrics")
    validate_every: Positive | None = Field(
        default=None, description="optimiser steps between validations; default: only at the end of the stage"
    )
    validation_samples: Positive = Field(
        default=256, description="maximum number of samples used from each validation set"
    )
    patience: Positive | None = Field(
        default=None, description="stop after this many validations without improvement"
    )
    save_every: Positive | None = Field(
        default=None, description="optimiser steps between checkpoints; default: at each validation"
    )
    keep_checkpoints: Positive = Field(
        default=2, description="number of checkpoints to keep; older ones are deleted"
    )
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(
        default_factory=list, description="trackers to log metrics to, in addition to metrics.jsonl"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSection:
        problems = _length_problems(self)
        if self.patience is not None and self.validate_every is None:
            problems.append((("patience",), "counts validations, so it needs `validate_every`"))
        if self.sharding != "none" and self.optimizer != "adamw":
            problems.append((("sharding",), "8-bit optimisers cannot be sharded; use `optimizer: adamw`"))
        refuse(problems)
        return self


class StageSection(Section):
    """One stage of a run; omitted values are taken from `training`."""

    name: Text = Field(description="name of the stage, used for its folder and metrics, e.g. align")
    train: Annotated[list[Part], Field(min_length=1)] | None = Field(
        default=None,
        description="parts to train: projector, lora, retrieval, generation; default: lora and the parts "
        "that the stage's objectives need",
    )
    steps: Positive | None = Field(default=None, description="optimiser steps")
    epochs: Epochs | None = Field(
        default=None, description="passes over the training rows; alternative to steps"
    )
    batch_size: RowCount | None = Field(default=None, description="samples in a micro-batch, per device")
    accumulation: RowCount | None = Field(default=None, description="micro-batches per optimiser step")
    learning_rate: Rate | None = Field(default=None, description="learning rate of the LoRA adapters")
    projector_learning_rate: Rate | None = Field(default=None, description="learning rate of the projector")
    retrieval_learning_rate: Rate | None = Field(
        default=None, description="learning rate of query tokens, embedding projections and temperature"
    )
    generation_learning_rate: Rate | None = Field(
        default=None, description="learning rate of the image-generation head"
    )
    objectives: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="names of the objectives to train; default: all"
    )
    sampling_weights: dict[str, Weight] = Field(
        default_factory=dict, description="objective -> its share of micro-batches in this stage"
    )
    method: Literal["dpo", "grpo"] | None = Field(
        default=None,
        description="train by TRL instead of by the objectives' losses: dpo on preferences, grpo on rewards; "
        "the stage names one objective",
    )
    rewards: RewardsSection | None = Field(default=None, description="grpo: what answers are rewarded for")
    trl: dict[str, TrlValue] = Field(
        default_factory=dict,
        description="fields of TRL's `DPOConfig` or `GRPOConfig`, such as beta, loss_type, num_generations",
    )
    guard: GuardSection = Field(
        default_factory=GuardSection, description="when a stage with a method stops for want of a signal"
    )

    @model_validator(mode="after")
    def _method_has_its_keys(self) -> StageSection:
        problems: list[tuple[KeyPath, str]] = []
        if self.method is None:
            given = [key for key in ("rewards", "trl", "guard") if key in self.model_fields_set]
            given = [
                key
                for key in given
                if getattr(self, key) != StageSection.model_fields[key].get_default(call_default_factory=True)
            ]
            problems += [((key,), "needs `method`") for key in given]
        elif self.trl:
            # Only now, as it imports torch.
            from lockadapt.models.trl_config import field_problem

            wrong = {name: field_problem(self.method, name) for name in self.trl}
            problems += [(("trl", name), text) for name, text in wrong.items() if text]
        wanted = self.rewards.model_dump(exclude_none=True) if self.rewards is not None else {}
        if self.method == "grpo" and not wanted:
            problems.append((("rewards",), "grpo needs at least one, such as `vqa: {}`"))
        if self.method == "dpo" and self.rewards is not None:
            problems.append((("rewards",), "are for grpo: dpo learns from `chosen` and `rejected`"))
        if self.method is not None and self.sampling_weights:
            problems.append((("sampling_weights",), "a stage with a method trains one objective"))
        refuse(problems)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> StageSection:
        problems = _length_problems(self)
        if not NAME.fullmatch(self.name):
            problems.append((("name",), NAME_RULE))
        train = self.train if self.train is not None else ["lora", "projector"]
        if len(set(train)) != len(train):
            problems.append((("train",), "names the same part twice"))
        if "lora" not in train and self.learning_rate is not None:
            problems.append(
                (
                    ("learning_rate",),
                    "applies to lora, which this stage does not train; for the projector, set "
                    "`projector_learning_rate`",
                )
            )
        if "projector" not in train and self.projector_learning_rate is not None:
            problems.append(
                (("projector_learning_rate",), "applies to the projector, which this stage does not train")
            )
        for part in ("retrieval", "generation"):
            key = f"{part}_learning_rate"
            if self.train is not None and part not in self.train and getattr(self, key) is not None:
                problems.append(((key,), f"applies to {part}, which this stage does not train"))
        refuse(problems)
        return self


class EvaluationSection(Section):
    """Evaluation after training and by `lockadapt eval`."""

    batch_size: RowCount = Field(default=64, description="samples per evaluation batch")
    method: Literal["auto", "generate", "rank"] = Field(
        default="auto", description="auto: rank if a closed list of answers is given, otherwise generate"
    )
    beams: Annotated[int, Field(gt=0, le=64)] = Field(
        default=1, description="beams of a generated answer (beam search); 1: greedy"
    )
    samples: Positive | None = Field(
        default=None, description="maximum number of samples from each test set; default: all"
    )


class Recipe(Section):
    """A whole run."""

    model: ModelSection = Field(description="the models to join")
    lora: LoraSection | None = Field(
        default_factory=LoraSection, description="LoRA adapters; null: train the projector only"
    )
    objectives: Annotated[
        dict[str, Annotated[AnyObjective, Field(discriminator="kind")]], Field(min_length=1)
    ] = Field(
        description="name -> objective; any name is allowed if `kind` is given",
        json_schema_extra=kinds_in_schema,
    )
    data: DataSection = Field(default_factory=DataSection, description="how rows become batches")
    training: TrainingSection = Field(
        default_factory=TrainingSection, description="length, batch size and learning rates"
    )
    stages: list[StageSection] = Field(
        default_factory=list, description="training stages; default: one stage that trains projector and LoRA"
    )
    evaluation: EvaluationSection = Field(
        default_factory=EvaluationSection, description="how answers are produced and scored"
    )
    blind: bool = Field(
        default=False,
        description="replace every image by the mean image, to measure how much can be answered from the "
        "text alone",
    )
    report: bool = Field(
        default=True,
        description="predict a few validation samples at every validation, and write `report.html` into the "
        "run folder, at validations and at the end",
    )
    output: Text | None = Field(default=None, description="run folder")

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, values: Any) -> Any:
        return with_lora_of_run(with_present_keys(values))

    # Field validators, not one validator of the whole: they also run when another section is wrong, so that
    # the user sees all problems at once. `info.data` holds the valid ones of the fields above.
    @field_validator("objectives", mode="before")
    @classmethod
    def _kinds_are_names(cls, objectives: Any) -> Any:
        return with_kinds(objectives)

    @field_validator("lora")
    @classmethod
    def _texts_stay_locked(cls, lora: LoraSection | None, info: ValidationInfo) -> LoraSection | None:
        model = info.data.get("model")
        if lora is not None and model is not None and model.lock_text:
            refuse(
                [((), "changes what the LLM makes of texts, which model.lock_text keeps: set `lora: null`")]
            )
        return lora

    @field_validator("objectives")
    @classmethod
    def _objectives_fit_one_another(cls, objectives: dict[str, AnyObjective]) -> dict[str, AnyObjective]:
        problems: list[tuple[KeyPath, str]] = [
            ((name,), NAME_RULE) for name in objectives if not NAME.fullmatch(name)
        ]
        modes = [
            objective.mode if isinstance(objective, ItcSection) else "vlm"
            for objective in objectives.values()
        ]
        dual = [name for name, mode in zip(objectives, modes, strict=True) if mode == "dual"]
        if dual and "vlm" in modes:
            text = "a dual encoder can only retrieve: use `mode: vlm` to combine itc with other objectives"
            problems += [((name, "mode"), text) for name in dual]
        refuse(problems)
        return objectives

    @field_validator("stages")
    @classmethod
    def _stages_fit_the_rest(cls, stages: list[StageSection], info: ValidationInfo) -> list[StageSection]:
        problems: list[tuple[KeyPath, str]] = []
        names = info.data.get("objectives")
        for number, stage in enumerate(stages):
            unknown = [name for name in stage.objectives or () if names is not None and name not in names]
            if unknown:
                problems.append(((number, "objectives"), f"`objectives` has no {', '.join(unknown)}"))
            unknown = [
                name for name in stage.sampling_weights if name not in (stage.objectives or names or ())
            ]
            if names is not None and unknown:
                problems.append(
                    ((number, "sampling_weights"), f"the stage has no objective {', '.join(unknown)}")
                )
            problems += _method_problems(number, stage, info.data.get("objectives"))
            if "lora" in (stage.train or ()) and info.data.get("lora", ...) is None:
                problems.append(((number, "train"), "trains lora, but `lora` is null"))
            if stage.name in [earlier.name for earlier in stages[:number]]:
                problems.append(((number, "name"), f"an earlier stage is called {stage.name} too"))
        refuse(problems)
        return stages

    @field_validator("evaluation")
    @classmethod
    def _ranking_has_answers(cls, evaluation: EvaluationSection, info: ValidationInfo) -> EvaluationSection:
        objectives = info.data.get("objectives")
        if (
            evaluation.method == "rank"
            and objectives is not None
            and not any(
                isinstance(objective, AnswerSection) and objective.answers
                for objective in objectives.values()
            )
        ):
            raise InconsistentError([(("method",), "rank needs a closed list: no objective has `answers`")])
        return evaluation


def _method_problems(
    number: int, stage: StageSection, objectives: dict[str, AnyObjective] | None
) -> list[tuple[KeyPath, str]]:
    """What does not go together of a stage's method and its objectives."""
    chosen = {
        name: objectives[name]
        for name in stage.objectives or objectives or ()
        if objectives and name in objectives
    }
    preferences = [name for name, section in chosen.items() if isinstance(section, PreferenceSection)]
    key: KeyPath = (number, "objectives")
    if not chosen:
        return []
    if stage.method is None:
        text = f"{', '.join(preferences)}: preferences are learned by a stage with `method: dpo`"
        return [(key, text)] if preferences else []
    if len(chosen) > 1:
        return [(key, f"a stage with a method names one objective, not {', '.join(chosen)}")]
    (name,) = chosen
    if any(
        source.weight is not None or source.shuffle is not None for source in chosen[name].sources("train")
    ):
        text = (
            f"{name}: a stage with a method draws all rows alike; its sources have no weight and no shuffle"
        )
        return [(key, text)]
    if stage.method == "dpo":
        return [] if preferences else [(key, "dpo needs an objective of the kind preference")]
    answered = all(section.kind in ("caption", "vqa", "dialogue", "grounding") for section in chosen.values())
    return [] if answered else [(key, "grpo needs an objective whose rows have answers, such as vqa")]


def _length_problems(part: TrainingSection | StageSection) -> list[tuple[KeyPath, str]]:
    """`steps` and `epochs` exclude one another."""
    if part.steps is None or part.epochs is None:
        return []
    return [(("epochs",), "give `steps` or `epochs`, not both (set the other to null)")]
