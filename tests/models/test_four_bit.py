"""4-bit layers compute the same on every kind of processor, are refused once repacked, and doctor says what this one does."""

from __future__ import annotations

import importlib
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from lockadapt.errors import VerificationError
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from lockadapt.models import four_bit
from lockadapt.models.four_bit import keep_as_trained, processor_misreads_scales, restore_switches, switches
from lockadapt.tuning.quantize import dequantized_weight

doctor = importlib.import_module("lockadapt.cli.doctor")


def layer(rows: int = 64, columns: int = 128, *, nested: bool = True, repacks: bool = True) -> Any:
    """An NF4 layer in evaluation mode, as on a processor with AVX512-BF16 unless `repacks` is off."""
    torch.manual_seed(0)
    made = Linear4bit(
        columns, rows, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=nested
    )
    made.support_avx512bf16_for_cpu = repacks
    return made.to("cpu").eval()


def forward(module: nn.Module, columns: int = 128) -> Tensor:
    with torch.no_grad():
        return module(torch.linspace(-1, 1, 3 * columns).reshape(3, columns))


@pytest.mark.parametrize("nested", [True, False])
def test_both_kinds_of_processor_compute_the_same(nested: bool) -> None:
    given = [layer(nested=nested, repacks=repacks) for repacks in (True, False)]
    bytes_before = given[0].weight.data.clone()
    for model in given:
        keep_as_trained(model)
    assert torch.equal(forward(given[0]), forward(given[1]))
    assert torch.equal(given[0].weight.data, bytes_before)
    assert torch.equal(forward(given[0]), forward(given[0].train()))


def test_what_it_guards_against_is_so() -> None:
    """Should bitsandbytes stop rounding scales, this tells that the door may go."""
    packed, kept = layer(), layer()
    wanted = dequantized_weight(kept, torch.float32)
    weight, state = packed.weight, packed.weight.quant_state
    weight.data, state = bnb._convert_weight_packed_for_cpu(weight.data, state)
    weight.data, weight.quant_state = bnb._convert_weight_packed_for_cpu_inverse(weight.data, state)
    assert not torch.equal(dequantized_weight(packed, torch.float32), wanted)


@pytest.mark.parametrize("nested", [True, False])
def test_a_repacked_layer_is_refused_and_no_switch_is_touched(nested: bool) -> None:
    model = nn.ModuleDict({"first": layer(), "second": layer(nested=nested)})
    weight = model["second"].weight
    weight.data, _ = bnb._convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    with pytest.raises(VerificationError, match=r"second: .*AVX512-BF16") as refused:
        keep_as_trained(model)
    assert "load the model again" in (refused.value.fix or "")
    assert [may for _, may in switches(model)] == [True, True]
    with pytest.raises(VerificationError, match="repacked"):
        dequantized_weight(model["second"], torch.float32)


def test_switches_come_back() -> None:
    model = nn.Sequential(layer(), nn.Linear(64, 64), layer(repacks=False))
    before = switches(model)
    keep_as_trained(model)
    assert [may for _, may in switches(model)] == [False, False]
    restore_switches(before)
    assert [may for _, may in switches(model)] == [True, False]


def test_a_plain_model_passes() -> None:
    keep_as_trained(nn.Linear(4, 4))
    assert switches(nn.Linear(4, 4)) == ()


@pytest.mark.parametrize("columns", [32, 40, 64, 96, 128, 192, 208])
def test_pieces_are_read_as_the_whole_is(columns: int) -> None:
    """Also where blocks cross the ends of rows, which bitsandbytes reads in one way or another on different processors."""
    torch.manual_seed(1)
    stored = torch.randn(192, columns) * torch.linspace(0.1, 9, 192).unsqueeze(1)
    whole = nn.Module()
    whole.weight = Params4bit(stored, quant_type="nf4", compress_statistics=True).to("cpu")
    recipe = QuantizationRoundTrip("nf4", torch.float32)
    shared = recipe.prepare(lambda first, last: stored[first:last], 192, 64)
    pieces = [recipe.rows(stored[first : first + 64], first, shared) for first in (0, 64, 128)]
    assert torch.equal(torch.cat(pieces), dequantized_weight(whole, torch.float32))


@pytest.mark.parametrize("columns", [32, 40, 64, 96, 208])
def test_what_a_gpu_trained_is_read_with_the_right_scales_on_every_processor(columns: int) -> None:
    torch.manual_seed(3)
    stored = torch.randn(192, columns) * torch.linspace(0.1, 9, 192).unsqueeze(1)
    codes, state = bnb.quantize_4bit(stored, blocksize=64, quant_type="nf4", compress_statistics=True)
    scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    right = (state.code[_nibbles(codes)].view(-1, 64) * scales.view(-1, 1)).view(stored.shape)
    recipe = QuantizationRoundTrip("nf4", torch.float32, on_cpu=False)
    shared = recipe.prepare(lambda first, last: stored[first:last], 192, 64)
    pieces = [recipe.rows(stored[first : first + 64], first, shared) for first in (0, 64, 128)]
    assert torch.equal(torch.cat(pieces), right)


def test_layers_that_this_processor_misreads_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "processor_misreads_scales", lambda: True)
    model = nn.ModuleDict({"right": layer(), "wrong": layer(columns=96), "slow": layer(columns=40)})
    with pytest.warns(UserWarning, match=r"scales of 1 4-bit layers on this processor \(wrong"):
        keep_as_trained(model)


def test_misreading_is_what_was_found_by_trying() -> None:
    torch.manual_seed(2)
    codes, state = bnb.quantize_4bit(torch.randn(8, 96), blocksize=64, quant_type="nf4")
    right = (state.code[_nibbles(codes)].view(-1, 64) * state.absmax.view(-1, 1)).view(8, 96)
    assert torch.equal(bnb.dequantize_4bit(codes, state), right) is not processor_misreads_scales()


@pytest.mark.parametrize(
    ("repacks", "message"), [(True, "lockadapt stops it"), (False, "computed as they are stored")]
)
@pytest.mark.parametrize("misreads", [True, False])
def test_doctor_says_which_processor_this_is(
    repacks: bool, message: str, misreads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bit, "processor_repacks", lambda: repacks)
    monkeypatch.setattr(four_bit, "processor_misreads_scales", lambda: misreads)
    report = doctor._look()
    assert message in report["facts"]["4-bit layers on this CPU"]
    assert any("misreads" in problem["what"] for problem in report["problems"]) is misreads
    assert not any(problem["fatal"] for problem in report["problems"])


def _nibbles(codes: Tensor) -> Tensor:
    """Indices into the code, two from every byte."""
    return torch.stack([codes.flatten() >> 4, codes.flatten() & 15], 1).flatten().int()
