"""Every LLM and every tower keeps computing what it did, measured against the sources loaded by Transformers itself."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.features import projector_input
from lockadapt.errors import AssemblyError, LockadaptError, RecipeError
from lockadapt.models.quiet import quiet
from tests.support.tiny import FEATURE_MAPS, LLMS, ODD_LLMS, ROWS, SIDE, TOWERS, tiny_llm, tiny_tower


@pytest.mark.parametrize("kind", LLMS)
def test_llm_keeps_its_logits_and_its_tie(kind: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny_llm(kind, tmp_path / "llm")
    assemble(source, tiny / "clip-vision", tmp_path / "out", dtype="float32", prove=False)
    with quiet():
        llm = AutoModelForCausalLM.from_pretrained(source).eval()
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(0, 290, (3, 20), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    with torch.no_grad():
        before = llm(input_ids=ids, attention_mask=mask).logits
        after = model.eval()(input_ids=ids, attention_mask=mask).logits
    keep = mask.bool()
    torch.testing.assert_close(after[keep][:, :ROWS], before[keep], atol=1e-6, rtol=1e-5)
    tied = llm.get_input_embeddings().weight is llm.get_output_embeddings().weight
    still = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert still == (tied and kind not in ("gpt2", "opt", "bloom"))
    for table, old in (
        (model.get_input_embeddings().weight, llm.get_input_embeddings().weight),
        (model.lm_head.weight, llm.get_output_embeddings().weight),
    ):
        assert table.shape[0] == 320
        torch.testing.assert_close(table[ROWS:], old.mean(dim=0).expand(20, -1), atol=1e-6, rtol=1e-5)
    assert model.config.text_config.vocab_size == 320


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("phi", "head bias"),
        ("gemma2", "soft-cap .* 30"),
        ("cohere", "logit scale .* 0.0625 times"),
        ("granite", "logit scale .* 0.125 times"),
        ("opt-350m", "embedding of 16 dimensions"),
        ("bert", "between its blocks and its head"),
    ],
)
def test_what_no_stock_class_holds_is_named(kind: str, named: str, tiny: Path, tmp_path: Path) -> None:
    assert kind in ODD_LLMS
    source = tiny_llm(kind, tmp_path / "llm")
    with pytest.raises(AssemblyError, match=named) as caught:
        assemble(source, tiny / "clip-vision", tmp_path / "out", dtype="float32", prove=False)
    assert caught.value.where == str(source)
    assert caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm"]


@pytest.mark.parametrize("kind", TOWERS)
def test_tower_keeps_its_features(kind: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny_tower(kind, tmp_path / "tower")
    result = assemble(tiny / "llama", source, tmp_path / "out", dtype="float32", prove=False)
    facts, model = result.report.tower_facts, result.model
    with quiet():
        tower = AutoModel.from_pretrained(source).eval()
    tower = getattr(tower, "vision_model", tower) if kind in ("clip", "siglip") else tower
    pixels = torch.randn(2, 3, facts.image_size, facts.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = tower(pixels, output_hidden_states=True)
    if kind in FEATURE_MAPS:
        assert type(model).__name__ == "FastVlmForConditionalGeneration"
        expected = output.last_hidden_state.flatten(2).transpose(1, 2)
    else:
        assert type(model).__name__ == "LlavaForConditionalGeneration"
        dropped = 0 if kind.startswith("siglip") else 1
        expected = output.hidden_states[-2][:, dropped:]
    assert float((expected[0] - expected[1]).abs().max()) > 0.05, "the tower does not look"
    actual = projector_input(model, pixels)
    assert actual.shape == (2, facts.tokens, facts.hidden_size)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_linear_fusion_is_linear(tiny: Path, tmp_path: Path) -> None:
    result = assemble(
        tiny / "llama",
        tiny / "clip-vision",
        tmp_path / "out",
        fusion_name="linear",
        dtype="float32",
        prove=False,
    )
    projector = result.model.model.multi_modal_projector
    x, y = torch.randn(2, 24), torch.randn(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            projector(x + y) + projector(torch.zeros(2, 24)), projector(x) + projector(y)
        )
        torch.testing.assert_close(projector(x), projector.linear_1(x))


def test_seed_decides_the_projector(tiny: Path) -> None:
    def first_weight(seed: int) -> torch.Tensor:
        made = assemble(tiny / "llama", tiny / "clip-vision", None, dtype="float32", seed=seed, prove=False)
        assert made.folder is None
        return made.model.model.multi_modal_projector.linear_1.weight

    assert torch.equal(first_weight(3), first_weight(3))
    assert not torch.equal(first_weight(3), first_weight(4))


def test_half_precision_is_stored_and_proved(tiny: Path, tmp_path: Path) -> None:
    result = assemble(
        tiny / "llama-tied", tiny / "mobilenet-v2", tmp_path / "out", dtype="bfloat16", prove=False
    )
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    with quiet():
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == torch.bfloat16


def test_the_folder_is_clean(assembled: Assembled, tiny: Path) -> None:
    folder = assembled.folder
    assert folder is not None
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= names
    assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= names
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) & 0o444 == 0o444
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    for path in folder.glob("*.json"):
        assert str(tiny) not in path.read_text(encoding="utf-8"), (
            f"{path.name} gives away where the sources were"
        )
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (1, 2)
    with quiet():
        processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.image_token == "<image>"
    assert processor.image_token_id == assembled.model.config.image_token_id == 290
    json.dumps(assembled.report.to_dict())


def test_contradictory_generation_settings_do_not_stop_it(tiny: Path, tmp_path: Path) -> None:
    source = tiny_llm("llama", tmp_path / "llm")
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": [1, 5]}
    (source / "generation_config.json").write_text(json.dumps(settings))
    assemble(source, tiny / "clip-vision", tmp_path / "out", dtype="float32", prove=False)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, 5]
    assert "temperature" not in saved


def test_a_full_folder_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="not empty"):
        assemble(tiny / "llama", tiny / "clip-vision", tmp_path, dtype="float32", prove=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_printed(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tower = tiny_tower("vit-classifier", tmp_path / "tower")
    capfd.readouterr()
    assemble(tiny / "llama", tower, tmp_path / "out", dtype="float32", prove=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("tower", "settings", "named"),
    [
        ("clip-vision", {"image_size": 64}, "cannot take images of 64 x 64"),
        ("clip-vision", {"feature_layer": 9}, "no hidden layer 9"),
        ("llama", {}, "does not take images"),
        ("mobilenet-v2", {"image_size": 544}, "an image takes 289 tokens, the LLM's context holds 256"),
    ],
)
def test_towers_that_cannot_serve(tower: str, settings: dict, named: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(LockadaptError, match=named):
        assemble(tiny / "llama", tiny / tower, tmp_path / "out", dtype="float32", prove=False, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "size", "tokens"), [("dinov2", 48, 36), ("mobilenet-v2", 129, 25)])
def test_image_size_is_a_choice(kind: str, size: int, tokens: int, tiny: Path, tmp_path: Path) -> None:
    source = tiny_tower(kind, tmp_path / "tower")
    result = assemble(tiny / "llama", source, None, image_size=size, dtype="float32", prove=False)
    assert result.report.tower_facts.image_size == size
    assert result.report.tower_facts.tokens == tokens
    assert size != SIDE
