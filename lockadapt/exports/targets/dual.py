"""Writes a dual encoder as a `VisionTextDualEncoderModel` folder, where that class can compute it alone."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from lockadapt.exports.embedding_model import EmbeddingModel
from lockadapt.exports.targets.embedding import EmbeddingClient, embedding_target
from lockadapt.models.quiet import quiet
from lockadapt.runs.run import Run


def refusal(trained: EmbeddingModel) -> str | None:
    """The class embeds `text_outputs[1]`: the text model, like the tower, needs a pooled vector there."""
    if not trained.dual:
        return "images and texts of this run go through one model; VisionTextDualEncoderModel has two"
    if trained.heads is not None:
        return "its heads have two layers, and VisionTextDualEncoderModel projects by one"
    if trained.frames.before or trained.frames.after:
        return "texts were trained inside a frame, which VisionTextDualEncoderModel has no place for"
    text, tower = type(trained.model.text_model).__name__, type(trained.model.vision_model).__name__
    if trained.pooling != "pooler":
        return (
            "VisionTextDualEncoderModel embeds the vector that a text model pools itself, and this "
            "run pools "
            f"{text}'s states by {trained.pooling!r}"
        )
    size = trained.processor.image_processor.size["height"]
    with torch.no_grad():
        seen = trained.model.vision_model(
            pixel_values=torch.zeros(1, 3, size, size, dtype=trained.model.dtype), return_dict=True
        )
    pooled = getattr(seen, "pooler_output", None)
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2:
        shape = tuple(pooled.shape[1:]) if isinstance(pooled, torch.Tensor) else "nothing"
        return f"VisionTextDualEncoderModel projects a vector an image, and {tower} pools to {shape}"
    return None


def write(trained: EmbeddingModel, folder: Path) -> None:
    """Model and processor, with the learned scale as `logit_scale`. See `EmbeddingClient`."""
    model = trained.model
    if trained.scale is not None:
        with torch.no_grad():
            model.logit_scale.fill_(math.log(trained.scale))
    with quiet():
        model.save_pretrained(folder)
        trained.processor.save_pretrained(folder)


def early(run: Run) -> str | None:
    """See `EmbeddingClient`."""
    if not run.dual:
        return "images and texts of this run go through one model; VisionTextDualEncoderModel has two"
    return None


def use(trained: EmbeddingModel) -> list[str]:
    """See `EmbeddingClient`."""
    return [
        "from PIL import Image",
        "from transformers import AutoProcessor, VisionTextDualEncoderModel",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = VisionTextDualEncoderModel.from_pretrained("PATH")',
        'inputs = processor(text=["a text"], images=[Image.open("image.png")], return_tensors="pt")',
        "found = model(**inputs)  # text_embeds, image_embeds",
    ]


CLIENT = EmbeddingClient("dual", "transformers", early, refusal, write, use)
DUAL = embedding_target(CLIENT, "VisionTextDualEncoderModel, of a dual encoder")
