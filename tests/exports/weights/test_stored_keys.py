"""Folders whose keys are not the class's names: fused ones (Molmo2's q, k, v), and those of other Transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers as hf

from lockadapt.errors import VerificationError
from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from tests.support.adapters import Case, make_adapter, read_all, write_shards
from tests.support.existing_vlm import written
from tests.support.zoo import entry_of

LAYER = "model.language_model.layers.0."
FUSED = "model.transformer.blocks.0."


def molmo2() -> hf.PreTrainedModel:
    """A tiny Molmo2 with other sizes for q than for k and v."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"num_key_value_heads": 2, "head_dim": 16, "image_size": [32, 32], "patch_size": 8}
    text = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 40, "additional_vocab_size": 8}
    bridge = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    bridge |= {"intermediate_size": 48, "text_hidden_size": 64, "vision_feature_layer": [-1, -2]}
    config = hf.Molmo2Config(text_config=text, vision_config=tower, adapter_config=bridge)
    torch.manual_seed(0)
    return hf.Molmo2ForConditionalGeneration._from_config(config, dtype=torch.float32)


def fused_base(folder: Path) -> dict[str, torch.Tensor]:
    """Saves it under its fused keys, in two shards; returns the tensors by the class's names."""
    model = molmo2()
    model.save_pretrained(folder)
    stored = read_all(folder)
    assert f"{FUSED}self_attn.att_proj.weight" in stored
    (folder / "model.safetensors").unlink()
    write_shards(stored, folder, 2)
    return dict(model.state_dict())


def require_merged(scratch: Path, base: dict[str, torch.Tensor], case: Case) -> set[str]:
    """Merges an adapter into `scratch / "base"`; requires its keys, and of the stock class the plain sums.

    Returns:
        The keys that were changed.
    """
    adapter = make_adapter(case, base, scratch / "adapter")
    (scratch / "output").mkdir()
    report = merge_weights(scratch / "base", scratch / "output", [Weighted(scratch / "adapter")])
    assert read_all(scratch / "output").keys() == read_all(scratch / "base").keys()
    (scratch / "output" / "config.json").write_text((scratch / "base" / "config.json").read_text())
    merged = hf.AutoModelForImageTextToText.from_pretrained(scratch / "output").state_dict()
    for name, tensor in base.items():
        path = name.removesuffix(".weight")
        if f"{path}.lora_A.weight" in adapter:
            a, b = (adapter[f"{path}.lora_{x}.weight"].double() for x in "AB")
            wanted = (tensor.double() + case.alpha / case.rank * (b @ a)).float()
            assert torch.allclose(merged[name], wanted, rtol=0, atol=1e-6), name
            assert not torch.allclose(merged[name], tensor, rtol=0, atol=1e-2), name
        else:
            assert torch.equal(merged[name], tensor), name
    return set(report.changed)


def test_each_parameter_changes_its_own_rows(tmp_path: Path) -> None:
    """Red before: `q_proj.weight is stored in parts or in another form`."""
    base = fused_base(tmp_path / "base")
    changed = require_merged(tmp_path, base, Case(targets=("q_proj", "v_proj", "gate_proj")))
    assert {key.removeprefix(FUSED) for key in changed if FUSED in key} == {
        "self_attn.att_proj.weight",
        "mlp.ff_proj.weight",
    }


HUB = {r"^vision_tower\.": "vision_tower.vision_model."}
"""Towers as the Hub's folders have them; the rest is what `save_pretrained` writes today."""
OWN = {
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^(vision_tower|multi_modal_projector|image_newline|vision_model|visual)": r"model.\1",
}
"""The class's names, which Transformers 4.52 and later ones wrote."""
QWEN = {r"^model\.": "model.language_model.", r"^visual": "model.visual"}


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("llava", HUB),
        ("llava_next", HUB),
        ("gemma3", HUB),
        ("llava", OWN),
        ("gemma3", OWN),
        ("mllama", OWN),
        ("qwen2_5_vl", {}),
        ("qwen2_5_vl", QWEN),
    ],
)
def test_a_merge_keeps_the_keys_of_older_transformers(
    name: str, renamed: dict[str, str], tmp_path: Path
) -> None:
    written(name, tmp_path / "base")
    stored = read_all(tmp_path / "base")
    keys = {
        key: next((re.sub(old, new, key) for old, new in renamed.items() if re.search(old, key)), key)
        for key in stored
    }
    assert bool(renamed) == any(old != new for old, new in keys.items())
    write_shards({keys[key]: tensor for key, tensor in stored.items()}, tmp_path / "base", 1)
    base = dict(entry_of(name).build()[0].state_dict())
    assert len(require_merged(tmp_path, base, Case(targets=("q_proj",)))) >= 2


def test_each_parameter_is_requantized_alone(tmp_path: Path) -> None:
    base = fused_base(tmp_path / "base")
    (tmp_path / "output").mkdir()
    name = f"{LAYER}self_attn.k_proj.weight"
    how = QuantizationRoundTrip("int8", torch.float32)
    merge_weights(tmp_path / "base", tmp_path / "output", requantized={name: how})
    fused = read_all(tmp_path / "output")[f"{FUSED}self_attn.att_proj.weight"]
    assert torch.equal(fused[64:96], how.rows(base[name], 0, None))
    assert torch.equal(fused[:64], base[f"{LAYER}self_attn.q_proj.weight"])


def test_other_rows_than_the_class_has_are_refused(tmp_path: Path) -> None:
    fused_base(tmp_path / "base")
    stored = read_all(tmp_path / "base")
    key = f"{FUSED}self_attn.att_proj.weight"
    write_shards({**stored, key: stored[key][:-1].clone()}, tmp_path / "base", 2)
    (tmp_path / "output").mkdir()
    part = {f"{LAYER}self_attn.q_proj.weight": torch.zeros(64, 64)}
    with pytest.raises(VerificationError, match=r"parts in the model class 128 rows"):
        merge_weights(tmp_path / "base", tmp_path / "output", [Weighted(None, parts=part)])
    assert list((tmp_path / "output").iterdir()) == []
