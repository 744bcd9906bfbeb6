"""Samples that share a row, in stock classes of any kind: losses and gradients are the stock forward's on plain rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import parameters_at
from lockadapt.architectures.masks import MaskRule, fit, learn_masks, learned_masks
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.sample import Sample, Turn
from lockadapt.features.inputs import memory_features
from lockadapt.models.chat_template import adds_special_tokens
from lockadapt.objectives.answer_tokens import answer_loss, model_inputs
from lockadapt.planning.exactness import Trial, try_packing
from lockadapt.planning.packing import to_be_tried, why_not_exact
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config
from lockadapt.tuning.quantize import load_quantized
from tests.support.rows import padded_labels, picture_questions
from tests.support.zoo import entry_of

WITHOUT_TORCHVISION = (
    "gemma3",
    "gemma3_short_window",
    "idefics3",
    "idefics2",
    "llava_next",
    "deepseek_vl",
    "aya_vision_short_window",
)
WITH_TORCHVISION = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "internvl", "internvl_short_window"),
    *("llava_onevision", "mistral3", "pixtral_short_window", "gemma4_short_window", "granite4_vision"),
    *("video_llama_3", "exaone4_5"),
)
ONE_IMAGE = ("deepseek_vl", "idefics2")
"""Classes whose processor is not given two images a row here."""
LOSS, GRADIENT = 5e-6, 5e-5
"""Largest differences: of the loss, and of a tensor's gradient relative to its largest entry, both in float32."""


def samples(name: str) -> list[Sample]:
    """Three and two questions about pictures of two shapes, a dialogue, and two pictures at once."""
    rows = picture_questions(
        ("What is this?", "red and round"),
        ("How many?", "three"),
        ("How many things?", "none"),
        pictures={"a": (64, 48)},
    )
    rows += picture_questions(
        ("What is this?", "a long blue line, I think"), ("Is it big?", "no"), pictures={"b": (40, 96)}
    )
    again = (*rows[0].turns, Turn("user", "Sure?"), Turn("assistant", "yes"))
    rows.append(Sample(rows[0].images, again, where="dialogue"))
    if name not in ONE_IMAGE:
        rows += picture_questions(
            ("Which is red?", "the first"),
            ("Which is long?", "the second"),
            pictures={"c": (64, 48), "d": (40, 56)},
        )
    return rows


def built(name: str) -> tuple[Any, Any, list[Encoded]]:
    """A tiny model with gradients everywhere but in its head, its processor, and encoded rows."""
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    model, processor = entry.build()
    model.requires_grad_(True).get_submodule(layout_of(model).head).requires_grad_(False)
    return model, processor, Encoder(processor, 4096).encode(samples(name)).encoded


def stock_batch(processor: Any, items: list[Encoded]) -> dict[str, Any]:
    """What the stock processor makes of the whole conversations, beside the labels."""
    write = Encoder(processor, 4096).dialogue.write
    texts = [write(item.sample).text for item in items]
    pictures = [[image.picture for image in item.images] for item in items]
    special = adds_special_tokens(processor.tokenizer, texts[0])
    made = processor(
        text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=special
    )
    batch = {key: value for key, value in made.items() if key != "labels"}
    labels = torch.full_like(batch["input_ids"], -100)
    for row, item in enumerate(items):
        there = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row, there].tolist() == item.input_ids.tolist()
        labels[row, there] = padded_labels([item])[0]
    return {**batch, "labels": labels}


def batches(processor: Any, items: list[Encoded], max_row_tokens: int | None) -> Batch:
    return collate(
        items, pixel_inputs(processor, 10**6), processor.tokenizer.pad_token_id, "vqa", max_row_tokens
    )


