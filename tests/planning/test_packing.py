"""A run packs where that is exact and pays, says why or why not, and learns the same as a run that does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers as hf

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.data.pack import pack
from lockadapt.errors import RecipeError
from lockadapt.planning.packing import (
    PackingTrial,
    PackingWish,
    choose_packing,
    packed_tokens,
    padded_tokens,
    to_be_tried,
)
from tests.support.rows import encoded, trainer, vqa_samples
from tests.support.tiny import GROUPED, tiny_llm, tiny_tokenizer

LAYERS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
WINDOWS: dict[str, hf.PreTrainedConfig] = {
    "mistral, all layers": hf.MistralConfig(**GROUPED, sliding_window=8),
    "qwen2": hf.Qwen2Config(**GROUPED, **LAYERS, use_sliding_window=True),
    "gemma3": hf.Gemma3TextConfig(**GROUPED, **LAYERS, head_dim=8),
}


def losses(own) -> list[float]:
    own.train()
    return [line["loss"] for line in own.state.log_history if "loss" in line]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_same_samples_give_the_same_curve(accumulation: int, assembled: Assembled, tmp_path: Path) -> None:
    """With all rows in every step, packed and plain runs see the same samples, so the curves must be one."""
    rows = vqa_samples(tmp_path, repeat=2)
    common = {"per_device_train_batch_size": 16 // accumulation, "gradient_accumulation_steps": accumulation}
    plain = trainer(assembled.folder, rows, tmp_path / "plain", packing="none", **common)
    packed = trainer(
        assembled.folder, rows, tmp_path / "packed", packing="shared", max_samples_per_image=4, **common
    )
    assert plain.packing.max_row_tokens is None
    assert packed.packing.max_row_tokens == 2048
    assert packed.packing.tokens < 0.6 * plain.packing.tokens
    if accumulation == 1:
        assert losses(packed) == pytest.approx(losses(plain), rel=1e-3)
    else:
        assert losses(packed)[0] == pytest.approx(losses(plain)[0], rel=1e-2)


def test_validation_loss_is_the_same(assembled: Assembled, tmp_path: Path) -> None:
    rows = vqa_samples(tmp_path, repeat=2)
    losses = [
        trainer(assembled.folder, rows, tmp_path / packing, validation=rows, packing=packing).evaluate()[
            "eval_loss"
        ]
        for packing in ("shared", "none")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_resumed_packed_run_is_the_same_run(assembled: Assembled, tmp_path: Path) -> None:
    rows = vqa_samples(tmp_path, repeat=3)
    common = {"packing": "shared", "max_samples_per_image": 2, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(assembled.folder, rows, tmp_path / "whole", **common)
    expected = losses(whole)
    again = trainer(assembled.folder, rows, tmp_path / "whole", **common)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [line["loss"] for line in again.state.log_history if "loss" in line][-3:] == expected[-3:]


def test_rows_are_divided_at_the_budget(assembled: Assembled, tmp_path: Path) -> None:
    rows = vqa_samples(tmp_path, repeat=2)
    own = trainer(
        assembled.folder, rows, tmp_path / "out", packing="shared", max_row_tokens=70, max_samples_per_image=4
    )
    widths = {batch["input_ids"].shape[1] for batch in own.get_train_dataloader()}
    longest = max(len(item.input_ids) for item in own.train_dataset.rows["vqa"])
    assert max(widths) <= max(70, longest)


def test_llms_that_cannot_be_packed(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stock"
    assemble(tiny_llm("bloom", tmp_path / "llm"), tiny / "clip-vision", folder, dtype="float32", prove=False)
    rows = vqa_samples(tmp_path, repeat=2)
    common = {"per_device_train_batch_size": 16, "max_samples_per_image": 4}
    own = trainer(folder, rows, tmp_path / "auto", packing="auto", **common)
    assert own.packing.max_row_tokens is None
    assert "takes no positions" in own.packing.why
    with pytest.raises(RecipeError, match="takes no positions"):
        _ = trainer(folder, rows, tmp_path / "shared", packing="shared", **common).packing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("llm", WINDOWS)
def test_windows_shorter_than_a_sample_are_packed_exactly(
    llm: str, attention: str, tiny: Path, tmp_path: Path
) -> None:
    """Bridges around LLMs that look back 8 tokens in some of their layers, where samples have more than 20."""
    folder = tmp_path / "stock"
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(WINDOWS[llm]).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    assemble(tmp_path / "llm", tiny / "clip-vision", folder, dtype="float32", prove=False)
    rows = vqa_samples(tmp_path, repeat=2)
    common = {"per_device_train_batch_size": 16, "max_samples_per_image": 4}
    curves = {}
    for packing in ("none", "shared"):
        own = trainer(folder, rows, tmp_path / packing, packing=packing, **common)
        own.model.get_base_model().set_attn_implementation(attention)
        assert (own.packing.max_row_tokens is None) == (packing == "none")
        curves[packing] = losses(own)
    assert min(len(item.input_ids) for item in own.train_dataset.rows["vqa"]) > 20
    assert curves["shared"] == pytest.approx(curves["none"], rel=1e-3)


def test_a_model_that_ignores_the_mask_is_found_out(assembled: Assembled, tmp_path: Path) -> None:
    """Nothing in the config says so: only computing samples both ways shows it."""
    own = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "out", packing="shared")
    llm = own.model.get_base_model().model.language_model
    llm.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )
    with pytest.raises(RecipeError, match="packed and alone, differ"):
        _ = own.packing


def test_auto_leaves_rows_that_share_nothing() -> None:
    rows = {"caption": [encoded(f"image-{n}", [], [3, 4], [5]) for n in range(8)]}
    trial = PackingTrial(lambda _: None, lambda: None)
    chosen = choose_packing(rows, PackingWish("auto", 100, 4, 4), trial)
    assert chosen.max_row_tokens is None
    assert "save only 0%" in chosen.why
    assert choose_packing(rows, PackingWish("shared", 100, 4, 4), trial).max_row_tokens == 100


def test_tokens_are_counted_as_they_are_run() -> None:
    items = [encoded("image-0", [3], [4, n + 5], [9]) for n in range(4)]
    assert padded_tokens(items, 2) == 4 * 5
    assert packed_tokens(items, 4) == 3 + 4 * 2
    assert packed_tokens(items, 2) == 2 * (3 + 2 * 2)
    longer = dataclasses.replace(items[0], input_ids=torch.arange(10).numpy().astype("int32"))
    assert padded_tokens([*items, longer], 5) > 5 * 6


def test_samples_that_go_on_from_each_other_are_no_trial() -> None:
    """They share all their tokens in one row, so that nothing stands beside anything."""
    nested = [encoded("image-0", [3], [4, 5], [9]), encoded("image-0", [3], [4, 5, 9, 6, 7], [9])]
    for extra in ([], [encoded("image-0", [3], [8], [9]), encoded("image-1", [3], [4], [9])]):
        tried = to_be_tried({"vqa": [*nested, *extra]})
        mask = pack(tried, 0, 100).attention_mask[:, 0]
        assert any(not row[n + 1, n] and row[n + 1, 0] for row in mask for n in range(len(row) - 1))
        assert len(tried) == 3
        assert len({item.images for item in tried}) == (2 if extra else 1)
