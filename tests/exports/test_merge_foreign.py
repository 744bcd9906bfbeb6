"""Adapters of others on heads and embeddings, in today's keys and older ones: as PEFT merges them, or refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

import lockadapt
from lockadapt.architectures.assemble import assemble
from lockadapt.console import Reporter
from lockadapt.errors import AdapterError, LockadaptError, VerificationError
from lockadapt.exports.merge_command import MergeRequest, merge_command
from lockadapt.exports.weights import changes

QUIET = Reporter(quiet=True)
WEIGHTS = "adapter_model.safetensors"
Q = r".*language_model.*q_proj"
ADAPTERS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "embed": {"target_modules": Q, "modules_to_save": ["embed_tokens"]},
    "both": {"target_modules": Q, "modules_to_save": ["lm_head", "embed_tokens"]},
    "tying": {"target_modules": Q, "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "tying-embed": {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "lora-head": {"target_modules": ["lm_head"]},
    "lora-embed": {"target_modules": ["embed_tokens"]},
}
TIED_APART = {
    "head": "was trained by itself and is tied",
    "embed": "was trained by itself and is tied",
    "both": "was trained by itself and is tied",
    "lora-head": "a merged sum would change both",
    "lora-embed": "a merged sum would change both",
}
"""What cannot be merged into one tensor, as PEFT unties them."""


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "llama-tied"):
        assemble(tiny / kind, tiny / "clip-vision", folder / kind, dtype="float32", prove=False)
    return {kind: folder / kind for kind in ("llama", "llama-tied")}


def live(base: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 20)[None]).logits


def adapter(base: Path, folder: Path, **config: Any) -> Path:
    """A PEFT folder of random values, its layers of the base beside them where PEFT saves those."""
    torch.manual_seed(1)
    wrapped = get_peft_model(live(base), LoraConfig(r=2, **config))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(str(folder))
    return folder


def merged_by_peft(base: Path, folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(live(base), str(folder)).merge_and_unload())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("base", ["llama", "llama-tied"])
def test_heads_and_embeddings_merge_as_peft_merges_them_or_are_refused(
    bases: dict[str, Path], base: str, kind: str, tmp_path: Path
) -> None:
    """Red before: a proof shared its arithmetic with the merge, and LoRA on a head was of the wrong base."""
    folder = adapter(bases[base], tmp_path / "adapter", **ADAPTERS[kind])
    request = MergeRequest(str(bases[base]), tmp_path / "merged", [str(folder)])
    if base == "llama-tied" and kind in TIED_APART:
        with pytest.raises(AdapterError, match=TIED_APART[kind]):
            merge_command(request, QUIET)
        assert not (tmp_path / "merged").exists()
        return
    merge_command(request, QUIET)
    wanted = merged_by_peft(bases[base], folder)
    assert torch.allclose(logits(live(tmp_path / "merged")), wanted, atol=2e-6)
    assert not torch.allclose(logits(live(bases[base])), wanted, atol=1e-2)


def test_a_mistake_in_our_sum_does_not_reach_the_proof(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(bases["llama"], tmp_path / "adapter", target_modules=Q)
    right = changes.LowRank.apply

    def doubled(self: Any, matrix: Tensor, first: int) -> None:
        right(self, matrix, first)
        right(self, matrix, first)

    monkeypatch.setattr(changes.LowRank, "apply", doubled)
    with pytest.raises(VerificationError, match="differ"):
        merge_command(MergeRequest(str(bases["llama"]), tmp_path / "merged", [str(folder)]), QUIET)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("weights", [(0.5,), (0.7, -1.5)])
def test_stacks_and_weights_are_proved_by_peft(
    bases: dict[str, Path], weights: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: several adapters, and weights other than 1, were compared with our own sum."""
    base = bases["llama"]
    first = adapter(base, tmp_path / "first", target_modules=Q)
    second = adapter(
        base, tmp_path / "second", target_modules=r".*language_model.*(q_proj|up_proj)", use_rslora=True
    )
    given = [f"{folder}:{weight}" for folder, weight in zip((first, second), weights, strict=False)]
    merge_command(MergeRequest(str(base), tmp_path / "merged", given), QUIET)
    wrapped = PeftModel.from_pretrained(live(base), str(first), adapter_name="a")
    wrapped.load_adapter(str(second), adapter_name="b")
    names = ["a", "b"][: len(weights)]
    wrapped.add_weighted_adapter(names, list(weights), "both", combination_type="cat")
    wrapped.set_adapter("both")
    assert torch.allclose(logits(live(tmp_path / "merged")), logits(wrapped), atol=2e-5)

    right = changes.LowRank.apply

    def weightless(self: Any, matrix: Tensor, first: int) -> None:
        right(dataclasses.replace(self, scale=1.0), matrix, first)

    monkeypatch.setattr(changes.LowRank, "apply", weightless)
    with pytest.raises(VerificationError, match="differ"):
        merge_command(MergeRequest(str(base), tmp_path / "wrong", given), QUIET)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["lora-head", "lora-embed"])
