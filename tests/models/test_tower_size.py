"""A SigLIP tower at another size computes what its own interpolation computes; other towers are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.features import projector_input
from lockadapt.errors import AssemblyError
from lockadapt.models.tower_size import at_size
from lockadapt.models.towers import load_tower
from tests.support.tiny import tiny_llm, tiny_tower


def test_interpolated_once(tmp_path: Path) -> None:
    folder = tiny_tower("siglip-vision", tmp_path / "tower")
    before, vision = load_tower(folder, torch.float32), load_tower(folder, torch.float32)
    side = vision.model.config.image_size * 2
    values = torch.randn(2, 3, side, side)
    changed = at_size(vision, side)
    expected = before.model(values, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(changed.model(values).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert changed.model.config.image_size == side
    with pytest.raises(AssemblyError, match="no multiple of the patch"):
        at_size(load_tower(folder, torch.float32), side + 1)


def test_a_stock_model_holds_it(tmp_path: Path) -> None:
    """Saved, and loaded again by the stock class, which builds it from its config."""
    llm, tower = tiny_llm("llama-tied", tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    side = load_tower(tower, torch.float32).model.config.image_size * 2
    built = assemble(llm, tower, tmp_path / "out", image_size=side, dtype="float32", prove=False)
    assert (
        built.report.tower_facts.tokens
        == 4 * assemble(llm, tower, None, prove=False).report.tower_facts.tokens
    )
    assert (
        projector_input(built.model, torch.randn(1, 3, side, side)).shape[1]
        == built.report.tower_facts.tokens
    )


@pytest.mark.parametrize("kind", ["clip-vision", "mobilenet-v2"])
def test_other_towers_stay(kind: str, tmp_path: Path) -> None:
    vision = load_tower(tiny_tower(kind, tmp_path / "tower"), torch.float32)
    before = {name: tensor.clone() for name, tensor in vision.model.state_dict().items()}
    after = at_size(vision, 128).model.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
