"""Proves an embedding client's folder: loaded by the client's own code, it embeds as the trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lockadapt.errors import VerificationError
from lockadapt.exports.embedding_model import EmbeddingModel, embed_images, embed_texts
from lockadapt.models.proof import run_script
from lockadapt.models.sources import some

SCRIPT = Path(__file__).parents[2] / "models" / "fresh_embeddings.py"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Tolerance of a normalised embedding's entries, by the dtype that the fresh process computes in."""


@dataclass(frozen=True)
class ExpectedEmbeddings:
    """Texts and RGB images, and what `embed_texts` and `embed_images` make of them."""

    texts: Sequence[str]
    images: Sequence[Image.Image]
    text_embeddings: Tensor
    image_embeddings: Tensor

    @classmethod
    def of(
        cls, trained: EmbeddingModel, texts: Sequence[str], images: Sequence[Image.Image]
    ) -> ExpectedEmbeddings:
        """Asks the trained model."""
        return cls(texts, images, embed_texts(trained, texts), embed_images(trained, images))


def prove_embedding_folder(
    folder: Path, reader: str, trained: EmbeddingModel, expected: ExpectedEmbeddings, dtype: torch.dtype
) -> dict[str, Any]:
    """Loads the folder in a fresh process, embeds, and compares.

    Args:
        folder: what was written.
        reader: what `fresh_embeddings.py` calls the client.
        trained: whose frames stand around texts and in images' places.
        expected: texts, images and the trained model's embeddings.
        dtype: that the folder's weights are kept in.

    Returns:
        `{"model_class", "text_difference", "image_difference"}`: the largest differences of an entry.

    Raises:
        VerificationError: a key is missing or unexpected, or an embedding differs beyond rounding.
    """
    # sentence-transformers folders write the frames themselves; the others leave them to whoever calls the
    # processor.
    framed = [trained.frames.before + text + trained.frames.after for text in expected.texts]
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        paths = [Path(scratch) / f"{number}.png" for number in range(len(expected.images))]
        for path, image in zip(paths, expected.images, strict=True):
            image.save(path)
        request = {
            "reader": reader,
            "dtype": str(dtype).removeprefix("torch."),
            "texts": list(expected.texts) if reader == "sentence-transformers" else framed,
            "images": [str(path) for path in paths],
            "image_text": trained.frames.image,
            "pooling": trained.pooling,
        }
        outputs, answer = run_script(SCRIPT, folder, request, {})
    for key in ("missing_keys", "unexpected_keys"):
        if answer[key]:
            raise VerificationError(f"{key.replace('_', ' ')}: {some(answer[key])}", where=str(folder))
    differences = {}
    for name, first in {"texts": expected.text_embeddings, "images": expected.image_embeddings}.items():
        second = outputs[name].float()
        difference = float((first - second).abs().max()) if first.shape == second.shape else float("nan")
        if not difference <= TOLERANCE[dtype]:
            raise VerificationError(
                f"embeddings of {name} differ by {difference:.3g} (allowed: {TOLERANCE[dtype]:.3g})",
                where=str(folder),
                fix="please report this",
            )
        differences[f"{name.removesuffix('s')}_difference"] = difference
    return {"model_class": answer["model_class"].rsplit(".", 1)[-1], **differences}
