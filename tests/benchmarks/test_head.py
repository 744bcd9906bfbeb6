"""Every way to compute the head gives the same loss and gradient, so that only their cost is compared."""

from __future__ import annotations

import argparse
import math

import pytest


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("way", ["labelled", "chunked", "trl", "trl-labelled"])
def test_same_loss_and_gradient(way: str) -> None:
    if way.startswith("trl"):
        pytest.importorskip("trl.kernels")
    from head import measure

    sizes = argparse.Namespace(dtype="fp32", hidden=16, positions=40, labelled=7, times=1)
    full, other = measure("full", 300, sizes), measure(way, 300, sizes)
    assert math.isclose(full["loss"], other["loss"], rel_tol=1e-6)
    assert math.isclose(full["gradient_norm"], other["gradient_norm"], rel_tol=1e-5)
