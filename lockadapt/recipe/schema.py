"""What a user may write in a recipe: every key, its type, its default and its meaning. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
KeyPath = tuple[str | int, ...]
Kind = Literal["caption", "vqa", "dialogue"]
Part = Literal["projector", "lora"]
SAMPLE_FIELDS = (
    *("image", "images", "question", "answer", "answers", "caption", "captions"),
    *("messages", "prompt", "completion", "answer_type", "id"),
)
if TYPE_CHECKING:
    SampleField = str  # for callers any text; for the reader of a recipe a closed list
else:
    SampleField = Literal[SAMPLE_FIELDS]


class InconsistentError(ValueError):
    """Values that are each valid but contradict one another.

    `problems` are (key path below the section that was checked, what is wrong) pairs, so that the reader of a
    recipe can point at the line of each.
    """

    def __init__(self, problems: Sequence[tuple[KeyPath, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(".".join(map(str, path)) + ": " * bool(path) + text for path, text in problems)
        )


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, values are never converted from other types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


class ModelSection(Section):
    """What is bridged: an LLM and a vision tower, or an existing stock VLM folder."""

    llm: Text | None = Field(default=None, description="folder or Hub id of a causal language model")
    tower: Text | None = Field(default=None, description="folder or Hub id of a vision model (CNN or ViT)")
    vlm: Text | None = Field(
        default=None, description="instead of llm and tower: a stock LLaVA or FastVLM folder or Hub id"
    )
    fusion: Literal["mlp", "linear"] = Field(
        default="mlp", description="projector: two layers with GELU, or one linear layer"
    )
    image_size: Positive | None = Field(
        default=None,
        description="side of the square that images are resized to, in pixels; default: as the tower's own preprocessing does",
    )
    feature_layer: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=-2,
        description="which hidden layer of a token tower is projected (feature-map towers always give the last)",
    )
    calibration_images: Natural = Field(
        default=256,
        description="training images that the projector is calibrated on; 0 turns calibration off",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 where the GPU has it, else float32"
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        default="none", description="of the LLM's blocks; tower, projector and head are never quantized"
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if self.vlm and (self.llm or self.tower):
            raise InconsistentError([(("vlm",), "give either `vlm`, or `llm` and `tower`, not both")])
        if not self.vlm and not (self.llm and self.tower):
            raise InconsistentError(
                [((), "needs `llm` and `tower` (or `vlm`, an existing stock checkpoint)")]
            )
        return self


class LoraSection(Section):
    """Low-rank adapters on the LLM's linear layers (arXiv 2106.09685)."""

    rank: Positive = Field(default=16, description="width of the adapters")
    alpha: Rate | None = Field(default=None, description="scale numerator; default 2 * rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="on the input of the adapters"
    )
    targets: Literal["all-linear", "attention"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="all-linear",
        description="all linear layers of the LLM's blocks, its attention only, or names such as q_proj",
    )
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    dora: bool = Field(
        default=False,
        description="weight-decomposed adapters (arXiv 2402.09353); vLLM and SGLang do not serve them",
    )
    plus_ratio: Rate = Field(
        default=1.0, description="LoRA+: learning rate of B over that of A (arXiv 2402.12354)"
    )
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        default="default", description="how A is initialised; B is such that the adapter starts at zero"
    )


