"""Parts that are tensors by themselves, as LLaVA-NeXT's `image_newline`: a live model cannot hold a second one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lockadapt
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.errors import AdapterError
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written


def test_a_run_that_trained_one_is_refused(tmp_path: Path) -> None:
    vlm = written("llava_next", tmp_path / "vlm")
    stages = [{"name": "all", "train": ["projector", "lora"], "steps": 1}]
    train(recipe_for(vlm, tmp_path, stages=stages), tmp_path / "run", Reporter(quiet=True))
    model, processor = load_model(vlm, torch.float32)
    names = set(model.state_dict())
    with pytest.raises(AdapterError, match=r"model\.image_newline is a tensor by itself") as error:
        lockadapt.attach(model, tmp_path / "run", tokenizer=processor)
    assert "lockadapt merge" in str(error.value)
    assert set(model.state_dict()) == names
