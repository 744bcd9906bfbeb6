"""The row sources of a recipe: formats, files and columns. Does not import torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from lockadapt.recipe.sections import KeyPath, Natural, Positive, Section, Text, Weight, refuse

ROWS_OF_FORMATS = {
    "coco": ("caption", "grounding"),
    "vqa-v2": ("vqa",),
    "refcoco": ("grounding",),
    "llava-rlhf": ("preference",),
}
"""Formats that hold rows of few kinds only, in columns of their own."""

SAMPLE_FIELDS = (
    *("image", "images", "question", "answer", "answers", "caption", "captions"),
    *("messages", "prompt", "completion", "answer_type", "id", "text", "phrase", "box", "boxes"),
    *("video", "negatives", "chosen", "rejected"),
)
if TYPE_CHECKING:
    SampleField = str  # for callers any text; for the reader of a recipe a closed list
else:
    SampleField = Literal[SAMPLE_FIELDS]


class SourceSection(Section):
    """A set of rows and the images they refer to."""

    format: Literal[
        "jsonl",
        "csv",
        "imagefolder",
        "llava",
        "coco",
        "vqa-v2",
        "refcoco",
        "llava-rlhf",
        "datasets",
        "parquet",
        "webdataset",
    ] = Field(description="file format of the rows")
    path: Text = Field(
        description="file or folder (for `datasets`: folder or Hub id; for `parquet` and `webdataset` also a "
        "pattern or an fsspec URL)"
    )
    images: Text | None = Field(
        default=None, description="folder to which image names are relative; default: the folder of `path`"
    )
    annotations: Text | None = Field(
        default=None, description="vqa-v2: annotations file; refcoco: instances file of the `ann_id`s"
    )
    split: Text | None = Field(
        default=None,
        description="datasets, imagefolder, refcoco: name of the split; vqa-v2: replaces `{split}` in image "
        "names",
    )
    columns: dict[SampleField, Text | Natural] = Field(
        default_factory=dict,
        description="sample field -> column name, or index if rows are lists; fields: image, images, "
        "question, answer, answers, caption, captions, messages, prompt, completion, answer_type, id, text, "
        "phrase, box, boxes, video, negatives, chosen, rejected",
    )
    image_name: Text | None = Field(
        default=None,
        description="template that turns an image value into a file name: `{}.png`, `{:012d}.jpg`, "
        "`{split}/{}.jpg`",
    )
    streaming: bool = Field(
        default=False,
        description="datasets: stream the parquet files or WebDataset tars of a Hub id, without a download",
    )
    revision: Text | None = Field(
        default=None,
        description="with `streaming`: commit of the Hub id; default: the newest one when the run begins, "
        "which `recipe.yaml` of the run folder then names",
    )
    limit: Positive | None = Field(default=None, description="use only the first N rows")
    weight: Weight | None = Field(
        default=None,
        description="of several training sources: share of the objective's samples relative to the others; "
        "default: its number of rows",
    )
    shuffle: bool | None = Field(
        default=None,
        description="training: draw rows in a new random order in each epoch (default true), or in the "
        "order of the source",
    )

    @model_validator(mode="after")
    def _keys_of_the_format(self) -> SourceSection:
        problems: list[tuple[KeyPath, str]] = []
        if self.format == "vqa-v2" and self.annotations is None:
            problems.append(((), "format vqa-v2 needs `annotations`: the questions file holds no answers"))
        if self.format not in ("vqa-v2", "refcoco") and self.annotations is not None:
            problems.append((("annotations",), f"format {self.format} has no annotations file"))
        if self.streaming and self.format != "datasets":
            text = "is for Hub ids (format datasets); parquet and webdataset are always streamed"
            problems.append((("streaming",), text))
        if self.revision is not None and not self.streaming:
            problems.append((("revision",), "is read with `streaming: true` only"))
        named_by_split = "{split}" in (self.image_name or "")
        if self.split is not None and self.format not in _WITH_SPLITS and not named_by_split:
            problems.append((("split",), f"format {self.format} has no splits: `path` names the file"))
        if self.columns and self.format in ROWS_OF_FORMATS:
            problems.append((("columns",), f"format {self.format} has columns of its own; leave this out"))
        if self.image_name is not None and not _IMAGE_FIELD.search(self.image_name):
            problems.append((("image_name",), "needs `{}` where the image value goes, as in `{}.png`"))
        elif self.image_name is not None and not _IMAGE_NAME.fullmatch(self.image_name):
            text = "holds a field other than `{}`, `{id}`, `{:012d}` and `{split}`, or an unpaired brace"
            problems.append((("image_name",), text))
        if named_by_split and self.split is None and self.format != "vqa-v2":
            problems.append((("image_name",), "holds `{split}`, so it needs `split`"))
        refuse(problems)
        return self


_WITH_SPLITS = ("datasets", "imagefolder", "vqa-v2", "refcoco")
_IMAGE_NAME = re.compile(r"(?:[^{}]|\{\{|\}\}|\{(?:id|0)?(?::0?\d{0,2}d?)?\}|\{split\})*")
_IMAGE_FIELD = re.compile(r"\{(id|0)?(:[^{}]*)?\}")
