"""Streamed merges against float64 and against the plain way, bit for bit; what is not touched stays as it is."""

from __future__ import annotations

import dataclasses
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lockadapt.errors import AdapterError, LockadaptError
from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.changes import LowRank
from lockadapt.exports.weights.merge_weights import Weighted
from tests.support.adapters import (
    DTYPES,
    EMBEDDING,
    Case,
    adapted,
    make,
    make_adapter,
    merged_and_wanted,
    oracle,
    plain_tensors,
    read_all,
    write_shards,
)

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2 = ("c_attn", "c_proj", "c_fc")
merging_module = importlib.import_module("lockadapt.exports.weights.merge_weights")
"""Not the function of that name, which the package exports."""
NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f"}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Everything that merging knows, in every combination that PEFT makes."""
    kind = draw(st.sampled_from(["llama", "llama", "gpt2"]))
    targets = draw(st.lists(st.sampled_from(LLAMA if kind == "llama" else GPT2), min_size=1, unique=True))
    tokens = draw(st.lists(st.integers(0, 23), max_size=4, unique=True)) if kind == "llama" else []
    dora = draw(st.booleans())
    names = st.sampled_from(targets)
    return Case(
        kind=kind,
        dtype=draw(st.sampled_from(list(DTYPES))),
        adapter_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        tied=draw(st.booleans()),
        shards=draw(st.integers(1, 3)),
        rank=draw(st.integers(1, 5)),
        alpha=draw(st.sampled_from([1.0, 2.0, 7.0, 16.0])),
        rslora=draw(st.booleans()),
        dora=dora,
        targets=tuple(targets),
        rank_pattern=draw(st.dictionaries(names, st.integers(1, 6), max_size=2)),
        alpha_pattern=draw(st.dictionaries(names, st.sampled_from([1.0, 5.0]), max_size=2)),
        tokens=tuple(tokens),
        saved=draw(st.sampled_from([(), (NORM[kind],)])),
        weight=1.0 if dora else draw(st.sampled_from([1.0, 1.0, 0.7, -0.5])),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.slow
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(cases())
def test_random_adapters_against_float64(case: Case) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter, output = make(case, Path(scratch))
        merge_weights(base, output, [Weighted(adapter, case.weight)])
        tensors = read_all(base)
        wanted = oracle(case, tensors, plain_tensors(adapter))
        stored = read_all(output)
        assert stored.keys() == wanted.keys()
        for name, tensor in stored.items():
            assert tensor.dtype == DTYPES[case.dtype]
            # One rounding to the stored dtype, and the float32 arithmetic before it.
            allowed = torch.finfo(tensor.dtype).eps / 2 * wanted[name].abs() * 1.01 + 2e-5
            assert bool(((tensor.double() - wanted[name]).abs() <= allowed).all()), name


def test_pieces_give_the_same_bits_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain way, `round_once(fp32(W) + scale * B A)`, with pieces of a few rows and on several threads."""
    monkeypatch.setattr(merging_module, "PIECE_BYTES", 600)
    case = Case(dtype="bfloat16", hidden=96, rank=5, targets=LLAMA, shards=2, tied=False)
    base, adapter, output = make(case, tmp_path)
    merge_weights(base, output, [Weighted(adapter)], threads=3)
    tensors, lora, stored = read_all(base), plain_tensors(adapter), read_all(output)
    for path in adapted(case, tensors):
        a, b = (lora[f"{path}.lora_{x}.weight"] for x in "AB")
        plain = (tensors[f"{path}.weight"].float() + case.alpha / case.rank * (b @ a)).bfloat16()
        assert torch.equal(stored[f"{path}.weight"].view(torch.int16), plain.view(torch.int16)), path


def test_what_is_not_touched_stays_byte_for_byte(tmp_path: Path) -> None:
    case = Case(dtype="bfloat16", targets=("q_proj",), shards=2)
    base, adapter, output = make(case, tmp_path)
    report = merge_weights(base, output, [Weighted(adapter)])
    assert report.changed == tuple(f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))
    for file in base.glob("*.safetensors"):
        old, new = file.read_bytes(), (output / file.name).read_bytes()
        assert len(old) == len(new)
        start = 8 + int.from_bytes(old[:8], "little")
        assert old[:start] == new[:start]
        header = json.loads(old[8:start])
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (start + offset for offset in entry["data_offsets"])
                assert (old[begin:end] == new[begin:end]) == (name not in report.changed), name
    index = "model.safetensors.index.json"
    assert json.loads((base / index).read_text()) == json.loads((output / index).read_text())


def test_new_keys_move_nothing_else(tmp_path: Path) -> None:
    base, adapter, output = make(Case(), tmp_path)
    merge_weights(
        base, output, [Weighted(adapter)], rename={"model.norm.weight": "model.a_much_longer_name.weight"}
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    merge_weights(base, plain, [Weighted(adapter)])
    stored, wanted = read_all(output), read_all(plain)
    stored["model.norm.weight"] = stored.pop("model.a_much_longer_name.weight")
    assert stored.keys() == wanted.keys()
    assert all(torch.equal(stored[name], wanted[name]) for name in wanted)
    with safe_open(output / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "by hand"}


def test_stacked_adapters_are_summed_with_their_weights(tmp_path: Path) -> None:
    case = Case(tokens=(3, 5), saved=("model.norm",), dtype="float32")
    base, first, output = make(case, tmp_path)
    other = dataclasses.replace(case, seed=9, rank=3)
    tensors = read_all(base)
    second = make_adapter(other, tensors, tmp_path / "second")
    merge_weights(base, output, [Weighted(first, 0.7), Weighted(tmp_path / "second", 0.3)])
    single = oracle(dataclasses.replace(case, weight=0.7), tensors, plain_tensors(first))
    two = oracle(dataclasses.replace(other, weight=0.3), tensors, second)
    for name, tensor in read_all(output).items():
        wanted = single[name] + two[name] - tensors[name].double()
        assert torch.allclose(tensor.double(), wanted, atol=2e-6), name


def test_a_stack_does_not_depend_on_its_order(tmp_path: Path) -> None:
    case = Case(tokens=(3, 5), saved=("model.norm",))
    base, first, output = make(case, tmp_path)
    make_adapter(dataclasses.replace(case, seed=9, tokens=(5, 7)), read_all(base), tmp_path / "second")
    stack = [Weighted(first, 0.7), Weighted(tmp_path / "second", 0.3)]
    turned = tmp_path / "turned"
    turned.mkdir()
    merge_weights(base, output, stack)
    merge_weights(base, turned, stack[::-1])
    forward, two = read_all(output), read_all(turned)
    assert all(torch.allclose(forward[name], two[name], atol=1e-6) for name in forward)


def test_trained_rows_reach_the_tied_head_too_where_both_are_stored(tmp_path: Path) -> None:
    case = Case(tokens=(3,), tied=True)
    base, adapter, output = make(case, tmp_path)
    tensors = read_all(base)
    write_shards({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base, 1)
    merge_weights(base, output, [Weighted(adapter)])
    stored = read_all(output)
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert not torch.equal(stored["lm_head.weight"][3], tensors["model.embed_tokens.weight"][3])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_base_is_what_its_layers_multiplied_with(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging_module, "PIECE_BYTES", 4000)
    merged, wanted, original = merged_and_wanted(kind, tmp_path, "cpu")
    assert torch.equal(merged, wanted)
    assert not torch.equal(merged, original)


def test_a_sum_on_a_tied_matrix_is_refused(tmp_path: Path) -> None:
    base, adapter, output = make(Case(targets=("embed_tokens",)), tmp_path)
    _embedding_lora(adapter)
    with pytest.raises(AdapterError, match="tied"):
        merge_weights(base, output, [Weighted(adapter)])
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_of_two_tied_tensors_is_not_replaced_alone(name: str, tmp_path: Path) -> None:
    """Red before: `modules_to_save` of a tied head changed the embedding as well, and was proved."""
    base, _, output = make(Case(tied=True), tmp_path)
    trained = read_all(base)["model.embed_tokens.weight"] + 1
    with pytest.raises(AdapterError, match="trained by itself and is tied to"):
        merge_weights(base, output, [Weighted(None, parts={name: trained})])
    assert list(output.iterdir()) == []
    both = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), trained)
    merge_weights(base, output, [Weighted(None, parts=both)])
    assert torch.equal(read_all(output)["model.embed_tokens.weight"], trained)


def test_a_sum_on_an_untied_embedding(tmp_path: Path) -> None:
    base, adapter, output = make(Case(targets=("embed_tokens",), tied=False), tmp_path)
    a, b = _embedding_lora(adapter)
    merge_weights(base, output, [Weighted(adapter)])
    wanted = read_all(base)["model.embed_tokens.weight"] + 1.5 * (b @ a).T
    assert torch.allclose(read_all(output)["model.embed_tokens.weight"], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "changes the base itself"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["q_proj.weight"]}, "does not fit the base"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_adapters_that_are_no_sum_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    base, adapter, output = make(Case(), tmp_path)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(LockadaptError, match=message):
        merge_weights(base, output, [Weighted(adapter)])
    assert list(output.iterdir()) == []


def test_dora_is_neither_weighted_nor_stacked(tmp_path: Path) -> None:
    base, adapter, output = make(Case(dora=True), tmp_path)
    with pytest.raises(AdapterError, match="no meaning"):
        merge_weights(base, output, [Weighted(adapter, 0.5)])
    with pytest.raises(AdapterError, match="DoRA"):
        merge_weights(base, output, [Weighted(adapter), Weighted(adapter)])


def test_a_value_that_does_not_fit_is_no_infinity(tmp_path: Path) -> None:
    base, adapter, output = make(Case(dtype="float16", alpha=1e8), tmp_path)
    with pytest.raises(LockadaptError, match="does not fit F16"):
        merge_weights(base, output, [Weighted(adapter)])


def test_low_rank_sums_of_a_tensor_that_changes_shape_by_pieces() -> None:
    """Conv1D keeps (in, out): pieces are of inputs there."""
    chance = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 10, generator=chance), torch.randn(6, 3, generator=chance)
    whole = torch.zeros(10, 6)
    LowRank(a, b, 2.0, transposed=True).apply(whole, 0)
    pieces = torch.zeros(10, 6)
    for first in range(0, 10, 3):
        LowRank(a, b, 2.0, transposed=True).apply(pieces[first : first + 3], first)
    assert torch.allclose(whole, 2 * (b @ a).T)
    assert torch.allclose(whole, pieces)  # so few rows may be summed in another order


def _embedding_lora(adapter: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts LoRA on the embeddings into an adapter's file, as PEFT names it."""
    from safetensors.torch import save_file

    path = f"base_model.model.{EMBEDDING['llama']}"
    a, b = torch.randn(2, 24), torch.randn(8, 2)
    save_file(
        {f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b}, adapter / "adapter_model.safetensors"
    )
    return a, b
