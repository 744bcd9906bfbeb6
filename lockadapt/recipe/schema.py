"""What a user may write in a recipe: every key, its type, its default and its meaning. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lockadapt.recipe.objectives import ObjectiveSection, SourceSection, kind_of, objective_problems
from lockadapt.recipe.sections import (
    NAME,
    NAME_RULE,
    Fraction,
    InconsistentError,
    KeyPath,
    Natural,
    Positive,
    Rate,
    Section,
    Text,
    refuse,
)

__all__ = ["InconsistentError", "Recipe", "Section", "SourceSection", "kind_of"]

Part = Literal["projector", "lora", "retrieval", "generation"]


class ModelSection(Section):
    """What is bridged: an LLM and a vision tower, or an existing stock VLM folder."""

    llm: Text | None = Field(default=None, description="folder or Hub id of a causal language model")
    tower: Text | None = Field(default=None, description="folder or Hub id of a vision model (CNN or ViT)")
    vlm: Text | None = Field(
        default=None, description="instead of llm and tower: a stock LLaVA, FastVLM or Janus folder or Hub id"
    )
    image_tokenizer: Text | None = Field(
        default=None,
        description="folder or Hub id of a JanusVQVAE: the model also draws; needs a SigLIP tower",
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
        default="none",
        description="of the LLM's blocks; tower, projector and head are never quantized; "
        "`int8` rounds what it multiplies to float16 (LLM.int8())",
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
    retrieval_learning_rate: Rate | None = Field(
        default=None,
        description="of query tokens, embedding projections and temperature; default: the projector's",
    )
    generation_learning_rate: Rate | None = Field(
        default=None, description="of what draws images; default: the projector's"
    )
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
        refuse(problems)
        return self


class StageSection(Section):
    """One stage of a run; what it leaves out is taken from `training`."""

    name: Text = Field(description="names its folder and its metrics, e.g. align")
    train: Annotated[list[Part], Field(min_length=1)] | None = Field(
        default=None,
        description="what learns in it: of projector, lora, retrieval, generation; default: LoRA, and what its objectives need",
    )
    steps: Positive | None = Field(default=None, description="optimiser steps")
    epochs: Rate | None = Field(default=None, description="passes over the training rows, instead of steps")
    batch_size: Positive | None = Field(default=None, description="samples in a micro-batch on one device")
    accumulation: Positive | None = Field(default=None, description="micro-batches in an optimiser step")
    learning_rate: Rate | None = Field(default=None, description="of the LoRA adapters")
    projector_learning_rate: Rate | None = Field(default=None, description="of the projector")
    retrieval_learning_rate: Rate | None = Field(
        default=None, description="of query tokens, embedding projections and temperature"
    )
    generation_learning_rate: Rate | None = Field(default=None, description="of what draws images")
    objectives: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="names of those that take part; default: all"
    )
    ratios: dict[str, Rate] = Field(
        default_factory=dict, description="objective -> its share of micro-batches in this stage"
    )

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
                    "is of lora, which this stage does not train; the projector's is `projector_learning_rate`",
                )
            )
        if "projector" not in train and self.projector_learning_rate is not None:
            problems.append(
                (("projector_learning_rate",), "is of the projector, which this stage does not train")
            )
        for part in ("retrieval", "generation"):
            key = f"{part}_learning_rate"
            if self.train is not None and part not in self.train and getattr(self, key) is not None:
                problems.append(((key,), f"is of {part}, which this stage does not train"))
        refuse(problems)
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
            for problem in objective_problems(name, objective)
        ]
        dual = [name for name, one in objectives.items() if one.mode == "dual"]
        if dual and any(kind_of(name, one) != "itc" or one.mode == "vlm" for name, one in objectives.items()):
            text = "a dual encoder only retrieves: use `mode: vlm` beside other objectives"
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
            unknown = [name for name in stage.ratios if name not in (stage.objectives or names or ())]
            if names is not None and unknown:
                problems.append(((number, "ratios"), f"the stage has no objective {', '.join(unknown)}"))
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
            and not any(objective.answers for objective in objectives.values())
        ):
            raise InconsistentError([(("method",), "rank needs a closed list: no objective has `answers`")])
        return evaluation


def _length_problems(part: TrainingSection | StageSection) -> list[tuple[KeyPath, str]]:
    """`steps` and `epochs` exclude one another."""
    if part.steps is None or part.epochs is None:
        return []
    return [(("epochs",), "give `steps` or `epochs`, not both (null takes one back)")]