class SourceSection(Section):
    """One set of rows and the images that they name."""

    format: Literal["jsonl", "csv", "imagefolder", "llava", "coco", "vqa-v2", "datasets"] = Field(
        description="which reader opens it"
    )
    path: Text = Field(description="file or folder (for `datasets`: folder or Hub id)")
    images: Text | None = Field(
        default=None, description="folder that image names are relative to; default: the folder of `path`"
    )
    annotations: Text | None = Field(default=None, description="vqa-v2: the annotations file")
    split: Text | None = Field(
        default=None,
        description="datasets, imagefolder: which split; vqa-v2: what `{split}` in image names is",
    )
    columns: dict[SampleField, Text | Natural] = Field(
        default_factory=dict,
        description="sample field -> column name, or position in a row that is a list; fields: image, images, question, answer, answers, caption, captions, messages, prompt, completion, answer_type, id",
    )
    image_name: Text | None = Field(
        default=None,
        description="how an image value becomes a file name: `{}.png`, `{:012d}.jpg`, `{split}/{}.jpg`",
    )
    limit: Positive | None = Field(default=None, description="use the first N rows only")

    @model_validator(mode="after")
    def _keys_of_the_format(self) -> SourceSection:
        problems: list[tuple[KeyPath, str]] = []
        if self.format == "vqa-v2" and self.annotations is None:
            problems.append(((), "format vqa-v2 needs `annotations`: the questions file holds no answers"))
        if self.format != "vqa-v2" and self.annotations is not None:
            problems.append((("annotations",), f"format {self.format} has no annotations file"))
        named_by_split = "{split}" in (self.image_name or "")
        if self.split is not None and self.format not in _WITH_SPLITS and not named_by_split:
            problems.append((("split",), f"format {self.format} has no splits: `path` names the file"))
        if self.columns and self.format in _FIXED_KINDS:
            problems.append((("columns",), f"format {self.format} has columns of its own; leave this out"))
        if self.image_name is not None and not _IMAGE_FIELD.search(self.image_name):
            problems.append((("image_name",), "needs `{}` where the image value goes, as in `{}.png`"))
        _refuse(problems)
        return self


class ObjectiveSection(Section):
    """One thing to learn: its rows, how often it is drawn and how much it counts."""

    kind: Kind | None = Field(default=None, description="default: the objective's name")
    train: SourceSection = Field(description="rows to learn from")
    validation: SourceSection | None = Field(default=None, description="rows that choose the best adapter")
    test: SourceSection | None = Field(default=None, description="rows that are scored after training")
    ratio: Rate = Field(default=1.0, description="share of micro-batches, relative to the other objectives")
    weight: Rate = Field(default=1.0, description="factor on its loss")
    prompt: str | None = Field(
        default=None, description="caption: what the user asks; vqa: a frame around `{question}`"
    )
    answers: Annotated[list[Text], Field(min_length=1)] | Text | None = Field(
        default=None,
        description="closed list of answers (or a text file, one a line): evaluation ranks them instead of generating",
    )
    max_new_tokens: Positive = Field(default=32, description="longest generated answer at evaluation")


class DataSection(Section):
    """How rows become batches."""

    max_length: Positive | None = Field(
        default=None,
        description="tokens in a sample; default: the LLM's context. Text is cut, images never are",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error", description="a missing or damaged image stops the run, or drops its samples"
    )
    max_bad_fraction: Fraction = Field(
        default=0.01, description="with `skip`: the largest share of images that may be bad"
    )
    max_pixels: Positive = Field(default=50_000_000, description="larger images are refused before decoding")
    workers: Natural = Field(default=0, description="processes that decode images")
    packing: Literal["auto", "shared", "none"] = Field(
        default="auto",
        description="samples about the same images share a row in which common beginnings stand once: where it is exact and saves a tenth of the tokens, always, never",
    )
    row_tokens: Positive = Field(
        default=2048, description="longest packed row; more samples of one image are divided"
    )
    samples_per_image: Positive | None = Field(
        default=None,
        description="the most samples of one image that packing draws together; default: a quarter of an optimiser step's, so that a step sees four images or more",
    )
    features: Literal["auto", "memory", "disk", "none"] = Field(
        default="auto",
        description="where the frozen tower's outputs are kept; auto: in memory, or else on disk, if they fit and pay",
    )
    feature_memory_gib: Rate = Field(default=2.0, description="auto: the most memory for them, in GiB")
    feature_disk_gib: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="the most disk for those of one tower, in GiB; more is refused"
    )
    feature_dtype: Literal["bfloat16", "float32", "int8"] = Field(
        default="bfloat16", description="how they are stored on disk"
    )
    cache: Text | None = Field(
        default=None, description="folder for them; default: `~/.cache/lockadapt/features`"
    )


