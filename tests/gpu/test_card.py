"""What only a GPU can show: its merges beside the CPU's, 4-bit layers and packing on it, models that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.architectures.assemble import assemble
from lockadapt.data.batch import on_device
from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.models.device import ROOM, choose_device
from lockadapt.objectives.answer_tokens import sample_losses
from tests.support.adapters import Case, make, merged_and_wanted, read_all
from tests.support.packing import adapted_model, gradients, plain_and_packed
from tests.support.tiny import tiny_llm, tiny_tower

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is shown to this test: make test-gpu"),
]


def test_a_merge_is_the_cpus_but_for_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(dtype="bfloat16", hidden=256, rank=16, targets=("q_proj", "o_proj", "down_proj"))
    base, adapter, output = make(case, tmp_path)
    merge_weights(base, output, [Weighted(adapter)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain = tmp_path / "plain"
    plain.mkdir()
    merge_weights(base, plain, [Weighted(adapter)])
    ours, theirs = read_all(output), read_all(plain)
    same = sum(int((ours[name] == theirs[name]).sum()) for name in theirs)
    assert same > 0.999 * sum(tensor.numel() for tensor in theirs.values())
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_base_is_what_its_layers_multiplied_with(kind: Any, tmp_path: Path) -> None:
    merged, wanted, _ = merged_and_wanted(kind, tmp_path, "cuda")
    torch.testing.assert_close(merged, wanted, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_packed_samples_have_their_own_losses_and_gradients(quantization: str, tmp_path: Path) -> None:
    llm, tower = tiny_llm("llama", tmp_path / "llm"), tiny_tower("clip-vision", tmp_path / "tower")
    assemble(llm, tower, tmp_path / "model", dtype="float32", prove=False)
    model, processor = adapted_model(tmp_path / "model", quantization, False)
    model = model.to("cuda")
    items, *batches = plain_and_packed(processor, tmp_path, 120)
    plain, packed = (on_device(batch, torch.device("cuda")) for batch in batches)
    alone, theirs = gradients(model, plain)
    packed_rows, ours = gradients(model, packed)
    torch.testing.assert_close(packed_rows, alone, rtol=1e-4, atol=1e-4)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    model.eval()
    each = [sample_losses(model, batch, len(items)) for batch in (plain, packed)]
    torch.testing.assert_close(each[1], each[0], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_the_card_is_compared_on_the_cpu() -> None:
    free, total = torch.cuda.mem_get_info()
    assert choose_device(1 << 20) == "cuda"
    assert choose_device(total - ROOM // 2) == "cpu"
    held = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    assert choose_device(free // 2) == "cpu"
    del held
    assert choose_device(free // 4) == "cuda"
