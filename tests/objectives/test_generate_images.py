"""Drawing goes through the stock generate: same seed, same images; other settings, others; nothing else moves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.errors import RecipeError
from lockadapt.objectives.generate_images import generate_image_token_ids, generate_images, grid, pictures
from lockadapt.objectives.image_generation import ImageGenerationConfig
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower

PROMPTS = ["a red circle", "a blue triangle, once upon a time", "yes"]


@pytest.fixture(scope="module")
def lively(drawing: Assembled) -> Any:
    """A model whose codes differ: a fresh head finds all nearly equal."""
    model = copy.deepcopy(drawing.model)
    model.model.generation_head.vision_head.weight.data.mul_(50)
    return model


def test_seeds(lively: Any, drawing: Assembled) -> None:
    state = torch.random.get_rng_state()
    first, again = (
        generate_image_token_ids(lively, drawing.processor, PROMPTS, ImageGenerationConfig(seed=1))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.shape == (3, 16)
    assert not lively.training
    assert not torch.equal(
        first, generate_image_token_ids(lively, drawing.processor, PROMPTS, ImageGenerationConfig(seed=2))
    )
    assert torch.equal(state, torch.random.get_rng_state())


def test_is_what_plain_transformers_draws(lively: Any, drawing: Assembled) -> None:
    """Word for word what a user without lockadapt would write."""
    processor, messages = (
        drawing.processor,
        [{"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}],
    )
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, generation_mode="image", return_tensors="pt")
    torch.manual_seed(5)
    codes = lively.generate(
        **inputs,
        generation_mode="image",
        do_sample=True,
        guidance_scale=3.0,
        temperature=0.9,
        top_k=10,
        top_p=1.0,
        cache=DynamicCache(),
    )
    values = lively.decode_image_tokens(codes).permute(0, 3, 1, 2)
    expected = processor.postprocess(list(values.float()), return_tensors="pt")["pixel_values"]
    settings = ImageGenerationConfig(seed=5, temperature=0.9, top_k=10)
    generated = generate_images(lively, processor, PROMPTS[:1], settings)
    assert torch.equal(codes, generate_image_token_ids(lively, processor, PROMPTS[:1], settings))
    assert generated[0].size == (16, 16)
    assert generated[0].tobytes() == expected[0].permute(1, 2, 0).contiguous().numpy().tobytes()


def test_greedy_rows_do_not_depend_on_their_neighbours(lively: Any, drawing: Assembled) -> None:
    """A rotary LLM does not see how far a row is padded."""
    packed_rows = generate_image_token_ids(
        lively, drawing.processor, PROMPTS, ImageGenerationConfig(temperature=0.0)
    )
    alone = generate_image_token_ids(
        lively, drawing.processor, PROMPTS, ImageGenerationConfig(temperature=0.0, batch_size=1)
    )
    assert torch.equal(packed_rows, alone)
    assert len({tuple(row.tolist()) for row in packed_rows}) == 3


def test_guidance_and_adapter_count(lively: Any, drawing: Assembled) -> None:
    plain = generate_image_token_ids(
        lively, drawing.processor, PROMPTS, ImageGenerationConfig(temperature=0.0)
    )
    guided = ImageGenerationConfig(temperature=0.0, guidance_scale=9.0)
    assert not torch.equal(plain, generate_image_token_ids(lively, drawing.processor, PROMPTS, guided))
    adapted = attach_lora(copy.deepcopy(lively), lora_config(lively, LoraSettings(rank=2)))
    assert torch.equal(
        plain,
        generate_image_token_ids(adapted, drawing.processor, PROMPTS, ImageGenerationConfig(temperature=0.0)),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.train()
    assert not torch.equal(
        plain,
        generate_image_token_ids(adapted, drawing.processor, PROMPTS, ImageGenerationConfig(temperature=0.0)),
    )
    assert adapted.training


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma3-text"])
def test_other_llms(kind: str, tmp_path: Path) -> None:
    llm, tower = tiny_llm(kind, tmp_path / "llm"), tiny_tower("siglip", tmp_path / "tower")
    codes = tiny_image_tokenizer(tmp_path / "vq")
    made = assemble(llm, tower, None, image_tokenizer=codes, dtype="float32", prove=False)
    assert generate_image_token_ids(made.model, made.processor, PROMPTS, ImageGenerationConfig()).shape == (
        3,
        16,
    )


def test_trained_in_float32_beside_16_bits(lively: Any, drawing: Assembled) -> None:
    model = copy.deepcopy(lively).bfloat16()
    for part in (model.model.generation_aligner, model.model.generation_head):
        part.float()
    assert generate_image_token_ids(model, drawing.processor, PROMPTS, ImageGenerationConfig()).shape == (
        3,
        16,
    )


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.0}, {"temperature": -1.0}])
def test_impossible_settings(settings: dict[str, float], drawing: Assembled) -> None:
    with pytest.raises(RecipeError, match="not supported"):
        generate_image_token_ids(
            drawing.model,
            drawing.processor,
            PROMPTS,
            ImageGenerationConfig(**settings),  # type: ignore[arg-type]
        )


def test_nothing_to_draw(drawing: Assembled) -> None:
    codes = generate_image_token_ids(drawing.model, drawing.processor, [], ImageGenerationConfig())
    assert codes.shape == (0, 16)
    assert pictures(drawing.model, drawing.processor, codes) == []


def test_grid(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    grid(
        images,
        ["a red one", "a green one", "a blue one that is told about at great length"],
        tmp_path / "g.png",
        columns=2,
    )
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width == 2 * 134 + 6
        assert picture.height == 2 * 148 + 6
        assert picture.getpixel((70, 70)) == (255, 0, 0)
        assert picture.getpixel((70, 218)) == (0, 0, 255)
