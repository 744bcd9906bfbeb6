"""What a user may write in a recipe: every key, its type, its default and its meaning. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, values are not silently converted from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSection(Section):
    """What is bridged: an LLM and a vision tower, or an existing stock VLM folder."""

    llm: str | None = Field(None, description="folder or Hub id of a causal language model")
    tower: str | None = Field(None, description="folder or Hub id of a vision model (CNN or ViT)")
    vlm: str | None = Field(
        None, description="instead of llm and tower: a stock LLaVA or FastVLM folder or Hub id"
    )
    fusion: Literal["mlp", "linear"] = Field(
        "mlp", description="projector: two layers with GELU, or one linear layer"
    )
    image_size: Positive | None = Field(
        None,
        description="side of the square that images are resized to, in pixels; default: as the tower's own preprocessing does",
    )
    feature_layer: int = Field(
        -2,
        description="which hidden layer of a token tower is projected (feature-map towers always give the last)",
    )
    calibration_images: Annotated[int, Field(ge=0)] = Field(
        256, description="training images that the projector is calibrated on; 0 turns calibration off"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the GPU has it, else float32"
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="of the LLM's blocks; tower, projector and head are never quantized"
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if self.vlm and (self.llm or self.tower):
            raise ValueError("give either `vlm`, or `llm` and `tower`, not both")
        if not self.vlm and not (self.llm and self.tower):
            raise ValueError("needs `llm` and `tower` (or `vlm`, an existing stock checkpoint)")
        return self


class LoraSection(Section):
    """Low-rank adapters on the LLM's linear layers (arXiv 2106.09685)."""

    rank: Positive = 16
    alpha: Rate | None = Field(None, description="scale numerator; default 2 * rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear", "attention"] | list[str] = Field(
        "all-linear",
        description="all linear layers of the LLM's blocks, its attention only, or names such as q_proj",
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    dora: bool = Field(
        False, description="weight-decomposed adapters (arXiv 2402.09353); vLLM and SGLang do not serve them"
    )
    plus_ratio: Rate = Field(1.0, description="LoRA+: learning rate of B over that of A (arXiv 2402.12354)")
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        "default", description="how A is initialised; B is such that the adapter starts at zero"
    )


class SourceSection(Section):
    """One set of rows and the images that they name."""

    format: Literal["jsonl", "csv", "imagefolder", "llava", "coco", "vqa-v2", "datasets"] = Field(
        description="which reader opens it"
    )
    path: str = Field(description="file or folder (for `datasets`: folder or Hub id)")
    images: str | None = Field(
        None, description="folder that image names are relative to; default: the folder of `path`"
    )
    annotations: str | None = Field(None, description="vqa-v2: the annotations file")
    split: str | None = Field(None, description="datasets: which split")
    columns: dict[str, str | int] = Field(
        default_factory=dict,
        description="sample field -> column name, or position in a row that is a list; fields: image, images, question, answer, answers, caption, captions, messages, prompt, completion, answer_type, id",
    )
    image_name: str | None = Field(None, description="how an image value becomes a file name, e.g. `{}.png`")
    limit: Positive | None = Field(None, description="use the first N rows only")


class ObjectiveSection(Section):
    """One thing to learn: its rows, how often it is drawn and how much it counts."""

    kind: Literal["caption", "vqa", "dialogue"] | None = Field(
        None, description="default: the objective's name"
    )
    train: SourceSection
    validation: SourceSection | None = None
    test: SourceSection | None = None
    ratio: Rate = Field(1.0, description="share of micro-batches, relative to the other objectives")
    weight: Rate = Field(1.0, description="factor on its loss")
    prompt: str | None = Field(
        None, description="caption: what the user asks; vqa: a frame around `{question}`"
    )
    answers: list[str] | str | None = Field(
        None,
        description="closed list of answers (or a text file, one a line): evaluation ranks them instead of generating",
    )
    max_new_tokens: Positive = Field(32, description="longest generated answer at evaluation")


