"""The objectives section of a recipe: row sources and the keys of each kind. Does not import torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from lockadapt.recipe.sections import (
    NAME,
    NAME_RULE,
    Fraction,
    KeyPath,
    Natural,
    Positive,
    Rate,
    Section,
    Text,
    refuse,
)

Kind = Literal["caption", "vqa", "dialogue", "itc", "t2i", "text"]
ANSWERS = ("answers", "max_new_tokens", "prompt")
KEYS_OF_KINDS: dict[str, tuple[str, ...]] = {
    "caption": ANSWERS,
    "vqa": ANSWERS,
    "dialogue": ("answers", "max_new_tokens"),
    "itc": (
        *("mode", "contrast", "dimension", "queries", "pooling", "chunk"),
        *("scale", "learn_scale", "feature_dropout", "image_prompt", "text_prompt", "templates"),
    ),
    "t2i": (
        "prompt_drop",
        "code_noise",
        "crops",
        "guidance_scale",
        "temperature",
        "top_k",
        "top_p",
        "drawing_seed",
        "probe",
    ),
    "text": (),
}
"""Keys of each kind, in addition to those of every objective."""

SAMPLE_FIELDS = (
    *("image", "images", "question", "answer", "answers", "caption", "captions"),
    *("messages", "prompt", "completion", "answer_type", "id", "text"),
)
if TYPE_CHECKING:
    SampleField = str  # for callers any text; for the reader of a recipe a closed list
else:
    SampleField = Literal[SAMPLE_FIELDS]


class SourceSection(Section):
    """A set of rows and the images they refer to."""

    format: Literal["jsonl", "csv", "imagefolder", "llava", "coco", "vqa-v2", "datasets"] = Field(
        description="file format of the rows"
    )
    path: Text = Field(description="file or folder (for `datasets`: folder or Hub id)")
    images: Text | None = Field(
        default=None, description="folder to which image names are relative; default: the folder of `path`"
    )
    annotations: Text | None = Field(default=None, description="vqa-v2: annotations file")
    split: Text | None = Field(
        default=None,
        description="datasets, imagefolder: name of the split; vqa-v2: replaces `{split}` in image names",
    )
    columns: dict[SampleField, Text | Natural] = Field(
        default_factory=dict,
        description="sample field -> column name, or index if rows are lists; fields: image, images, "
        "question, answer, answers, caption, captions, messages, prompt, completion, answer_type, id, text",
    )
    image_name: Text | None = Field(
        default=None,
        description="template that turns an image value into a file name: `{}.png`, `{:012d}.jpg`, "
        "`{split}/{}.jpg`",
    )
    limit: Positive | None = Field(default=None, description="use only the first N rows")

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
        refuse(problems)
        return self


class ObjectiveSection(Section):
    """A training objective: its rows, sampling weight and loss weight."""

    kind: Kind | None = Field(default=None, description="kind of objective; default: its name")
    train: SourceSection = Field(description="training rows")
    validation: SourceSection | None = Field(
        default=None, description="validation rows, which select the best adapter"
    )
    test: SourceSection | None = Field(default=None, description="test rows, scored after training")
    ratio: Rate = Field(
        default=1.0, description="sampling weight: share of micro-batches relative to the other objectives"
    )
    weight: Rate = Field(default=1.0, description="factor applied to its loss")
    batch_size: Positive | None = Field(
        default=None, description="samples in a micro-batch of this objective; default: the stage's"
    )
    prompt: str | None = Field(
        default=None, description="caption: the user's prompt; vqa: a template containing `{question}`"
    )
    answers: Annotated[list[Text], Field(min_length=1)] | Text | None = Field(
        default=None,
        description="closed list of answers (or a text file, one a line): evaluation ranks them instead of "
        "generating",
    )
    max_new_tokens: Positive | None = Field(
        default=None, description="maximum number of tokens generated per answer in evaluation; default 32"
    )
    mode: Literal["vlm", "dual"] | None = Field(
        default=None,
        description="itc: encode images and texts with the whole model (vlm; default if the run also has "
        "other objectives), or with a dual encoder (dual)",
    )
    contrast: Literal["infonce", "sigmoid"] | None = Field(
        default=None,
        description="itc: contrastive loss, that of CLIP (infonce, default) or of SigLIP (sigmoid)",
    )
    dimension: Positive | None = Field(default=None, description="itc: embedding dimension; default 128")
    queries: Positive | None = Field(
        default=None,
        description="itc, vlm: number of learned query tokens appended to image and text; default 1",
    )
    pooling: Literal["last", "mean", "pooler"] | None = Field(
        default=None,
        description="itc: pooling over the last token (default), the mean of all tokens, or an encoder's "
        "own pooler",
    )
    scale: Annotated[float, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="itc: initial logit scale (1 / temperature); default 14.3, with sigmoid 10",
    )
    learn_scale: bool | None = Field(default=None, description="itc: learn the logit scale; default true")
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="itc, dual: dropout on the tower's outputs during training; default 0"
    )
    chunk: Positive | None = Field(
        default=None,
        description="itc: images or texts encoded at a time (GradCache); the loss still covers the whole "
        "batch; default 64",
    )
    image_prompt: str | None = Field(default=None, description="itc, vlm: the user's prompt for an image")
    text_prompt: str | None = Field(default=None, description="itc: template containing `{caption}`")
    templates: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="itc: prompt templates with `{}` for the class name; evaluation is then zero-shot "
        "classification, with the test captions as classes",
    )

    prompt_drop: Fraction | None = Field(
        default=None,
        description="t2i: fraction of training prompts replaced by the unconditional prompt, for "
        "classifier-free guidance; default 0.1",
    )
    code_noise: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="t2i: fraction of input image tokens replaced at random during training, against "
        "overfitting on small data; default 0",
    )
    crops: bool | None = Field(
        default=None,
        description="t2i: also train on ten crops of each training image, half of them mirrored; default "
        "false",
    )
    guidance_scale: Annotated[float, Field(ge=1)] | None = Field(
        default=None,
        description="t2i: classifier-free guidance scale in evaluation; default 3, 1 disables guidance",
    )
    temperature: Rate | None = Field(
        default=None, description="t2i: sampling temperature in evaluation; default 1"
    )
    top_k: Positive | None = Field(
        default=None, description="t2i: sample from the K most likely image tokens only"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="t2i: sample from the most likely image tokens up to this cumulative probability",
    )
    probe: Text | None = Field(
        default=None,
        description="t2i: folder or Hub id of a vision tower; linear probes on it, trained on the training "
        "images, score the generated images",
    )
    drawing_seed: Natural | None = Field(
        default=None, description="t2i: random seed of image generation in evaluation; default 0"
    )


def kind_of(name: str, objective: ObjectiveSection) -> str:
    """Return the kind of an objective: its `kind`, or else its name."""
    return objective.kind or name


_WITH_SPLITS = ("datasets", "imagefolder", "vqa-v2")
_FIXED_KINDS = {"coco": "caption", "vqa-v2": "vqa"}
_IMAGE_FIELD = re.compile(r"\{(id|0)?(:[^{}]*)?\}")


def objective_problems(name: str, objective: ObjectiveSection) -> list[tuple[KeyPath, str]]:
    """Return contradictions between an objective's values, as (key path below `objectives`, message)."""
    problems: list[tuple[KeyPath, str]] = []
    if not NAME.fullmatch(name):
        problems.append(((name,), NAME_RULE))
    kind = kind_of(name, objective)
    if kind not in KEYS_OF_KINDS:
        kinds = ", ".join(KEYS_OF_KINDS)
        return [*problems, ((name,), f"needs a `kind` ({kinds}), as its name is none of them")]
    special = {key for keys in KEYS_OF_KINDS.values() for key in keys}
    for key in sorted(objective.model_fields_set & special - set(KEYS_OF_KINDS[kind])):
        if getattr(objective, key) is not None:
            problems.append(((name, key), f"objectives of kind {kind} have no such key; remove it"))
    if kind == "vqa" and objective.prompt is not None and "{question}" not in objective.prompt:
        problems.append(((name, "prompt"), "needs `{question}` where the question goes"))
    if objective.text_prompt is not None and "{caption}" not in objective.text_prompt:
        problems.append(((name, "text_prompt"), "needs `{caption}` where the caption goes"))
    for number, template in enumerate(objective.templates or ()):
        if template.count("{}") != 1:
            problems.append(((name, "templates", number), "needs `{}` once, where the class goes"))
    rows = {"itc": "caption", "t2i": "caption"}.get(kind, kind)
    for part in ("train", "validation", "test"):
        source: SourceSection | None = getattr(objective, part)
        if source is not None and _FIXED_KINDS.get(source.format, rows) != rows:
            text = f"format {source.format} holds {_FIXED_KINDS[source.format]} rows, but the kind is {kind}"
            problems.append(((name, part, "format"), text))
    return problems