def test_a_layer_of_another_base_beside_its_lora_is_refused(
    bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    folder = adapter(bases["llama"], tmp_path / "adapter", **ADAPTERS[kind])
    attached = lockadapt.attach(live(bases["llama"]), folder, force_base=True)
    assert torch.allclose(logits(attached.model), merged_by_peft(bases["llama"], folder), atol=2e-6)
    tensors = load_file(folder / WEIGHTS)
    (key,) = [key for key in tensors if key.endswith("base_layer.weight")]
    tensors[key][3, 4] += 1
    save_file(tensors, folder / WEIGHTS)
    model, refused = live(bases["llama"]), "which is not the base's"
    before = logits(model)
    with pytest.raises(VerificationError, match=refused):
        lockadapt.attach(model, folder, force_base=True)
    assert torch.equal(logits(model), before)
    with pytest.raises(VerificationError, match=refused):
        merge_command(MergeRequest(str(bases["llama"]), tmp_path / "merged", [str(folder)]), QUIET)


@pytest.mark.parametrize("dora", [False, True])
def test_keys_of_older_classes_are_attached_as_they_are_merged(
    bases: dict[str, Path], dora: bool, tmp_path: Path
) -> None:
    """Transformers before 4.52 called LLaVA's LLM `language_model.model`; so do adapters trained there."""
    base, names = bases["llama"], ["q_proj", "v_proj"]
    folder = adapter(
        base, tmp_path / "new", target_modules=rf".*language_model.*({'|'.join(names)})", use_dora=dora
    )
    wanted = merged_by_peft(base, folder)
    old = shutil.copytree(folder, tmp_path / "old")
    tensors = {
        key.replace("model.model.language_model.", "model.language_model.model."): tensor
        for key, tensor in load_file(folder / WEIGHTS).items()
    }
    assert all(".language_model.model.layers." in key for key in tensors)
    save_file(tensors, old / WEIGHTS)
    assert json.loads((old / "adapter_config.json").read_text())["use_dora"] is dora
    attached = lockadapt.attach(live(base), old, force_base=True)
    assert torch.allclose(logits(attached.model), wanted, atol=2e-6)
    merge_command(MergeRequest(str(base), tmp_path / "merged", [str(old)]), QUIET)
    assert torch.allclose(logits(live(tmp_path / "merged")), wanted, atol=2e-6)


def test_what_peft_cannot_merge_is_not_merged_unproved(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(bases["llama"], tmp_path / "adapter", target_modules=Q)

    def refuse(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(PeftModel, "from_pretrained", refuse)
    with pytest.raises(LockadaptError, match="PEFT cannot merge"):
        merge_command(MergeRequest(str(bases["llama"]), tmp_path / "merged", [str(folder)]), QUIET)
