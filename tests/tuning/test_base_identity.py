"""A base is known again in another dtype and quantized, and told from one that differs in a single matrix."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig

from lockadapt.architectures.absent_tower import AbsentTower, TowerRecord
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.tuning.base_identity import (
    SAMPLED_ROWS,
    BaseIdentity,
    base_identity,
    compare,
    part_digest,
    tower_component,
)
from tests.support.tiny import tiny_llm, tiny_tokenizer, tiny_tower


def loaded(folder: Path | None, **given: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **given)


def differences(first: BaseIdentity, second: BaseIdentity) -> tuple[str, ...]:
    comparison = compare(first, second)
    return (*comparison.base, *comparison.tokenizer)


def test_the_same_in_other_dtypes_and_quantized(assembled: Assembled) -> None:
    folder = assembled.folder
    reference = base_identity(loaded(folder, dtype=torch.float32), assembled.processor.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    half = base_identity(loaded(folder, dtype=torch.bfloat16), tokenizer)
    assert half == reference
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    identity = base_identity(loaded(folder, dtype=torch.float32, quantization_config=nf4), tokenizer)
    result = compare(reference, identity)
    assert result.base == result.tokenizer == ()
    assert "llm's linear layers (quantized)" in result.not_compared
    again = BaseIdentity.from_dict(json.loads(json.dumps(reference.to_dict())))
    assert again == reference
    assert BaseIdentity.from_dict({**reference.to_dict(), "format": 99}) is None


def test_one_matrix_one_norm_one_buffer(assembled: Assembled) -> None:
    model = copy.deepcopy(assembled.model)
    reference = base_identity(model)
    layer = model.model.language_model.layers[1]
    with torch.no_grad():
        layer.self_attn.q_proj.weight[3, 5] += 0.1
        assert differences(reference, base_identity(model)) == ("llm has other weights in its linear layers",)
        layer.input_layernorm.weight[0] += 0.1
        assert differences(reference, base_identity(model)) == ("llm has other weights",)
    for name, buffer in model.model.vision_tower.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1
            assert "tower has other weights" in differences(reference, base_identity(model))
            break


def test_what_trains_does_not_count(assembled: Assembled) -> None:
    model = copy.deepcopy(assembled.model)
    reference, before = base_identity(model, None, [290, 291]), part_digest(model, "projector")
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.add_(0.5)
        model.get_input_embeddings().weight[290:292] += 1
        assert base_identity(model, None, [290, 291]) == reference
        assert part_digest(model, "projector") != before
        model.get_input_embeddings().weight[17] += 1
    assert differences(reference, base_identity(model, None, [290, 291])) == ("llm has other weights",)


def test_other_llm_other_tower_other_settings(tiny: Path, assembled: Assembled, tmp_path: Path) -> None:
    reference = base_identity(assembled.model)
    tower = tiny / ("clip-vision" if assembled.report.model_class.startswith("Llava") else "mobilenet-v2")
    other = assemble(
        tiny_llm("llama-tied", tmp_path / "llm", seed=7), tower, None, dtype="float32", prove=False
    )
    assert differences(reference, base_identity(other.model)) == ("llm has other weights",)
    kind = tower.name
    moved = tiny_tower(kind, tmp_path / "tower", seed=7)
    other = assemble(tiny / "llama-tied", moved, None, dtype="float32", prove=False)
    assert differences(reference, base_identity(other.model)) == ("tower has other weights",)
    other = assemble(tiny / "llama", tower, None, dtype="float32", prove=False)
    assert "head is new" in differences(reference, base_identity(other.model))
    model = copy.deepcopy(assembled.model)
    model.config.image_token_id = 5
    (difference,) = differences(reference, base_identity(model))
    assert difference.startswith("config.image_token_id is 5, was ")


def test_tokenizers(assembled: Assembled) -> None:
    tokenizer = copy.deepcopy(assembled.processor.tokenizer)
    reference = base_identity(assembled.model, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert differences(reference, base_identity(assembled.model, tokenizer)) == ()
    tokenizer.add_tokens(["circle?"])
    differing = differences(reference, base_identity(assembled.model, tokenizer))
    assert differing == (
        "the tokenizer has another vocabulary",
        "the tokenizer has another way of cutting texts",
    )
    differing = differences(reference, base_identity(assembled.model, tiny_tokenizer()))
    assert "the tokenizer has other special tokens" in differing
    assert compare(reference, base_identity(assembled.model)).not_compared == ("tokenizer (not at hand now)",)


def test_large_tables_are_sampled() -> None:
    from lockadapt.tuning.base_identity import _sample

    table = torch.arange(1000 * 100).reshape(1000, 100)
    rows = _sample(table, [0])[:, 0] // 100
    assert len(rows) == SAMPLED_ROWS - 1  # the first is left out
    assert rows[-1] == 999
    assert torch.equal(_sample(table[:50], ()), table[:50])


def test_a_tower_that_is_not_loaded(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder or "", "float32")
    reference = base_identity(model)
    tower = model.model.vision_tower
    for base in (tower_component(model).__dict__, None):
        record = TowerRecord("nowhere", "", "float32", 1, {}, {}, base)
        model.model.vision_tower = AbsentTower(tower.config, record, "model.vision_tower")
        identity = base_identity(model)
        result = compare(identity, reference)
        assert result.base == ()
        assert ("tower (was not loaded at training)" in result.not_compared) == (base is None)
        model.model.vision_tower = tower


@pytest.mark.parametrize("unit", [True, False])
def test_a_codebook_of_another_length(drawing: Assembled, unit: bool) -> None:
    """lockadapt brings codes to length 1 as it loads; who loads the stock class alone does not."""
    model = copy.deepcopy(drawing.model)
    reference = base_identity(model)
    with torch.no_grad():
        table = model.model.vqmodel.quantize.embedding if unit else model.model.generation_embeddings
        table.weight.mul_(2)
    assert (base_identity(model) == reference) is unit
