"""A projector's last layer starts by predicting the words about images, as far as images tell them."""

from __future__ import annotations

from collections import Counter
from math import log
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lockadapt.architectures.align import PENALTIES, Moments, align, moments_of, word_targets
from lockadapt.architectures.assemble import Assembled, assemble
from tests.support.tiny import tiny_tower

WORDS = ["red", "green", "blue", "yellow"]


def _folds(activations: torch.Tensor, targets: torch.Tensor) -> tuple[Moments, Moments]:
    half = len(activations) // 2
    return moments_of(activations[:half], targets[:half]), moments_of(activations[half:], targets[half:])


@pytest.mark.parametrize("bias", [True, False])
def test_align_is_ridge_regression(bias: bool) -> None:
    torch.manual_seed(0)
    activations = torch.randn(40, 7, 12) + 0.5
    targets = activations.mean(dim=1) @ torch.randn(12, 6) + 3.0 * bias
    layer = nn.Linear(12, 6, bias=bias)
    assert align(layer, _folds(activations, targets), 0.1) > 0.05

    x = activations.double().reshape(-1, 12).numpy()
    y = targets.double().repeat_interleave(7, dim=0).numpy()
    x_mean, y_mean = (x.mean(axis=0), y.mean(axis=0)) if bias else (np.zeros(12), np.zeros(6))
    centred = x - x_mean
    actual = layer(activations.reshape(-1, 12)).detach().double().numpy()
    differences = []
    for share in PENALTIES:
        # Least squares with a row for each penalised weight: the textbook's other form.
        rows = np.vstack([centred, np.sqrt(share * (centred**2).sum(axis=0).mean()) * np.eye(12)])
        weight = np.linalg.lstsq(rows, np.vstack([y - y_mean, np.zeros((12, 6))]), rcond=None)[0]
        weight *= 0.1 / np.sqrt(((centred @ weight) ** 2).mean())
        differences.append(np.abs(actual - (centred @ weight + y_mean)).max())
    # What can be predicted without an error is not smoothed more than needed.
    assert np.argmin(differences) == 0
    assert differences[0] < 1e-5


def test_a_layer_that_predicts_nothing_stays_as_it_was() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 6)
    before = layer.weight.detach().clone()
    folds = _folds(torch.randn(40, 3, 12), torch.randn(40, 6))
    assert align(layer, folds, 0.1) == 0.0
    assert torch.equal(layer.weight, before)
    same = _folds(torch.randn(40, 3, 12), torch.ones(40, 6))
    assert align(layer, same, 0.1) == 0.0
    assert torch.equal(layer.weight, before)


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    torch.manual_seed(0)
    activations, targets = torch.randn(10, 3, 4), torch.randn(10, 5)
    whole = moments_of(activations, targets)
    parts = moments_of(activations[:3], targets[:3]) + moments_of(activations[3:], targets[3:])
    for name in ("count", "h", "y", "hh", "hy", "yy"):
        torch.testing.assert_close(
            torch.as_tensor(getattr(parts, name)), torch.as_tensor(getattr(whole, name))
        )


class _Words:
    """A tokenizer with a token a word."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [sum(map(ord, word)) % 50 for word in text.split()]}


def test_words_weigh_by_their_rarity() -> None:
    table = nn.Embedding(50, 8)
    model: Any = SimpleNamespace(get_input_embeddings=lambda: table)
    texts = [["a red dog", "a dog"], ["a cat"], ["a"]]
    targets = word_targets(model, _Words(), texts)
    ids = [Counter(i for text in about for i in _Words()(text, False)["input_ids"]) for about in texts]
    expected = torch.zeros(8, dtype=torch.float64)
    total = 0.0
    for token, count in ids[0].items():
        weight = count * log(3 / sum(token in other for other in ids))
        expected += weight * table.weight[token].detach().double()
        total += weight
    torch.testing.assert_close(targets[0], expected / total)
    # All images say `a`; what says nothing else gets the mean of the others.
    torch.testing.assert_close(targets[2], targets[:2].mean(dim=0))


def _pictures(count: int) -> tuple[list[Image.Image], list[list[str]]]:
    colours = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (220, 220, 20)}
    named = WORDS + Random(0).choices(WORDS, k=count - len(WORDS))
    return [Image.new("RGB", (32, 32), colours[name]) for name in named], [
        [f"{name} shape"] for name in named
    ]


@pytest.mark.parametrize(
    ("tower", "fusion"),
    [
        ("siglip-vision", "mlp"),
        ("siglip-vision", "linear"),
        ("mobilenet-v2", "mlp"),
        ("siglip-vision", "pixel-shuffle"),
        ("siglip-vision", "pixel-shuffle-linear"),
        ("siglip-vision", "tiles"),
    ],
)
def test_image_tokens_start_near_their_words(tower: str, fusion: str, tiny: Path, tmp_path: Path) -> None:
    pictures, answers = _pictures(40)
    tiny_tower(tower, tmp_path / tower)

    def made(texts: Any) -> Assembled:
        return assemble(
            tiny / "llama-tied",
            tmp_path / tower,
            None,
            fusion_name=fusion,
            dtype="float32",
            calibration_images=pictures,
            calibration_texts=texts,
            prove=False,
        )

    aligned, random = made(answers), made(None)
    assert random.report.words_predicted is None
    assert aligned.report.words_predicted is not None
    assert aligned.report.words_predicted > 0.5
    assert _told(aligned) == WORDS
    assert _told(random) != WORDS


@torch.no_grad()
def _told(made: Assembled) -> list[str]:
    """The word of the four whose embedding the mean image token lies nearest, for a picture of each colour."""
    table = made.model.get_input_embeddings().weight
    named = {
        w: table[made.processor.tokenizer(f" {w}", add_special_tokens=False)["input_ids"]] for w in WORDS
    }
    words = torch.stack([named[word].mean(dim=0) for word in WORDS])
    tokens = []
    for picture in _pictures(len(WORDS))[0]:
        shown = made.processor.image_processor(images=[picture], return_tensors="pt")
        tokens.append(torch.cat([part.flatten(0, -2) for part in _projected(made, shown)]).mean(dim=0))
    about = torch.stack(tokens)
    likeness = (
        nn.functional.normalize(about - about.mean(dim=0))
        @ nn.functional.normalize(words - words.mean(dim=0)).T
    )
    return [WORDS[int(at)] for at in likeness.argmax(dim=1)]


def _projected(made: Assembled, shown: Any) -> list[torch.Tensor]:
    sizes = {"image_sizes": shown["image_sizes"]} if "image_sizes" in shown else {}
    output = made.model.get_image_features(pixel_values=shown["pixel_values"], **sizes).pooler_output
    return list(output) if isinstance(output, list | tuple) else [output]
