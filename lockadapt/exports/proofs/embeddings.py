"""Compares what a contrastive run's probe embeds to in the trained model and in the merged folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures.load import load_model
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import VerificationError
from lockadapt.evaluation.embedder import Embedder, contrastive
from lockadapt.evaluation.target import add_from_folder
from lockadapt.models.device import choose_device, stored_bytes
from lockadapt.models.sources import tolerance
from lockadapt.objectives import ImageText
from lockadapt.runs.run import Run


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a probe's images and texts, float32 (images or texts, dimension)."""

    objective: ImageText
    samples: tuple[Sample, ...]
    images: Tensor
    texts: Tensor


def embed_probe(run: Run, model: nn.Module, processor: Any, samples: Sequence[Sample]) -> Embedded | None:
    """What a run's trained model makes of its probe; None if it has no contrastive objective."""
    objective = contrastive(run.objectives)
    if objective is None:
        return None
    return _embed(Embedder.of(model, processor, objective, run.experiment), samples)


def prove_embeddings(
    run: Run, folder: Path, reference: Embedded | None, dtype: torch.dtype
) -> dict[str, float]:
    """Loads the merged folder and what lies beside it, and embeds again.

    Args:
        run: the run that was merged.
        folder: the merged folder.
        reference: the trained model's embeddings; None: the run has no contrastive objective.
        dtype: that the folder is loaded in.

    Returns:
        `{"max_abs_embedding_diff": …}`; nothing without a contrastive objective.

    Raises:
        VerificationError: an entry differs by more than 1e-4 (fp32) or 3e-2 of the largest entry.
    """
    if reference is None:
        return {}
    model, processor = load_model(folder, dtype)
    model.to(choose_device(stored_bytes(folder)))
    add_from_folder(model, reference.objective, folder)
    embedded = _embed(Embedder.of(model, processor, reference.objective, run.experiment), reference.samples)
    return {"max_abs_embedding_diff": compare(reference, embedded, dtype, str(folder))}


def compare(first: Embedded, second: Embedded, dtype: torch.dtype, where: str) -> float:
    """The largest difference of an entry; errors as `prove_embeddings`."""
    largest = 0.0
    for name in ("images", "texts"):
        ours, other = getattr(first, name), getattr(second, name)
        difference = float((ours - other).abs().max())
        if not difference <= tolerance(dtype, ours):
            raise VerificationError(
                f"this is not the trained model: embeddings of {name} differ by {difference:.3g} "
                f"(allowed {tolerance(dtype, ours):.3g})",
                where=where,
                fix="please report this",
            )
        largest = max(largest, difference)
    return largest


def shown_and_said(samples: Sequence[Sample]) -> tuple[list[ImageRef], list[str]]:
    """The distinct images and the distinct answers of a probe."""
    images = list({image.key: image for sample in samples for image in sample.images}.values())
    return images, list(dict.fromkeys(sample.answer.strip() for sample in samples))


def _embed(embedder: Embedder, samples: Sequence[Sample]) -> Embedded:
    images, texts = shown_and_said(samples)
    return Embedded(embedder.objective, tuple(samples), embedder.images(images), embedder.texts(texts))
