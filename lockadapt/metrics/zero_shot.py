"""Zero-shot classification: the class whose prompts, averaged, are most similar to the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.metrics.retrieval import ranks

TEMPLATES = ("{}", "a photo of a {}.", "an image of a {}.", "a picture of the {}.")
"""Where none are given; `{}` stands for the class."""


@torch.no_grad()
def class_embeddings(
    embed: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Embed each class as the mean over its prompts.

    The mean over templates of normalised embeddings, normalised again (CLIP, arXiv 2103.00020 section 3.1.4).

    Args:
        embed: texts -> (texts, size); called once for each class with all templates.
        classes: distinct names.
        templates: each with one `{}`.

    Returns:
        float32 (classes, size), L2-normalised.

    Raises:
        DataError: no class, a name twice, no template, or one without exactly one `{}`.
    """
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if not classes or twice:
        raise DataError(
            f"the class {twice[0]!r} is there twice" if twice else "there is no class",
            where="zero-shot classes",
            fix="give distinct names",
        )
    wrong = [template for template in templates if template.count("{}") != 1]
    if not templates or wrong:
        raise DataError(
            f"the template {wrong[0]!r} has no place, or several, for the class"
            if wrong
            else "there is no template",
            where="zero-shot templates",
            fix="write {} once, where the class goes: 'a photo of a {}.'",
        )
    means = [
        F.normalize(embed([template.replace("{}", name) for template in templates]).float(), dim=-1).mean(0)
        for name in classes
    ]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot_scores(
    images: Tensor, classes: Tensor, labels: Tensor, rows: int | None = None
) -> dict[str, Any]:
    """Score zero-shot classification by accuracy and top-5 accuracy.

    A tie with a wrong class counts as wrong (`lockadapt.metrics.retrieval.ranks`).

    Args:
        images: embeddings (images, size).
        classes: from `class_embeddings`.
        labels: int64 (images,), the number of each image's class.
        rows: images at a time; by default as many as fit `BLOCK_BYTES`, see `ranks`.

    Returns:
        `{"accuracy", "top5", "n"}`, fractions of the images in 0..1.

    Raises:
        DataError: no image, a label beyond the classes, not one label an image, or embeddings that are not
            finite.
    """
    if len(labels) != len(images):
        raise DataError(
            f"{len(images)} images, but {len(labels)} labels",
            where="zero-shot scoring",
            fix="give one label for each image",
        )
    labels = labels.to(images.device)
    pairs = torch.stack([torch.arange(len(labels), device=labels.device), labels], dim=1)
    rank = ranks(images, classes, pairs, rows)
    return {
        "accuracy": float((rank <= 1).double().mean()),
        "top5": float((rank <= 5).double().mean()),
        "n": len(labels),
    }
