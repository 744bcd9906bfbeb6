"""Folders and adapters of other tools, for existing models: right ones pass in every layout of keys, wrong tensors are named.

What TRL, LLaMA-Factory 0.9.5 and Unsloth write is what PEFT and Transformers write, but for the adapter's targets (plain
names; full paths; a pattern) and for Unsloth's merge, which fills the base's own files. Their layouts of keys are those
of the versions of Transformers that they run with: before 4.52, and since.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import lockadapt
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.exports.proofs.wrong_tensors import wrong_tensors
from lockadapt.exports.stack import added
from lockadapt.exports.verify import verify_folder
from lockadapt.exports.weights.adapter import read_adapter
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.exports.weights.names import meta_model, read_names
from lockadapt.runs.run import load_run, open_run
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written

QUIET = Reporter(quiet=True)
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
LLM = "model.language_model."
OLD = {"qwen2_5_vl": "model.", "gemma3": "language_model.model.", "llava_next": "language_model.model."}
"""Where the LLM's keys began before Transformers 4.52."""
TOWER = {"qwen2_5_vl": "model.visual.", "gemma3": "model.vision_tower.", "llava_next": "model.vision_tower."}
NAMES = ("q_proj", "v_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """A trained run, and PEFT's merge of it as Transformers saves it."""

    name: str
    run: Path
    merged: Path


@pytest.fixture(scope="module", params=sorted(OLD))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    vlm = written(request.param, folder / "vlm")
    train(recipe_for(vlm, folder), folder / "run", QUIET)
    loaded = load_run(folder / "run")
    loaded.model.merge_and_unload().save_pretrained(folder / "merged")  # type: ignore[operator]
    loaded.processor.save_pretrained(folder / "merged")
    return Case(request.param, folder / "run", folder / "merged")


def in_memory_keys(case: Case, output: Path) -> Path:
    """The same weights under the names of Transformers since 4.52: `model.language_model.`, `model.visual.`."""
    shutil.copytree(case.merged, output)
    tensors = load_file(output / WEIGHTS)
    names = read_names(meta_model(output), tensors, str(output)).stock
    assert any(name != key for key, name in names.items())
    save_file({names[key]: tensor for key, tensor in tensors.items()}, output / WEIGHTS, {"format": "pt"})
    return output


@pytest.mark.slow
def test_a_merge_by_peft_is_accepted_in_both_layouts(case: Case, tmp_path: Path) -> None:
    keys = load_file(case.merged / WEIGHTS)
    assert any(key.startswith(f"{OLD[case.name]}layers.") for key in keys)
    assert wrong_tensors(open_run(case.run), case.merged, "dequantized") == []
    report = verify_folder(in_memory_keys(case, tmp_path / "copy"), case.run, QUIET)
    assert report["missing_keys"] == report["unexpected_keys"] == []
    assert report["max_abs_logit_diff"] < 1e-4
    assert report["answers_equal"] == report["answers"]


def layer(tensors: dict[str, Tensor]) -> str:
    return next(key for key in sorted(tensors) if key.endswith("layers.1.mlp.up_proj.weight"))


def not_merged(tensors: dict[str, Tensor], base: dict[str, Tensor], tower: str) -> str:
    tensors[layer(tensors)] = base[layer(base)]
    return rf"the adapter is not merged into {LLM}layers\.1\.mlp\.up_proj\.weight$"


def merged_twice(tensors: dict[str, Tensor], base: dict[str, Tensor], tower: str) -> str:
    tensors[layer(tensors)] = 2 * tensors[layer(tensors)] - base[layer(base)]
    return rf"the adapter is merged twice into {LLM}layers\.1\.mlp\.up_proj\.weight$"


def perturbed(tensors: dict[str, Tensor], base: dict[str, Tensor], tower: str) -> str:
    tensors[layer(tensors)] = tensors[layer(tensors)] * 1.001
    return rf"not what was trained is in {LLM}layers\.1\.mlp\.up_proj\.weight$"


def touched_tower(tensors: dict[str, Tensor], base: dict[str, Tensor], tower: str) -> str:
    name = next(key for key in sorted(tensors) if key.startswith(tower) and tensors[key].ndim == 2)
    tensors[name] = tensors[name] * (1 + 1e-5)
    return rf"although they are frozen, are in {re.escape(name)} \(tower\)$"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [not_merged, merged_twice, perturbed, touched_tower])
