"""The probe reads captions off features, says how well it does on real pictures, and knows what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lockadapt.errors import DataError
from lockadapt.evaluation.probe import TowerFeatures, probe_scores, train_probe
from tests.support.tiny import tiny_tower

COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square")


def world(number: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Features that hold colour and shape in other directions, and captions."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 3, (number,), generator=generator)
    shapes = torch.randint(0, 2, (number,), generator=generator)
    noise = 0.1 * torch.randn(number, 8, generator=generator)
    features = torch.cat([torch.eye(3)[colours], torch.eye(2)[shapes], torch.zeros(number, 3)], 1) + noise
    return features, [f"a {COLOURS[c]} {SHAPES[s]}" for c, s in zip(colours, shapes, strict=True)]


def test_word_by_word() -> None:
    features, captions = world(300, 0)
    probe = train_probe(features, captions)
    assert probe.positions == (1, 2)
    assert probe.values == (("blue", "green", "red"), ("circle", "square"))
    real, told = world(200, 1)
    # Every other drawing has the wrong colour, but its shape.
    wrong = ["a blue " + c.split()[2] if n % 2 and "blue" not in c else c for n, c in enumerate(told)]
    scores = probe_scores(probe, real, wrong, real, told, real.roll(1, 0))
    changed = sum(first != second for first, second in zip(wrong, told, strict=True)) / len(told)
    assert scores["probe_accuracy_on_real"] > 0.99
    same = sum(told[n - 1] == caption for n, caption in enumerate(told)) / len(told)
    assert scores["probe_accuracy_on_tokenized"] == pytest.approx(same, abs=0.02)
    assert scores["accuracy"] == pytest.approx(1 - changed, abs=0.01)
    assert scores["by_word"]["3"] == pytest.approx([1.0, 1.0], abs=0.01)
    assert scores["by_word"]["2"][0] == pytest.approx(1 - changed, abs=0.01)


def test_what_was_never_shown_is_not_right() -> None:
    features, captions = world(100, 0)
    probe = train_probe(features, captions)
    assert not bool(probe.right(features[:1], ["a purple square"])[0, 0])
    assert not bool(probe.right(features[:1], ["a red"])[0, 1])


def test_whole_captions() -> None:
    features, captions = world(300, 0)
    long = [caption if "red" in caption else caption + " on white" for caption in captions]
    probe = train_probe(features, long)
    assert probe.positions is None
    assert len(probe.values[0]) == 6
    real, told = world(100, 1)
    told = [caption if "red" in caption else caption + " on white" for caption in told]
    assert probe_scores(probe, real, told, real, told, real)["accuracy"] > 0.95


@pytest.mark.parametrize("captions", [["a dog"] * 5, [f"number {n}" for n in range(300)]])
def test_nothing_to_tell_apart(captions: list[str]) -> None:
    with pytest.raises(DataError, match="linear probe"):
        train_probe(torch.randn(len(captions), 4), captions)


@pytest.mark.parametrize("kind", ["clip-vision", "mobilenet-v2", "siglip-vision"])
def test_features_of_towers(kind: str, tmp_path: Path) -> None:
    features = TowerFeatures(tiny_tower(kind, tmp_path / "tower"), batch_size=2)
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    actual = features(images)
    assert actual.shape[0] == 3
    torch.testing.assert_close(actual[1:2], features(images[1:2]), atol=1e-4, rtol=1e-4)
    probe = train_probe(actual.repeat(10, 1), ["a red", "a green", "a blue"] * 10)
    assert bool(probe.right(actual, ["a red", "a green", "a blue"]).all())
