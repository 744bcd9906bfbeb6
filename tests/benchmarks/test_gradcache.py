"""The benchmark's cases give the same gradients, and its counter of live tensors counts what is alive."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_cases_agree(tmp_path: Path, kind: str) -> None:
    from gradcache import CASES, compare, measure, table

    sizes = argparse.Namespace(batch=20, chunk=4, kind=kind)
    rows = {case: measure(case, sizes, tmp_path / case) for case in CASES}
    report = compare(rows, tmp_path)
    for pair in report["pairs"]:
        assert pair["loss_difference"] <= 1e-5
        assert pair["gradient_difference"] <= 1e-5
        assert pair["largest_gradient"] > 1e-2
    # Dropout is on where it should be, and the whole batch needs more than its chunks.
    assert abs(rows["full"]["loss"] - rows["full-plain"]["loss"]) > 1e-4
    assert rows["full"]["live_mib"] > 2 * rows["gradcache"]["live_mib"]
    assert "gradcache-plain against full-plain" in table({**report, "rows": list(rows.values())})


@pytest.mark.usefixtures("scripts")
def test_live_bytes() -> None:
    from gradcache import Live

    with Live() as live:
        tensor = torch.zeros(1000)
        view = tensor.view(10, 100)[2:]
        assert live.now == live.peak == 4000
        del tensor
        assert live.now == 4000
        del view
        assert live.now == 0
        two = torch.ones(50, requires_grad=True)
        (two * 3).square().sum().backward()
    assert live.peak == 4000
    assert live.now == 2 * 200  # `two` and its gradient