def test_a_wrong_tensor_is_named(
    damage: Callable[[dict[str, Tensor], dict[str, Tensor], str], str], case: Case, tmp_path: Path
) -> None:
    folder = in_memory_keys(case, tmp_path / "copy")
    tensors, run = load_file(folder / WEIGHTS), open_run(case.run)
    message = damage(tensors, load_file(Path(run.base) / WEIGHTS), TOWER[case.name])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (wrong,) = wrong_tensors(run, folder, "dequantized")
    assert re.search(message, wrong)
    # Once through the verb: a touch too small for logits, and one that they show.
    if case.name == "llava_next" and damage in (not_merged, touched_tower):
        with pytest.raises(VerificationError, match=message.removesuffix("$")) as error:
            verify_folder(folder, case.run, QUIET)
        assert error.value.exit_code == 8


def targets_of(tool: str, model: Any) -> list[str] | str:
    """What each tool gives PEFT as targets in the LLM."""
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if tool == "llamafactory":  # `patch_target_modules`: full paths, those of the tower left out
        return [path for path in linears if path.startswith(LLM) and path.endswith(NAMES)]
    if tool == "unsloth":  # `get_peft_regex` of the language layers
        parts, leaves = "self_attn|attention|attn|mixer|mlp|feed_forward|ffn|dense|mixer", "|".join(NAMES)
        return rf"(?:.*?(?:language|text).*?(?:{parts}).*?\.(?:{leaves}))"
    return list(NAMES)  # TRL: what the user names, which towers with such layers get as well


def write_adapter(tool: str, case: Case, output: Path) -> Path:
    """A random adapter as one of these tools saves it; the base."""
    base = Path(open_run(case.run).base)
    model, _ = load_model(base, torch.float32)
    torch.manual_seed(0)
    settings = {"r": 4, "init_lora_weights": False, "target_modules": targets_of(tool, model)}
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(output)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["trl", "llamafactory", "unsloth"])
def test_their_adapters_are_merged_and_attached(tool: str, case: Case, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    base = write_adapter(tool, case, adapter)
    expected = PeftModel.from_pretrained(load_model(base, torch.float32)[0], adapter)
    expected = expected.merge_and_unload().state_dict()
    plain, processor = load_model(base, torch.float32)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merged = added(plain, base, [Weighted(adapter)]).state_dict()
    assert sum(not torch.equal(before[name], tensor) for name, tensor in merged.items()) >= 6
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)
    live = load_model(base, torch.float32)[0]
    attached = lockadapt.attach(live, adapter, tokenizer=processor, force_base=True)
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        actual, wanted = live(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-4)
    attached.detach()


@pytest.mark.slow
def test_adapters_with_keys_from_before_are_refused(case: Case, tmp_path: Path) -> None:
    """PEFT itself warns, and goes on without them."""
    adapter = tmp_path / "adapter"
    base = write_adapter("trl", case, adapter)
    tensors = load_file(adapter / ADAPTER)
    renamed = {older(key, case.name): tensor for key, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    save_file(renamed, adapter / ADAPTER, {"format": "pt"})
    lacking = r"lacks (base_model\.model\.)?model\."
    with pytest.raises(VerificationError, match=lacking):
        read_adapter(meta_model(base), adapter)
    model, processor = load_model(base, torch.float32)
    with pytest.raises(VerificationError, match=lacking):
        lockadapt.attach(model, adapter, tokenizer=processor, force_base=True)


def older(key: str, name: str) -> str:
    """An adapter's key as PEFT wrote it before Transformers 4.52."""
    key = key.replace(f"base_model.model.{LLM}", f"base_model.model.{OLD[name]}")
    for part in ("visual.", "vision_tower.", "multi_modal_projector."):
        key = key.replace(f"base_model.model.model.{part}", f"base_model.model.{part}")
    return key
