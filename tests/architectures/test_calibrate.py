"""Calibration is exactly standardisation followed by the projector, with outputs as large as word embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.calibrate import Calibration, calibrate, embedding_rms
from lockadapt.architectures.projectors import FUSIONS, fusion_of
from lockadapt.errors import DataError


class _Stock(nn.Module):
    """As much of a stock model as calibration looks at."""

    def __init__(self, fusion: str, channels: int, hidden: int = 6) -> None:
        super().__init__()
        chosen = FUSIONS[fusion]
        self.config = SimpleNamespace(projector_hidden_act=chosen.activation)
        self.model = nn.Module()
        projector: Any = nn.Module()
        projector.linear_1, projector.linear_2 = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
        projector.act = nn.GELU() if fusion == "mlp" else nn.Identity()
        projector.forward = lambda x: projector.linear_2(projector.act(projector.linear_1(x)))
        chosen.initialise(projector, torch.Generator().manual_seed(0))
        self.model.multi_modal_projector = projector

    @property
    def projector(self) -> Any:
        return self.model.multi_modal_projector


def calibrated(model: Any, features: Any, rms: float) -> Calibration:
    return calibrate(model.projector, fusion_of(model.config), features, rms)


def _features(seed: int, images: int, tokens: int, channels: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-spread, spread, channels)
    return torch.randn(images, tokens, channels, generator=generator) * scale + 5 * scale


@pytest.mark.parametrize("fusion", FUSIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), images=st.integers(2, 5), tokens=st.integers(2, 9), spread=st.floats(0, 3))
def test_fold_is_exact(fusion: str, seed: int, images: int, tokens: int, spread: float) -> None:
    model = _Stock(fusion, channels=5)
    before = copy.deepcopy(model.projector).double()
    features = _features(seed, images, tokens, 5, spread)
    assert calibrated(model, features, 0.02).images == images
    exact = features.double()
    deviation = exact.std(dim=(0, 1), unbiased=False)
    # Narrow channels are held back on purpose; the rule is restated here.
    deviation = torch.maximum(deviation, 0.01 * deviation.sort().values[2])
    expected = before.linear_1((exact - exact.mean(dim=(0, 1))) / deviation)
    expected = before.linear_2(model.projector.act(expected))
    expected = expected * (0.02 / expected.square().mean().sqrt())
    actual = model.projector(features).double().detach()
    assert float((actual - expected.detach()).abs().max()) < 1e-5
    assert float(actual.square().mean().sqrt()) == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_batches_give_what_the_whole_gives(fusion: str) -> None:
    whole, parts = _Stock(fusion, 7), _Stock(fusion, 7)
    features = _features(1, 10, 4, 7, 1.0)
    calibrated(whole, features, 0.5)
    assert calibrated(parts, iter(features.split(3)), 0.5).images == 10
    for first, second in zip(whole.projector.parameters(), parts.projector.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_identity_of_a_linear_fusion_stays() -> None:
    model = _Stock("linear", 4)
    calibrated(model, _features(2, 4, 4, 4, 1.0), 0.3)
    assert torch.equal(model.projector.linear_2.weight, torch.eye(6))
    assert not bool(model.projector.linear_2.bias.any())


def test_dead_channels_do_no_harm() -> None:
    model = _Stock("mlp", 4)
    features = _features(3, 6, 4, 4, 0.0)
    features[..., 1] = 7.0
    calibrated(model, features, 0.1)
    stray = features.clone()
    stray[0, 0, 1] = 7.001
    with torch.no_grad():
        difference = (model.projector(stray) - model.projector(features)).abs().max()
    assert float(difference) < 0.1
    constant = _Stock("mlp", 4)
    calibrated(constant, torch.full((2, 3, 4), 2.0), 0.1)
    assert all(bool(p.isfinite().all()) for p in constant.projector.parameters())


@pytest.mark.parametrize("features", [torch.zeros(0, 4, 5), torch.full((2, 2, 5), float("nan"))])
def test_useless_features_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(DataError):
        calibrated(_Stock("mlp", 5), features, 0.1)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("tower", ["clip-vision", "mobilenet-v2"])
def test_assembled_projector_speaks_as_loud_as_words(fusion: str, tower: str, tiny: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in noise]
    result = assemble(
        tiny / "llama-tied",
        tiny / tower,
        None,
        fusion_name=fusion,
        dtype="float32",
        calibration_images=(picture for picture in pictures),
        prove=False,
    )
    model = result.model
    assert result.report.calibrated_on == 20
    values = result.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        projected = model.get_image_features(pixel_values=values).pooler_output
    projected = torch.stack(projected) if isinstance(projected, list) else projected
    table = model.get_input_embeddings().weight
    words = float(table.detach().square().mean().sqrt())
    assert embedding_rms(model) == pytest.approx(words, rel=1e-5)
    assert float(projected.square().mean().sqrt()) == pytest.approx(words, rel=0.02)
