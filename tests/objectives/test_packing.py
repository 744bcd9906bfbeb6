"""Packed batches equal plain ones, sample by sample and gradient by gradient, for every kind of LLM; a leak goes red."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockadapt.architectures.assemble import assemble
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.objectives.answer_tokens import sample_losses
from tests.support.packing import adapted_model, gradients, plain_and_packed
from tests.support.rows import dialogue_sample, vqa_samples
from tests.support.tiny import tiny_llm, tiny_tower

FAMILIES = ["llama", "qwen3", "gpt2", "gemma", "opt", "gpt-neox", "phi3", "olmo2", "smollm3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stock folders by LLM family, assembled when they are asked for the first time."""
    return {"": tmp_path_factory.mktemp("families")}


def stock_folder(folders: dict[str, Path], family: str) -> Path:
    if family not in folders:
        root = folders[""]
        tower = root / "tower"
        if not tower.exists():
            tiny_tower("clip-vision", tower)
        assemble(tiny_llm(family, root / family), tower, root / f"{family}-vlm", dtype="float32", prove=False)
        folders[family] = root / f"{family}-vlm"
    return folders[family]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_losses_and_gradients(
    family: str, quantization: str, checkpointing: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = adapted_model(stock_folder(folders, family), quantization, checkpointing)
    items, plain, packed = plain_and_packed(processor, tmp_path, 120)
    assert packed["input_ids"].numel() < 0.7 * plain["input_ids"].numel()
    alone, theirs = gradients(model, plain)
    packed_rows, ours = gradients(model, packed)
    torch.testing.assert_close(packed_rows, alone, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    model.eval()
    each = [sample_losses(model, batch, len(items)) for batch in (plain, packed)]
    torch.testing.assert_close(each[1], each[0], rtol=1e-5, atol=1e-5)


def test_a_leak_from_branch_to_branch_is_seen(folders: dict[str, Path], tmp_path: Path) -> None:
    """What the parity test is worth: one branch that sees another, or a wrong position, is no parity."""
    model, processor = adapted_model(stock_folder(folders, "llama"), "none", False)
    items, plain, packed = plain_and_packed(processor, tmp_path, 10_000)
    alone = sample_losses(model, plain, len(items))
    tokens = packed["input_ids"].shape[1]
    leaking = {**packed, "attention_mask": torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]}
    assert (sample_losses(model, leaking, len(items)) - alone).abs().max() > 1e-3
    moved = {**packed, "position_ids": torch.arange(tokens)[None]}
    assert (sample_losses(model, moved, len(items)) - alone).abs().max() > 1e-3


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.integers(0, 16), min_size=1, max_size=20), max_row_tokens=st.integers(1, 300))
def test_any_choice_of_samples_and_any_budget(
    chosen: list[int], max_row_tokens: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = adapted_model(stock_folder(folders, "llama"), "none", False)
    model.eval()
    samples = [*vqa_samples(tmp_path, repeat=2), dialogue_sample(tmp_path)]
    items = Encoder(processor, 200).encode([samples[n] for n in chosen]).encoded
    pixels = PixelInputs(processor.image_processor, 10**6)
    plain, packed = (collate(items, pixels, 2, "vqa", limit) for limit in (None, max_row_tokens))
    alone, packed_rows = (sample_losses(model, batch, len(items)) for batch in (plain, packed))
    torch.testing.assert_close(packed_rows, alone, rtol=1e-5, atol=1e-5)
