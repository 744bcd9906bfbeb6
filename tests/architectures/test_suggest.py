"""Where no fusion is named: the usual one, the only one that holds the pair, or all that do and why others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.choose import fusion_names
from lockadapt.architectures.suggest import Holding, holdings, only_fusion
from lockadapt.errors import AssemblyError
from tests.support.tiny import tiny_llm, tiny_tower


def test_every_fusion_holds_a_pair_or_says_why_not(tiny: Path, tmp_path: Path) -> None:
    entries = holdings(tiny / "llama", tiny_tower("siglip-vision", tmp_path / "tower"))
    assert tuple(entry.fusion for entry in entries) == fusion_names()
    held = {entry.fusion: entry.model_class for entry in entries if entry.model_class}
    assert held["mlp"] == held["linear"] == "LlavaForConditionalGeneration"
    assert held["pixel-shuffle"] == "AyaVisionForConditionalGeneration"
    assert held["pixel-shuffle-linear"] == "Idefics3ForConditionalGeneration"
    assert held["tiles"] == "LlavaNextForConditionalGeneration"
    assert all(bool(entry.model_class) != bool(entry.reason) for entry in entries)


def test_the_usual_fusion_is_taken_where_it_holds(tiny: Path) -> None:
    made = assemble(tiny / "llama", tiny / "clip-vision", fusion_name=None, dtype="float32", prove=False)
    assert made.report.fusion == "mlp"


def test_the_only_fusion_that_holds_is_taken(tiny: Path, tmp_path: Path) -> None:
    llm = tiny_llm("bert", tmp_path / "llm")
    with pytest.raises(AssemblyError):
        assemble(llm, tiny / "clip-vision", dtype="float32", prove=False)
    entries = [entry for entry in holdings(llm, tiny / "clip-vision") if entry.model_class]
    made = assemble(llm, tiny / "clip-vision", fusion_name=None, dtype="float32", prove=False)
    assert [made.report.fusion] == [entry.fusion for entry in entries]
    assert type(made.model) is architecture_of(made.model).model_class


def test_what_was_measured_is_the_reason(tiny: Path, tmp_path: Path) -> None:
    llm = tiny_llm("cohere", tmp_path / "llm")
    reasons = {entry.fusion: entry.reason for entry in holdings(llm, tiny / "clip-vision")}
    for fusion in ("mlp", "linear", "pixel-shuffle", "pixel-shuffle-linear", "tiles"):
        assert "a logit scale (its logits are 0.0625 times head(hidden))" in str(reasons[fusion])


def test_several_are_named_with_the_others_reasons() -> None:
    usual = AssemblyError("it has a logit scale", where="somewhere", fix="another LLM")
    entries = [Holding("mlp", None, "scaled"), Holding("a", "A"), Holding("b", "B")]
    with pytest.raises(AssemblyError, match=r"mlp does not hold .* and a, b do \(not mlp: scaled\)"):
        only_fusion(entries, usual)
    assert only_fusion(entries[:2], usual) == "a"
    with pytest.raises(AssemblyError, match=r"no fusion holds .* \(mlp: scaled\)"):
        only_fusion(entries[:1], usual)
