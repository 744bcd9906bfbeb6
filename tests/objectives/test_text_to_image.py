"""Text-to-image: prompts, dropped prompts, loss and gradients, each against what the stock class itself does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import DynamicCache

from lockadapt.architectures.assemble import Assembled
from lockadapt.data.encode import Encoder
from lockadapt.data.sample import ImageRef, Sample, Turn, question_answer
from lockadapt.errors import DataError
from lockadapt.objectives import text_to_image
from lockadapt.objectives.image_generation import generation_prompts
from lockadapt.objectives.text_to_image import TextToImage, image_token_losses
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable

CAPTIONS = ["a red circle", "yes", "what shape is in the image? a blue triangle"]


class Codes:
    """Stands for `ImageTokenInputs`: codes that depend on the image."""

    replacement = None

    def __call__(self, images: Any) -> dict[str, torch.Tensor]:
        rows = [torch.arange(16) * (len(image.key) + 1) % 24 for image in images]
        return {"image_token_ids": torch.stack(rows)}


class Views(Codes):
    """The same with ten crops, each of one code only."""

    def __call__(self, images: Any) -> dict[str, torch.Tensor]:
        crops = torch.arange(10)[None, :, None].expand(len(images), 10, 16)
        return {**super().__call__(images), "image_crops": crops}


def samples() -> list[Sample]:
    picture = Image.new("RGB", (16, 16), "red")
    return [
        question_answer(
            "Describe the image.", caption, [ImageRef("i" * number, picture=picture)], f"r:{number}"
        )
        for number, caption in enumerate(CAPTIONS)
    ]


def batch_of(assembled: Assembled, objective: TextToImage, images: Codes | None = None) -> dict[str, Any]:
    encoder = Encoder(assembled.processor, 128)
    items = objective.encode(encoder, samples()).encoded
    return objective.collate(items, images or Codes(), encoder.tokenizer.pad_token_id, "t2i")


def test_prompts_are_the_processors_own(drawing: Assembled) -> None:
    processor = drawing.processor
    for caption, ids in zip(CAPTIONS, generation_prompts(processor, CAPTIONS), strict=True):
        messages = [{"role": "user", "content": [{"type": "text", "text": caption}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        expected = processor(text=text, generation_mode="image")["input_ids"][0]
        assert ids.tolist() == expected.tolist()
        assert ids[-1] == processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)


def test_dropped_prompts_are_those_of_stock_generate(drawing: Assembled) -> None:
    """What the stock class feeds its LLM first: the prompts, then the unconditional ones."""
    model, batch = drawing.model, batch_of(drawing, TextToImage())
    seen: list[dict[str, Any]] = []

    def look(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        seen.append(arguments)

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        generation_mode="image",
        cache=DynamicCache(),
        do_sample=False,
    )
    handle.remove()
    table = model.get_input_embeddings()
    expected = table(torch.cat([batch["input_ids"], batch["unconditional_ids"]]))
    assert torch.equal(seen[0]["inputs_embeds"], expected)
    assert torch.equal(seen[0]["attention_mask"], batch["attention_mask"].repeat(2, 1))
    assert seen[0].get("position_ids") is None
    assert not torch.equal(batch["input_ids"], batch["unconditional_ids"])


def reference(model: Any, batch: dict[str, Any], row: int) -> torch.Tensor:
    """Row by row without padding, the codes fed one after the other from a cache: as the stock class draws."""
    mask = batch["attention_mask"][row].bool()
    # Absolute places are those of the padded row.
    ids, places = batch["input_ids"][row][mask][None], torch.arange(len(mask))[mask][None]
    llm, cache, losses = model.model.language_model, DynamicCache(), []
    step = model.get_input_embeddings()(ids)
    for code in batch["image_token_ids"][row]:
        out = llm(inputs_embeds=step, position_ids=places, cache=cache, use_cache=True)
        logits = model.model.generation_head(out.last_hidden_state[:, -1])
        losses.append(F.cross_entropy(logits, code[None], reduction="none"))
        step = model.prepare_embeddings_for_image_generation(code[None, None])
        places = places[:, -1:] + 1
    return torch.cat(losses)


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunked", [False, True])
def test_loss_and_gradients(drawing: Assembled, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    objective = TextToImage(prompt_drop=0.0)
    batch = batch_of(drawing, objective)
    base = copy.deepcopy(drawing.model)
    model = attach_lora(base, lora_config(base, LoraSettings(rank=4)))
    set_trainable(model, ["generation", "lora"])
    generator = torch.Generator().manual_seed(3)
    for name, parameter in base.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    if chunked:
        monkeypatch.setattr(text_to_image, "CHUNK_BYTES", 4 * 24 * 5)
    loss, report = objective.loss(model.train(), batch)
    loss.backward()
    gradients = trainable(base)
    base.zero_grad()
    expected = torch.cat([reference(base, batch, row) for row in range(len(CAPTIONS))]).mean()
    expected.backward()
    assert float(report["tokens"]) == 16 * len(CAPTIONS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted = trainable(base)
    assert gradients.keys() == wanted.keys()
    assert any("generation_head" in name for name in gradients)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_starts_near_ln_codes_and_reads_the_codes(drawing: Assembled) -> None:
    batch = batch_of(drawing, TextToImage())
    ids, mask, codes = batch["input_ids"], batch["attention_mask"], batch["image_token_ids"]
    with torch.no_grad():
        losses, _ = image_token_losses(drawing.model, ids, mask, codes)
        other = codes.clone()
        other[:, 3] = (other[:, 3] + 1) % 24
        changed, _ = image_token_losses(drawing.model, ids, mask, other)
    assert float(losses.mean()) == pytest.approx(np.log(24), abs=0.2)
    moved = (losses - changed).view(-1, 16).abs().sum(0)
    assert not bool(moved[:3].any())
    assert bool((moved[3:] > 0).all())


def test_noise_is_read_and_never_learned(drawing: Assembled) -> None:
    """Other codes are read in training, the same are predicted: later positions move, the first never does."""
    batch = batch_of(drawing, TextToImage())
    objective, model = TextToImage(prompt_drop=0.0, image_token_noise=0.5), copy.deepcopy(drawing.model)
    ids, mask, codes = batch["input_ids"], batch["attention_mask"], batch["image_token_ids"]
    read = (codes + 1) % 24
    with torch.no_grad():
        true, _ = image_token_losses(model.eval(), ids, mask, codes)
        noisy, _ = image_token_losses(model, ids, mask, codes, read)
        torch.testing.assert_close(noisy.view(-1, 16)[:, 0], true.view(-1, 16)[:, 0])
        assert bool((noisy != true).view(-1, 16)[:, 1:].any())
        still = [float(objective.loss(model, batch)[0]) for _ in range(2)]
        assert still[0] == still[1] == pytest.approx(float(true.mean()))
        moving = {float(objective.loss(model.train(), batch)[0]) for _ in range(3)}
    assert len(moving) == 3


def test_crops_are_learned_only_while_training(drawing: Assembled) -> None:
    """Each of many rows is the loss of the whole or of one crop; all eleven are met; evaluation takes the whole."""
    objective, model = TextToImage(prompt_drop=0.0, crops=True), copy.deepcopy(drawing.model)
    assert (objective.frozen, TextToImage().frozen) == ("crops", "image_tokens")
    batch = batch_of(drawing, objective, Views())
    single = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    ids, mask = single["input_ids"], single["attention_mask"]
    views = [single["image_token_ids"], *single["image_crops"].unbind(1)]
    with torch.no_grad():
        wanted = [float(image_token_losses(model.eval(), ids, mask, view)[0].mean()) for view in views]
        assert float(objective.loss(model, single)[0]) == pytest.approx(wanted[0])
        torch.manual_seed(0)
        losses = {round(float(objective.loss(model.train(), single)[0]), 4) for _ in range(120)}
    assert losses == {round(loss, 4) for loss in wanted}
    assert len(losses) == 11


def test_drops_only_while_training(drawing: Assembled) -> None:
    objective, model = TextToImage(prompt_drop=1.0), copy.deepcopy(drawing.model)
    batch = batch_of(drawing, objective)
    with torch.no_grad():
        plain = float(objective.loss(model.eval(), batch)[0])
        dropped = float(objective.loss(model.train(), batch)[0])
        there = {**batch, "input_ids": batch["unconditional_ids"]}
        assert dropped == pytest.approx(float(TextToImage(prompt_drop=0.0).loss(model, there)[0]), abs=1e-6)
    assert plain != pytest.approx(dropped, abs=1e-7)


def test_needs_one_image_and_a_processor_that_draws(drawing: Assembled, assembled: Assembled) -> None:
    nothing = Sample((), (Turn("user", "draw"), Turn("assistant", "a circle")), "rows:7")
    with pytest.raises(DataError, match="rows:7"):
        TextToImage().encode(Encoder(drawing.processor, 64), [nothing])
    with pytest.raises(DataError, match="image_tokenizer"):
        TextToImage().encode(Encoder(assembled.processor, 64), samples())


def test_too_long_captions_are_dropped(drawing: Assembled) -> None:
    report = TextToImage().encode(Encoder(drawing.processor, 30), samples())
    assert report.dropped == ["r:2"]
    assert len(report.encoded) == 2


def test_halves_of_generated_images_see_the_same_random_numbers(drawing: Assembled) -> None:
    objective = TextToImage(prompt_drop=0.5, image_token_noise=0.3, crops=True)
    model, batch = drawing.model.train(), batch_of(drawing, objective, Views())
    torch.manual_seed(3)
    whole, report = objective.loss(model, batch)
    assert int(report["tokens"]) == objective.terms(batch)
    torch.manual_seed(3)
    drawn = objective.random_numbers(model, batch, 3)
    assert set(drawn) == {"prompt_dropped", "view", "misread", "misread_as"}
    parts = []
    for part in (slice(0, 2), slice(2, 3)):
        rows = {k: v[part] for k, v in {**batch, **drawn}.items() if torch.is_tensor(v)}
        parts.append(objective.loss(model, rows)[0] * len(rows["input_ids"]) / 3)
    model.eval()
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=0, atol=1e-6)
