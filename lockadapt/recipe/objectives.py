"""The objectives section of a recipe: one section class for each kind of objective. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from lockadapt.recipe.sections import (
    Fraction,
    KeyPath,
    Natural,
    Positive,
    RowCount,
    Section,
    Text,
    Weight,
    Width,
    refuse,
)
from lockadapt.recipe.sources import ROWS_OF_FORMATS, SourceSection

KIND = "kind of objective; default: its name"


class ObjectiveSection(Section):
    """A training objective: its rows, sampling weight and loss weight."""

    rows: ClassVar[str] = ""  # the kind of rows that it learns from, where that is not its own kind

    kind: str = Field(description=KIND)
    train: SourceSection | Annotated[list[SourceSection], Field(min_length=1)] = Field(
        description="training rows; a list mixes several sources"
    )
    validation: SourceSection | None = Field(
        default=None, description="validation rows, which select the best adapter"
    )
    test: SourceSection | None = Field(default=None, description="test rows, scored after training")
    sampling_weight: Weight = Field(
        default=1.0, description="sampling weight: share of micro-batches relative to the other objectives"
    )
    weight: Weight = Field(default=1.0, description="factor applied to its loss")
    batch_size: RowCount | None = Field(
        default=None, description="samples in a micro-batch of this objective; default: the stage's"
    )

    def sources(self, part: str) -> list[SourceSection]:
        """The sources of `train`, `validation` or `test` in their order; none where there are no rows."""
        held: SourceSection | list[SourceSection] | None = getattr(self, part)
        if held is None:
            return []
        return held if isinstance(held, list) else [held]

    @model_validator(mode="after")
    def _formats_hold_such_rows(self) -> ObjectiveSection:
        rows = self.rows or self.kind
        problems: list[tuple[KeyPath, str]] = []
        for part in ("train", "validation", "test"):
            listed = isinstance(getattr(self, part), list)
            for number, source in enumerate(self.sources(part)):
                at: KeyPath = (part, number) if listed else (part,)
                if rows not in ROWS_OF_FORMATS.get(source.format, (rows,)):
                    held = " or ".join(ROWS_OF_FORMATS[source.format])
                    text = f"format {source.format} holds {held} rows, but the kind is {self.kind}"
                    problems.append(((*at, "format"), text))
                for key in ("weight", "shuffle"):
                    if part != "train" and getattr(source, key) is not None:
                        problems.append(((*at, key), "says how training rows are drawn; leave this out"))
        refuse([*problems, *_weight_problems(self.sources("train"), isinstance(self.train, list))])
        return self


class AnswerSection(ObjectiveSection):
    """What objectives share that are evaluated by answers."""

    answers: Annotated[list[Text], Field(min_length=1)] | Text | None = Field(
        default=None,
        description="closed list of answers (or a text file, one a line): evaluation ranks them instead of "
        "generating",
    )
    max_new_tokens: Annotated[int, Field(gt=0, le=65_536)] | None = Field(
        default=None, description="maximum number of tokens generated per answer in evaluation; default 32"
    )


class CaptionSection(AnswerSection):
    """Captioning."""

    kind: Literal["caption"] = Field(default="caption", description=KIND)
    prompt: str | None = Field(default=None, description="the user's prompt for an image")


class VqaSection(AnswerSection):
    """Visual question answering."""

    kind: Literal["vqa"] = Field(default="vqa", description=KIND)
    prompt: str | None = Field(default=None, description="template containing `{question}`")

    @model_validator(mode="after")
    def _prompt_has_question_slot(self) -> VqaSection:
        refuse(_without(self, "prompt", "question"))
        return self


class GroundingSection(ObjectiveSection):
    """Grounding: the boxes of what a phrase names, as text."""

    kind: Literal["grounding"] = Field(default="grounding", description=KIND)
    prompt: str | None = Field(
        default=None, description="template containing `{phrase}`; default `Locate: {phrase}`"
    )
    box_format: Literal["qwen", "paligemma", "plain"] | None = Field(
        default=None,
        description='text of a box: `{"bbox_2d": [x1, y1, x2, y2]}` (qwen, default), location tokens of '
        "the tokenizer (paligemma), or `[x1, y1, x2, y2]` (plain)",
    )
    coordinates: Literal["xyxy", "xywh", "normalised"] | None = Field(
        default=None,
        description="numbers of a box in rows: pixels, as left, top, right, bottom (xyxy, default) or left, "
        "top, width, height (xywh), or fractions of the image's sides (normalised)",
    )
    jitter: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        default=None,
        description="largest random shift of a training box's edges, as a fraction of its width or height, "
        "drawn once for each row; default 0",
    )
    flip: bool | None = Field(
        default=None,
        description="also train on the mirror image of each row; phrases that say left or right are errors; "
        "default false",
    )
    max_new_tokens: Annotated[int, Field(gt=0, le=65_536)] | None = Field(
        default=None, description="maximum number of tokens generated per answer in evaluation; default 128"
    )

    @model_validator(mode="after")
    def _keys_have_rows_to_act_on(self) -> GroundingSection:
        problems = _without(self, "prompt", "phrase")
        sources = [s for part in ("train", "validation", "test") for s in self.sources(part)]
        if self.coordinates is not None and all(source.format in ROWS_OF_FORMATS for source in sources):
            text = "boxes of coco and refcoco are always xywh in pixels; leave this out"
            problems.append((("coordinates",), text))
        refuse(problems)
        return self


class DialogueSection(AnswerSection):
    """Dialogue: every assistant turn is learned."""

    kind: Literal["dialogue"] = Field(default="dialogue", description=KIND)


class ItcSection(ObjectiveSection):
    """Image-text contrastive learning."""

    rows: ClassVar[str] = "caption"

    kind: Literal["itc"] = Field(default="itc", description=KIND)
    mode: Literal["vlm", "dual"] | None = Field(
        default=None,
        description="encode images and texts with the whole model (vlm; default if the run also has other "
        "objectives), or with a dual encoder (dual)",
    )
    contrast: Literal["infonce", "sigmoid"] | None = Field(
        default=None,
        description="contrastive loss, that of CLIP (infonce, default) or of SigLIP (sigmoid)",
    )
    dimension: Width | None = Field(default=None, description="embedding dimension; default 128")
    queries: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        default=None,
        description="vlm: number of learned query tokens appended to image and text; default 1",
    )
    pooling: Literal["last", "mean", "pooler", "tokens"] | None = Field(
        default=None,
        description="pooling over the last token (default), the mean of all tokens, or an encoder's own "
        "pooler; vlm: `tokens` embeds every token and compares by late interaction (MaxSim)",
    )
    head: Literal["linear", "mlp"] | None = Field(
        default=None,
        description="dual: one bias-free projection a side (linear, default), or two layers with GELU "
        "between them (mlp)",
    )
    scale: Annotated[float, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="initial logit scale (1 / temperature); default 14.3, with sigmoid 10",
    )
    learn_scale: bool | None = Field(default=None, description="learn the logit scale; default true")
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="dual: dropout on the tower's outputs during training; default 0"
    )
    chunk: RowCount | None = Field(
        default=None,
        description="images or texts encoded at a time (GradCache); the loss still covers the whole batch; "
        "default 64",
    )
    image_prompt: str | None = Field(default=None, description="vlm: the user's prompt for an image")
    text_prompt: str | None = Field(default=None, description="template containing `{caption}`")
    templates: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="prompt templates with `{}` for the class name; evaluation is then zero-shot "
        "classification, with the test captions as classes",
    )

    @model_validator(mode="after")
    def _has_places_for_texts(self) -> ItcSection:
        problems = _without(self, "text_prompt", "caption")
        for number, template in enumerate(self.templates or ()):
            if template.count("{}") != 1:
                problems.append((("templates", number), "needs `{}` once, where the class goes"))
        if self.pooling == "tokens" and self.templates:
            problems.append(
                (("templates",), "a class is the mean of vectors, and `pooling: tokens` has none")
            )
        refuse(problems)
        return self


class TextToImageSection(ObjectiveSection):
    """Text-to-image generation."""

    rows: ClassVar[str] = "caption"

    kind: Literal["t2i"] = Field(default="t2i", description=KIND)
    prompt_drop: Fraction | None = Field(
        default=None,
        description="fraction of training prompts replaced by the unconditional prompt, for classifier-free "
        "guidance; default 0.1",
    )
    image_token_noise: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="fraction of input image tokens replaced at random during training, against overfitting "
        "on small data; default 0",
    )
    crops: bool | None = Field(
        default=None,
        description="also train on ten crops of each training image, half of them mirrored; default false",
    )
    guidance_scale: Annotated[float, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="classifier-free guidance scale in evaluation; default 3, 1 disables guidance",
    )
    temperature: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None, description="sampling temperature in evaluation; default 1"
    )
    top_k: Positive | None = Field(
        default=None, description="sample from the K most likely image tokens only"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="sample from the most likely image tokens up to this cumulative probability",
    )
    probe: Text | None = Field(
        default=None,
        description="folder or Hub id of a vision tower; linear probes on it, trained on the training "
        "images, score the generated images",
    )
    generation_seed: Natural | None = Field(
        default=None, description="random seed of image generation in evaluation; default 0"
    )


class PreferenceSection(ObjectiveSection):
    """Preferences: rows with a chosen and a rejected answer, learned by a stage with `method: dpo`."""

    kind: Literal["preference"] = Field(default="preference", description=KIND)


class TextSection(ObjectiveSection):
    """Plain text without images."""

    kind: Literal["text"] = Field(default="text", description=KIND)


AnyObjective = (
    CaptionSection
    | VqaSection
    | DialogueSection
    | GroundingSection
    | ItcSection
    | TextToImageSection
    | PreferenceSection
    | TextSection
)
"""A kind of objective is one class above, one entry here, and its class in `lockadapt.objectives.KINDS`."""

KINDS: dict[str, type[ObjectiveSection]] = {
    section.model_fields["kind"].default: section for section in get_args(AnyObjective)
}
"""Kind -> section, from the union."""

KEYS_OF_KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(key for key in section.model_fields if key not in ObjectiveSection.model_fields)
    for kind, section in KINDS.items()
}
"""Keys of each kind, in addition to those of every objective."""


def with_kinds(objectives: Any) -> Any:
    """Return the plain values of the objectives with every `kind` filled in that the name gives.

    A key of another kind that is null is left out: older versions wrote every key of every kind into run
    folders.

    Args:
        objectives: what stands at `objectives`; a mapping if it is well formed.

    Returns:
        The same, with kinds; what is no mapping comes back as it is.
    """
    if not isinstance(objectives, Mapping):
        return objectives
    return {name: _with_kind(name, values) for name, values in objectives.items()}


def _with_kind(name: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    values = dict(values)
    if values.get("kind") is None:
        values.pop("kind", None)
        if name in KINDS:
            values["kind"] = name
    kind = values.get("kind")
    own = KEYS_OF_KINDS.get(kind, ()) if isinstance(kind, str) else ()
    foreign = {key for keys in KEYS_OF_KINDS.values() for key in keys} - set(own)
    return {key: value for key, value in values.items() if value is not None or key not in foreign}


def kinds_in_schema(schema: dict[str, Any]) -> None:
    """Let the JSON schema of the objectives say where `kind` may be left out: where the name is a kind.

    Args:
        schema: of the `objectives` section; changed in place.
    """
    union = schema["additionalProperties"]
    named = {**union, "required": ["kind"]}
    schema["additionalProperties"] = named
    schema["properties"] = {
        kind: {"anyOf": [{"$ref": reference}, named]}
        for kind, reference in union["discriminator"]["mapping"].items()
    }


def _weight_problems(sources: list[SourceSection], listed: bool) -> list[tuple[KeyPath, str]]:
    """What is wrong with the weights of training sources: all have one, or none has."""
    unset = [number for number, source in enumerate(sources) if source.weight is None]
    if len(unset) == len(sources):
        return []
    if len(sources) == 1:
        return [
            (("train", *([0] if listed else []), "weight"), "weighs sources against others: there is one")
        ]
    text = "give all sources of the objective a weight, or none: they are shares relative to one another"
    return [(("train", number, "weight"), text) for number in unset]


def _without(section: ObjectiveSection, key: str, field: str) -> list[tuple[KeyPath, str]]:
    """The problem of a template that lacks its field."""
    template = getattr(section, key)
    if template is None or f"{{{field}}}" in template:
        return []
    return [((key,), f"needs `{{{field}}}` where the {field} goes")]