def tried(model: Any, processor: Any, items: list[Encoded]) -> Trial:
    return try_packing(
        model, to_be_tried({"vqa": items}), lambda some, limit: batches(processor, some, limit), 2048
    )


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", [*WITHOUT_TORCHVISION, *WITH_TORCHVISION])
def test_packed_rows_are_the_stock_forward_on_plain_ones(name: str) -> None:
    """The zoo's short windows are of 8 tokens, where samples have 40 and more."""
    model, processor, items = built(name)
    assert why_not_exact(model, 100) is None
    trial = tried(model, processor, items)
    assert trial.problem is None, trial
    packed = batches(processor, items, 2048)
    assert packed["input_ids"].numel() < 0.85 * sum(len(item.input_ids) for item in items)
    theirs = model(**stock_batch(processor, items)).loss
    expected = gradients(model, theirs)
    ours = answer_loss(model, packed)[0]
    measured = gradients(model, ours)
    assert abs(float((ours - theirs).detach())) < LOSS
    assert measured.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        size = max(float(gradient.abs().max()), 1e-3 * largest)  # a key's bias has a gradient of zero
        assert float((measured[key] - gradient).abs().max()) < GRADIENT * size, key


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("gemma3_short_window", {"sliding_attention": (8, True), "full_attention": (None, True)}),
        ("gemma3", {"sliding_attention": (4096, True), "full_attention": (None, True)}),
        ("gemma4_short_window", {"sliding_attention": (8, True), "full_attention": (None, False)}),
        ("pixtral_short_window", {"": (8, False)}),
        ("idefics3", {"": (None, False)}),
    ],
)
def test_rules_are_read_off_the_masks_that_layers_are_given(
    name: str, rules: dict[str, tuple[int | None, bool]]
) -> None:
    """Windows in tokens, the config's where no sample shows them; and whether image tokens see each other forwards."""
    model, processor, items = built(name)
    image = {int(token) for item in items for token in item.input_ids[item.image_end - 1 : item.image_end]}
    plain = batches(processor, items, None)
    inputs = model_inputs(model, plain)
    assert learn_masks(model, inputs, plain["input_ids"], plain["attention_mask"]) is None
    learned = learned_masks(model).rules
    assert {kind: (rule.window, rule.both_ways == tuple(image)) for kind, rule in learned.items()} == rules


@pytest.mark.parametrize(("name", "layers"), [("qwen3_5", "linear_attention"), ("lfm2_vl", "conv")])
def test_layers_that_carry_a_state_are_refused_by_structure_and_by_trial(name: str, layers: str) -> None:
    model, processor, items = built(name)
    assert f"has {layers} layers" in (why_not_exact(model, 100) or "")
    assert "mixed" in (tried(model, processor, items).problem or "")


