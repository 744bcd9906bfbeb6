"""Where a model is compared, by the room that a card has; bytes are those that are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lockadapt.models.device import ROOM, choose_device, held_bytes, stored_bytes


def test_the_card_is_used_if_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device(0) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (ROOM + 100, 1 << 40))
    assert [choose_device(size) for size in (100, 101)] == ["cuda", "cpu"]


def test_bytes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert held_bytes(model) == 128
    model[1].weight = model[0].weight
    assert held_bytes(model) == 64
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    save_file({"b": torch.zeros(1000)}, tmp_path / "b.safetensors")
    assert 8000 < stored_bytes(tmp_path) < 8400
