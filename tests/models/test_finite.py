"""Weights that are not finite are named before anything is computed with them: in `check`, in training, in every loading."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.models.finite import require_finite
from lockadapt.planning.check import check_recipe
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.runs import values

QUIET = Reporter(quiet=True)


@pytest.mark.parametrize(("part", "source"), [("llm", "llama"), ("tower", "clip-vision")])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_check_and_train_name_the_tensor(
    part: str, source: str, value: float, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny / source, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in sorted(tensors) if key.endswith("q_proj.weight"))
    tensors[name][1, 2] = value
    save_file(tensors, file, metadata={"format": "pt"})
    given = values(tiny, tmp_path)
    given["model"][part] = str(tmp_path / "source")
    recipe = load_recipe(None, (), given).recipe
    for way in (lambda: check_recipe(recipe, QUIET), lambda: train(recipe, tmp_path / "run", QUIET)):
        with pytest.raises(VerificationError, match=r"not finite .*q_proj\.weight") as error:
            way()
        assert error.value.where == str(tmp_path / "source")


def test_large_values_are_finite() -> None:
    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(3e38)
    require_finite(layer, "here")
    with torch.no_grad():
        layer.bias[0] = float("inf")
    with pytest.raises(VerificationError, match="bias"):
        require_finite(layer, "here")
