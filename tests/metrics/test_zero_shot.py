"""Classes are means over templates, and ties do not score."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.metrics.zero_shot import class_embeddings, zero_shot_scores


def embed(texts: list[str]) -> torch.Tensor:
    """Counts of letters, not normalised."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcdp"] for text in texts])


def test_mean_over_templates() -> None:
    actual = class_embeddings(embed, ["a", "bb"], ["{}", "pp {}c"])
    by_hand = [
        (F.normalize(embed(["a"]), dim=-1) + F.normalize(embed(["pp ac"]), dim=-1)) / 2,
        (F.normalize(embed(["bb"]), dim=-1) + F.normalize(embed(["pp bbc"]), dim=-1)) / 2,
    ]
    torch.testing.assert_close(actual, F.normalize(torch.cat(by_hand), dim=-1))


def test_accuracy() -> None:
    classes = class_embeddings(embed, ["a", "b", "c", "d"], ["{}"])
    images = torch.tensor([[1.0, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0], [0.9, 0, 0.1, 0, 0]])
    assert zero_shot_scores(images, classes, torch.tensor([0, 1, 2])) == {
        "accuracy": pytest.approx(2 / 3),
        "top5": 1.0,
        "n": 3,
    }


def test_a_tie_is_wrong() -> None:
    images, classes = torch.ones(4, 8), torch.ones(6, 8)
    assert zero_shot_scores(images, classes, torch.tensor([0, 1, 2, 3]))["accuracy"] == 0
    assert zero_shot_scores(images, classes, torch.tensor([0, 1, 2, 3]))["top5"] == 0


def test_refuses() -> None:
    with pytest.raises(DataError, match="'a' is there twice"):
        class_embeddings(embed, ["a", "b", "a"])
    with pytest.raises(DataError, match="no class"):
        class_embeddings(embed, [])
    with pytest.raises(DataError, match="'a photo' has no place"):
        class_embeddings(embed, ["a"], ["a photo"])
    with pytest.raises(DataError, match="no template"):
        class_embeddings(embed, ["a"], [])
    with pytest.raises(DataError, match="2 images, but 1 labels"):
        zero_shot_scores(torch.eye(2), torch.eye(2), torch.tensor([0]))