class DataSection(Section):
    """How rows become batches."""

    max_length: Positive | None = Field(
        None, description="tokens in a sample; default: the LLM's context. Text is cut, images never are"
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="a missing or damaged image stops the run, or drops its samples"
    )
    max_bad_fraction: Fraction = Field(
        0.01, description="with `skip`: the largest share of images that may be bad"
    )
    max_pixels: Positive = Field(50_000_000, description="larger images are refused before decoding")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that decode images")
    features: Literal["auto", "memory", "none"] = Field(
        "auto", description="keep the frozen tower's outputs in memory: when they fit and pay, always, never"
    )
    feature_memory_gib: Rate = Field(2.0, description="the most memory for that, in GiB")


class TrainingSection(Section):
    """How long and how fast. Length is given by `steps` or by `epochs`."""

    steps: Positive | None = None
    epochs: Rate | None = None
    batch_size: Positive = Field(16, description="samples in a micro-batch on one device")
    accumulation: Positive = Field(1, description="micro-batches in an optimiser step")
    learning_rate: Rate = Field(2e-4, description="of the LoRA adapters")
    projector_learning_rate: Rate = Field(2e-5, description="of the projector")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = Field(0.03, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Rate = 1.0
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: Positive = 10
    validate_every: Positive | None = Field(
        None, description="optimiser steps; default: at the end of the stage only"
    )
    validation_samples: Positive = Field(256, description="samples of each validation set that are used")
    patience: Positive | None = Field(
        None, description="stop after so many validations without an improvement"
    )
    save_every: Positive | None = Field(
        None, description="optimiser steps between checkpoints; default: at validations"
    )
    keep_checkpoints: Positive = 2
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(default_factory=list)


class StageSection(Section):
    """One stage of a run; what it leaves out is taken from `training`."""

    name: str
    train: list[Literal["projector", "lora"]] = Field(
        default_factory=lambda: ["projector", "lora"], min_length=1
    )
    steps: Positive | None = None
    epochs: Rate | None = None
    batch_size: Positive | None = None
    accumulation: Positive | None = None
    learning_rate: Rate | None = None
    projector_learning_rate: Rate | None = None
    objectives: list[str] | None = Field(None, description="names of those that take part; default: all")


class EvaluationSection(Section):
    """How answers are scored after training and by `lockadapt eval`."""

    batch_size: Positive = 64
    method: Literal["auto", "generate", "rank"] = Field(
        "auto", description="auto: rank where a closed list of answers is given"
    )
    samples: Positive | None = Field(None, description="of each test set; default: all")


class Recipe(Section):
    """A whole run."""

    model: ModelSection
    lora: LoraSection | None = Field(
        default_factory=LoraSection, description="null: train the projector alone"
    )
    objectives: Annotated[dict[str, ObjectiveSection], Field(min_length=1)]
    data: DataSection = Field(default_factory=DataSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    stages: list[StageSection] = Field(
        default_factory=list, description="default: one stage that trains projector and LoRA"
    )
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    blind: bool = Field(
        False, description="replace every image by the mean image: what the wording alone is worth"
    )
    output: str | None = Field(None, description="run folder")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, objective in self.objectives.items():
            if objective.kind is None and name not in ("caption", "vqa", "dialogue"):
                raise ValueError(f"objectives.{name} needs a `kind` (caption, vqa or dialogue)")
        for number, stage in enumerate(self.stages):
            unknown = set(stage.objectives or ()) - set(self.objectives)
            if unknown:
                raise ValueError(
                    f"stages[{number}].objectives names {sorted(unknown)}, which `objectives` lacks"
                )
            if self.lora is None and "lora" in stage.train:
                raise ValueError(f"stages[{number}] trains lora, but `lora` is null")
        lengths: list[Any] = [*self.stages, self.training] if self.stages else [self.training]
        for part in lengths:
            if part.steps is not None and part.epochs is not None:
                raise ValueError("give `steps` or `epochs`, not both")
        return self


def kind_of(name: str, objective: ObjectiveSection) -> str:
    """The kind of an objective: its own, or its name."""
    return objective.kind or name
