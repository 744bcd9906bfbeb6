"""LoRA on the stacked experts of a mixture: trained, merged as PEFT merges it, exported, attached, taken out."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.load import load_model
from lockadapt.attaching.attach import attach
from lockadapt.console import Reporter
from lockadapt.errors import AdapterError
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.unmerge import unmerge
from lockadapt.exports.weights.changes import LowRank
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.training.loop import train
from lockadapt.tuning.adapters import LoraSettings, adapted_paths, lora_config, resolve_targets
from tests.benchmarks.conftest import FOLDER

QUIET = Reporter(quiet=True)
LAYOUTS = {
    "mixtral": "block_sparse_moe.experts.0.w1.weight",  # a key for every expert and matrix
    "gpt_oss": "mlp.experts.gate_up_proj",  # as it is computed with, (experts, in, out)
}
STACKS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained LoRA on attention and experts, of a mixture stored in its own way."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        families = importlib.import_module("decoder_families")
    llm, tower = families._llm(request.param, folder / "llm"), families._tower(folder / "tower")
    assemble(llm, tower, folder / "vlm", dtype="float32", prove=False)
    keys = load_file(folder / "vlm/model.safetensors")
    assert any(key.endswith(LAYOUTS[request.param]) for key in keys)
    recipe = families._recipe(folder, "none")
    lora = recipe.lora.model_copy(update={"targets": ["attention", "experts"]})
    training = recipe.training.model_copy(update={"batch_size": 4})
    train(recipe.model_copy(update={"lora": lora, "training": training}), folder / "run", QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    """The run, merged and proved."""
    proof = merge_run(run, run.parent / "merged", QUIET)
    assert proof["max_abs_logit_diff"] < 1e-4
    assert proof["adapter_kl"] > 1e-6
    return run.parent / "merged"


def weights(folder: Path) -> dict[str, Tensor]:
    """By the names of the stock class."""
    model, _ = load_model(folder, torch.float32)
    return dict(model.state_dict())


def test_experts_are_trained_and_merge_as_peft_merges_them(run: Path, merged: Path) -> None:
    saved = load_file(run / "adapter/adapter_model.safetensors")
    trained = {key for key, tensor in saved.items() if ".experts." in key and tensor.abs().max() > 0}
    assert len(trained) == 2 * 2 * len(STACKS)  # A and B, two blocks
    model, _ = load_model(run.parent / "vlm", torch.float32)
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference: Any = PeftModel.from_pretrained(model, str(run / "adapter"))
    wanted, got = reference.merge_and_unload().state_dict(), weights(merged)
    for name in wanted:
        if "projector" not in name:
            torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-7)
        if name.endswith(STACKS):
            for expert, before in zip(got[name], untrained[name], strict=True):
                assert (expert - before).abs().max() > 1e-4


def test_the_base_comes_back(run: Path, merged: Path, tmp_path: Path) -> None:
    vlm, projector = run.parent / "vlm", load_file(run / "projector.safetensors")
    stack = [Weighted(run / "adapter", parts=projector)]
    report = unmerge(merged, stack, str(vlm), tmp_path / "back", QUIET)
    before, back = weights(vlm), weights(tmp_path / "back")
    for name in before:
        torch.testing.assert_close(back[name], before[name], rtol=0, atol=1e-6)
    with pytest.raises(Exception, match="did not come back"):
        unmerge(merged, [Weighted(run / "adapter", 0.5, parts=projector)], str(vlm), tmp_path / "no", QUIET)
    assert report["max_roundings"] <= 2


def test_the_adapter_is_exported_and_attached(run: Path, merged: Path, tmp_path: Path) -> None:
    proof = export_run(run, "adapter", tmp_path / "out", QUIET)
    assert proof["servable"]["vllm"] is not True
    ids = torch.arange(8)[None]
    live, _ = load_model(run.parent / "vlm", torch.float32)
    trained, _ = load_model(merged, torch.float32)
    with torch.no_grad():
        plain = live(input_ids=ids).logits
        attached = attach(live, run)
        torch.testing.assert_close(live(input_ids=ids).logits, trained(input_ids=ids).logits)
        attached.detach()
        assert torch.equal(live(input_ids=ids).logits, plain)


def test_names_of_experts(run: Path) -> None:
    model, _ = load_model(run.parent / "vlm", torch.float32)
    layers, experts = resolve_targets(model, ["q_proj", "experts.down_proj"])
    assert len(layers) == len(experts) == 2
    assert all(path.endswith("mlp.experts.down_proj") for path in experts)
    assert resolve_targets(model, "experts")[1] == resolve_targets(model, ["all-linear", "experts"])[1]
    with pytest.raises(AdapterError, match=r"(?s)'down_proj' matches no.*did you mean 'experts\.down_proj'"):
        resolve_targets(model, ["down_proj"])
    for settings, key in (({"dropout": 0.1}, "lora.dropout"), ({"dora": True}, "lora.dora")):
        with pytest.raises(AdapterError, match=key):
            lora_config(model, LoraSettings(targets="experts", **settings))


def test_a_stack_in_a_quantized_dtype_is_refused(run: Path) -> None:
    model, _ = load_model(run.parent / "vlm", torch.float32)
    owner = model.get_submodule("model.language_model.layers.0.mlp.experts")
    owner.down_proj = torch.nn.Parameter(owner.down_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"stored as torch\.int8: PEFT adapts experts in floating"):
        lora_config(model, LoraSettings(targets="experts"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("step", [1, 3, 5, 12])
def test_pieces_of_stacked_rows_add_what_the_whole_adds(transposed: bool, step: int) -> None:
    a, b = torch.randn(3, 2, 4).double(), torch.randn(3, 5, 2).double()
    change = LowRank(a, b, 0.5, transposed)
    wanted = 0.5 * torch.einsum("eor,eri->eio" if transposed else "eor,eri->eoi", b, a)
    rows = wanted.reshape(-1, wanted.shape[-1])
    got = torch.zeros_like(rows)
    for first in range(0, len(rows), step):
        change.apply(got[first : first + step], first)
    torch.testing.assert_close(got, rows)


def test_what_carries_lora_goes_by_stock_names(run: Path) -> None:
    model, _ = load_model(run.parent / "vlm", torch.float32)
    wrapped = PeftModel.from_pretrained(model, str(run / "adapter"))
    stacks = resolve_targets(load_model(run.parent / "vlm", torch.float32)[0], "experts")[1]
    assert set(stacks) < set(adapted_paths(wrapped))