class TrainingSection(Section):
    """How long and how fast. Length is given by `steps` or by `epochs`."""

    steps: Positive | None = Field(default=None, description="optimiser steps")
    epochs: Rate | None = Field(default=None, description="passes over the training rows, instead of steps")
    batch_size: Positive = Field(default=16, description="samples in a micro-batch on one device")
    accumulation: Positive = Field(default=1, description="micro-batches in an optimiser step")
    learning_rate: Rate = Field(default=2e-4, description="of the LoRA adapters")
    projector_learning_rate: Rate = Field(default=2e-5, description="of the projector")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="of the learning rates after the warm-up"
    )
    warmup: Fraction = Field(default=0.03, description="share of the steps in which the learning rates rise")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="decoupled, as AdamW does it"
    )
    max_grad_norm: Rate = Field(default=1.0, description="longer gradients are scaled down to this norm")
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        default="adamw", description="the 8-bit ones are bitsandbytes'; paged: moves its state off a full GPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them: less memory, slower"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of initialisation, order of samples and dropout"
    )
    log_every: Positive = Field(default=10, description="optimiser steps between lines of metrics")
    validate_every: Positive | None = Field(
        default=None, description="optimiser steps; default: at the end of the stage only"
    )
    validation_samples: Positive = Field(
        default=256, description="samples of each validation set that are used"
    )
    patience: Positive | None = Field(
        default=None, description="stop after so many validations without an improvement"
    )
    save_every: Positive | None = Field(
        default=None, description="optimiser steps between checkpoints; default: at validations"
    )
    keep_checkpoints: Positive = Field(default=2, description="older checkpoints are deleted")
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(
        default_factory=list, description="services that metrics are sent to, beside metrics.jsonl"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSection:
        problems = _length_problems(self)
        if self.patience is not None and self.validate_every is None:
            problems.append((("patience",), "counts validations: needs `validate_every` too"))
        _refuse(problems)
        return self


class StageSection(Section):
    """One stage of a run; what it leaves out is taken from `training`."""

    name: Text = Field(description="names its folder and its metrics, e.g. align")
    train: list[Part] = Field(
        default_factory=lambda: list[Part](("projector", "lora")),
        min_length=1,
        description="what learns in it",
    )
    steps: Positive | None = Field(default=None, description="optimiser steps")
    epochs: Rate | None = Field(default=None, description="passes over the training rows, instead of steps")
    batch_size: Positive | None = Field(default=None, description="samples in a micro-batch on one device")
    accumulation: Positive | None = Field(default=None, description="micro-batches in an optimiser step")
    learning_rate: Rate | None = Field(default=None, description="of the LoRA adapters")
    projector_learning_rate: Rate | None = Field(default=None, description="of the projector")
    objectives: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="names of those that take part; default: all"
    )

    @model_validator(mode="after")
    def _consistent(self) -> StageSection:
        problems = _length_problems(self)
        if not _NAME.fullmatch(self.name):
            problems.append((("name",), _NAME_RULE))
        if len(set(self.train)) != len(self.train):
            problems.append((("train",), "names the same part twice"))
        if "lora" not in self.train and self.learning_rate is not None:
            problems.append(
                (
                    ("learning_rate",),
                    "is of lora, which this stage does not train; the projector's is `projector_learning_rate`",
                )
            )
        if "projector" not in self.train and self.projector_learning_rate is not None:
            problems.append(
                (("projector_learning_rate",), "is of the projector, which this stage does not train")
            )
        _refuse(problems)
        return self


class EvaluationSection(Section):
    """How answers are scored after training and by `lockadapt eval`."""

    batch_size: Positive = Field(default=64, description="samples that are answered at once")
    method: Literal["auto", "generate", "rank"] = Field(
        default="auto", description="auto: rank where a closed list of answers is given"
    )
    samples: Positive | None = Field(default=None, description="of each test set; default: all")


