"""Features are remembered under a fingerprint: whatever they depend on changes it, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lockadapt.architectures import layout_of, llm_of, tower_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.features.identity import feature_identity, fingerprint_of


def fingerprint(model: Any, processor: Any, stored: str = "bfloat16") -> str:
    return fingerprint_of(feature_identity(model, processor.image_processor, stored))


def _nudge(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.reshape(-1)[0] += 1


def _first(tensors: Any) -> torch.Tensor:
    return next(tensor for _, tensor in tensors if tensor.numel())


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "a tower's weight": lambda m, p: _nudge(_first(tower_of(m).named_parameters())),
    "a tower's buffer": lambda m, p: _nudge(_first(tower_of(m).named_buffers())),
    "the tower's dtype": lambda m, p: tower_of(m).to(torch.float64),
    "the tower's config": lambda m, p: setattr(tower_of(m).config, "hidden_act", "relu"),
    "the layer": lambda m, p: setattr(m.config, "vision_feature_layer", -3),
    "the strategy": lambda m, p: setattr(
        m.config,
        "vision_feature_select_strategy",
        {"full": "default", "default": "full"}[m.config.vision_feature_select_strategy],
    ),
    "the mean": lambda m, p: setattr(p.image_processor, "image_mean", [0.1, 0.2, 0.3]),
    "the size": lambda m, p: setattr(p.image_processor, "size", {"height": 48, "width": 48}),
    "the resampling": lambda m, p: setattr(p.image_processor, "resample", Image.Resampling.NEAREST),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_features_depend_on_changes_the_fingerprint(change: str, assembled: Assembled) -> None:
    model, processor = copy.deepcopy(assembled.model), copy.deepcopy(assembled.processor)
    before = fingerprint(model, processor)
    assert before == fingerprint(assembled.model, assembled.processor)
    CHANGES[change](model, processor)
    assert fingerprint(model, processor) != before


def test_a_resize_that_differs_only_in_effect_changes_it(
    assembled: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another version of a library would: same config, other pixels."""
    before = fingerprint(assembled.model, assembled.processor)
    kind = type(assembled.processor.image_processor)
    own = kind.resize

    def mirrored(self: Any, *arguments: Any, **named: Any) -> Any:
        resized = own(self, *arguments, **named)  # an array, or with torchvision a tensor
        return resized.flip(-1) if torch.is_tensor(resized) else resized[..., ::-1].copy()

    monkeypatch.setattr(kind, "resize", mirrored)
    assert fingerprint(assembled.model, assembled.processor) != before


def test_stored_dtype_changes_it(assembled: Assembled) -> None:
    fingerprints = {
        fingerprint(assembled.model, assembled.processor, s) for s in ("bfloat16", "float32", "int8")
    }
    assert len(fingerprints) == 3


def test_llm_projector_and_place_do_not(assembled: Assembled, tiny: Path, tmp_path: Path) -> None:
    """So one cache serves every LLM that is bridged to the same tower."""
    before = fingerprint(assembled.model, assembled.processor)
    loaded, processor = load_model(assembled.folder, "float32")
    assert fingerprint(loaded, processor) == before
    _nudge(_first(llm_of(loaded).named_parameters()))
    _nudge(_first(loaded.get_submodule(layout_of(loaded).projector[0]).named_parameters()))
    assert fingerprint(loaded, processor) == before
    other = assemble(tiny / "llama", assembled.report.tower, None, dtype="float32", prove=False)
    assert fingerprint(other.model, other.processor) == before
