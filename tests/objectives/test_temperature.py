"""Temperature and bias start where they should, keep their bounds and stay float32."""

from __future__ import annotations

import math

import pytest
import torch

from lockadapt.objectives.temperature import NO_DECAY, Temperature, clamp_scale_


def test_first_values() -> None:
    clip, siglip = Temperature("infonce"), Temperature("sigmoid", negatives=511)
    assert math.isclose(clip.logit_scale.item(), math.log(1 / 0.07), rel_tol=1e-6)
    assert clip.bias() is None
    assert math.isclose(siglip.scale().item(), 10, rel_tol=1e-6)
    assert math.isclose(siglip.logit_bias.item(), -math.log(511) / 2, rel_tol=1e-6)  # type: ignore[union-attr]
    assert Temperature("sigmoid", negatives=0).bias() == 0


def test_names_are_those_without_decay() -> None:
    assert {name for name, _ in Temperature("sigmoid").named_parameters()} == set(NO_DECAY)


@pytest.mark.parametrize(("log", "scale"), [(9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2.0))])
def test_clamped(log: float, scale: float) -> None:
    temperature = Temperature("infonce")
    with torch.no_grad():
        temperature.logit_scale.fill_(log)
    temperature.clamp_()
    assert math.isclose(temperature.scale().item(), scale, rel_tol=1e-5)
    raw = torch.tensor(log)
    clamp_scale_(raw)
    assert torch.equal(raw, temperature.logit_scale.detach())


def test_gradient_reaches_the_logarithm() -> None:
    temperature = Temperature("infonce")
    (temperature.scale() * 2).backward()
    assert math.isclose(temperature.logit_scale.grad.item(), 2 / 0.07, rel_tol=1e-5)  # type: ignore[union-attr]