class Recipe(Section):
    """A whole run."""

    model: ModelSection = Field(description="what is bridged")
    lora: LoraSection | None = Field(
        default_factory=LoraSection, description="null: train the projector alone"
    )
    objectives: Annotated[dict[str, ObjectiveSection], Field(min_length=1)] = Field(
        description="name -> what is learnt; a name is free where `kind` is given"
    )
    data: DataSection = Field(default_factory=DataSection, description="how rows become batches")
    training: TrainingSection = Field(default_factory=TrainingSection, description="how long and how fast")
    stages: list[StageSection] = Field(
        default_factory=list, description="default: one stage that trains projector and LoRA"
    )
    evaluation: EvaluationSection = Field(
        default_factory=EvaluationSection, description="how answers are scored"
    )
    blind: bool = Field(
        default=False, description="replace every image by the mean image: what the wording alone is worth"
    )
    output: Text | None = Field(default=None, description="run folder")

    # Field validators, not one validator of the whole: they also run when another section is wrong, so that
    # the user sees all problems at once. `info.data` holds the valid ones of the fields above.
    @field_validator("objectives")
    @classmethod
    def _objectives_are_complete(cls, objectives: dict[str, ObjectiveSection]) -> dict[str, ObjectiveSection]:
        problems = [
            problem
            for name, objective in objectives.items()
            for problem in _objective_problems(name, objective)
        ]
        _refuse(problems)
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
            if "lora" in stage.train and info.data.get("lora", ...) is None:
                problems.append(((number, "train"), "trains lora, but `lora` is null"))
            if stage.name in [earlier.name for earlier in stages[:number]]:
                problems.append(((number, "name"), f"an earlier stage is called {stage.name} too"))
        _refuse(problems)
        return stages

    @field_validator("evaluation")
    @classmethod
    def _ranking_has_answers(cls, evaluation: EvaluationSection, info: ValidationInfo) -> EvaluationSection:
        objectives = info.data.get("objectives")
        if (
            evaluation.method == "rank"
            and objectives is not None
            and not any(objective.answers for objective in objectives.values())
        ):
            raise InconsistentError([(("method",), "rank needs a closed list: no objective has `answers`")])
        return evaluation


def kind_of(name: str, objective: ObjectiveSection) -> str:
    """The kind of an objective: its own, or its name."""
    return objective.kind or name


_WITH_SPLITS = ("datasets", "imagefolder", "vqa-v2")
_FIXED_KINDS = {"coco": "caption", "vqa-v2": "vqa"}
_IMAGE_FIELD = re.compile(r"\{(id|0)?(:[^{}]*)?\}")
# Objective and stage names become folder names and keys of metrics.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_NAME_RULE = "a name is a letter and up to 63 letters, digits, `-` or `_`"


def _objective_problems(name: str, objective: ObjectiveSection) -> list[tuple[KeyPath, str]]:
    """What is wrong with an objective beyond its single values, as (key path below `objectives`, text)."""
    problems: list[tuple[KeyPath, str]] = []
    if not _NAME.fullmatch(name):
        problems.append(((name,), _NAME_RULE))
    kind = kind_of(name, objective)
    if kind not in ("caption", "vqa", "dialogue"):
        problems.append(((name,), "needs a `kind` (caption, vqa or dialogue), as its name is none of them"))
    if kind == "vqa" and objective.prompt is not None and "{question}" not in objective.prompt:
        problems.append(((name, "prompt"), "needs `{question}` where the question goes"))
    if kind == "dialogue" and objective.prompt is not None:
        problems.append(((name, "prompt"), "a dialogue brings its own prompts; leave this out"))
    for part in ("train", "validation", "test"):
        source: SourceSection | None = getattr(objective, part)
        if source is not None and _FIXED_KINDS.get(source.format, kind) != kind:
            text = f"format {source.format} holds {_FIXED_KINDS[source.format]} rows, but the kind is {kind}"
            problems.append(((name, part, "format"), text))
    return problems


def _length_problems(part: TrainingSection | StageSection) -> list[tuple[KeyPath, str]]:
    """`steps` and `epochs` exclude one another."""
    if part.steps is None or part.epochs is None:
        return []
    return [(("epochs",), "give `steps` or `epochs`, not both (null takes one back)")]


def _refuse(problems: Sequence[tuple[KeyPath, str]]) -> None:
    """Raise what was found, if anything."""
    if problems:
        raise InconsistentError(problems)