@pytest.mark.parametrize("name", ["gemma3", "gemma3_short_window"])
def test_the_trial_sees_a_mask_that_no_rule_wrote(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image tokens that see each other forwards, and windows, are lost with the rules that say so."""
    model, processor, items = built(name)
    monkeypatch.setattr("lockadapt.planning.exactness.learn_masks", lambda *_: None)
    assert "packed and alone" in (tried(model, processor, items).problem or "")


def test_the_trial_sees_positions_that_are_not_the_classs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor, items = built("qwen2_5_vl")
    monkeypatch.setattr("lockadapt.architectures.generic.positions._owner", lambda _: None)
    assert "packed and alone" in (tried(model, processor, items).problem or "")


def test_what_no_rule_explains_is_not_guessed() -> None:
    """Every other token seen; and runs of tokens that are no runs in another sample."""
    ids, causal = torch.arange(6), torch.ones(6, 6, dtype=torch.bool).tril()
    assert fit([(causal, ids)]) == MaskRule()
    assert fit([(causal & (ids % 2 == 0), ids)]) is None
    assert fit([(torch.ones(6, 6, dtype=torch.bool), ids), (causal, ids)]) is None


def test_a_window_in_a_tree_counts_along_the_branch() -> None:
    """Tokens 0 1 2, then a branch 3 4 behind token 0, window 2: token 3 sees token 0, which stands three places back."""
    ancestors = torch.eye(5, dtype=torch.bool)
    for token, before in ((1, [0]), (2, [0, 1]), (3, [0]), (4, [0, 3])):
        ancestors[token, before] = True
    sees = MaskRule(window=2).mask(ancestors[None], torch.tensor([[0, 1, 2, 1, 2]]), torch.arange(5)[None])[0]
    assert [row.nonzero().flatten().tolist() for row in sees] == [[0], [0, 1], [1, 2], [0, 3], [3, 4]]


EIGHT = (
    *("qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3"),
    *("internvl", "llava_next", "llava_onevision", "mistral3"),
)


@pytest.mark.parametrize("name", EIGHT)
def test_packed_and_cached_is_plain_and_live(name: str) -> None:
    model, processor, items = built(name)
    model.requires_grad_(False)
    learned = [p for path in layout_of(model).projector for p in parameters_at(model, path)]
    learned += [p for n, p in model.named_parameters() if n.startswith(layout_of(model).llm)][-4:]
    compare_with_stock(name, model, processor, items, learned)


@pytest.mark.parametrize("name", EIGHT)
def test_packed_cached_quantized_and_adapted_is_plain_and_live(name: str, tmp_path: Path) -> None:
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    entry.write(tmp_path)
    model, processor = load_quantized(tmp_path, "nf4", torch.float32)
    items = Encoder(processor, 4096).encode(samples(name)).encoded
    peft = attach_lora(model, lora_config(model, LoraSettings(rank=4)))
    for parameter_name, parameter in peft.named_parameters():
        if ".lora_B." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.requires_grad_(False)
    learned = [p for path in layout_of(model).projector for p in parameters_at(model, path)]
    learned += [p for n, p in model.named_parameters() if ".lora_" in n]
    assert len(learned) > 8
    compare_with_stock(name, model, processor, items, learned)


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "llava_next"])
def test_what_is_kept_of_a_model_that_is_not_frozen_yet_has_no_graph(name: str) -> None:
    model, processor, items = built(name)
    assert any(p.requires_grad for p in model.get_submodule(layout_of(model).tower).parameters())
    kept = memory_features(model, pixel_inputs(processor, 10**6))
    batch = collate(items[:2], kept, processor.tokenizer.pad_token_id, "vqa")
    for _ in range(2):  # a graph would be gone the second time
        answer_loss(model, batch)[0].backward()
    assert all(p.grad is None for p in model.get_submodule(layout_of(model).tower).parameters())


@pytest.mark.parametrize("name", EIGHT)
def test_trl_computes_the_same_loss(name: str, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    model, processor, items = built(name)
    row = {"prompt": "a", "completion": "b", "images": [Image.new("RGB", (64, 48))]}
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([row]),
        processing_class=processor,
    )
    model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(model, stock_batch(processor, items))
        assert tried(model, processor, items).problem is None
        ours = answer_loss(model, batches(processor, items, 2048))[0]
    assert abs(float(ours - theirs)) < LOSS


def compare_with_stock(
    name: str, model: Any, processor: Any, items: list[Encoded], learned: list[torch.nn.Parameter]
) -> None:
    """Loss and gradients of packed rows with kept features and checkpointing, against the class's own forward."""
    if name == "llava_onevision":  # cuts no tiles of pictures that stand beside others
        items = [item for item in items if len(item.images) == 1]
    for parameter in learned:
        parameter.requires_grad_(True)
    expected = model(**stock_batch(processor, items)).loss
    wanted = torch.autograd.grad(expected, learned, allow_unused=True)
    assert tried(model, processor, items).problem is None
    kept = memory_features(model, pixel_inputs(processor, 10**6))
    batch = collate(items, kept, processor.tokenizer.pad_token_id, "vqa", 2048)
    assert len(batch["input_ids"]) < len(items)
    assert "pixel_values" not in batch
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss = answer_loss(model, batch)[0]
    assert abs(float(loss.detach() - expected.detach())) < 5e-6
    for found_gradient, gradient in zip(
        torch.autograd.grad(loss, learned, allow_unused=True), wanted, strict=True
    ):
        assert (found_gradient is None) == (gradient is None)
        if gradient is not None and found_gradient is not None:
            largest = float(gradient.abs().max())
            assert float((found_gradient - gradient).abs().max()) < 5e-5 * max(largest, 1e-3)
