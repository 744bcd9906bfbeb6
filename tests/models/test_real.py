"""The real tiny LLM and the real ImageNet tower: whose tokenizer puts spaces last, whose pad is its unk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.models.quiet import quiet

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def bridged(real: Path) -> Assembled:
    """tinystories-656k with MobileNetV2 at 128 pixels, calibrated on twelve images."""
    images = [
        Image.open(real / f"data/easy-vqa/train/images/{number}.png").convert("RGB") for number in range(12)
    ]
    return assemble(
        real / "llm/tinystories-656k",
        real / "tower/mobilenetv2-1.0-224",
        None,
        image_size=128,
        dtype="float32",
        calibration_images=images,
        prove=False,
    )


def test_shape_of_the_bridge(bridged: Assembled) -> None:
    report = bridged.report
    assert report.model_class == "FastVlmForConditionalGeneration"
    assert (report.tower_facts.tokens, report.tower_facts.hidden_size) == (16, 1280)
    assert report.rows == (2048, 2112)
    assert report.image_token_id == 2048
    assert report.unused_keys == ("classifier.bias", "classifier.weight")


def test_prompt_tokens_begin_the_whole(bridged: Assembled) -> None:
    def ids(messages: list[dict], prompt: bool) -> list[int]:
        text = bridged.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return bridged.processor.tokenizer(text, add_special_tokens=False).input_ids

    content = [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]
    user = {"role": "user", "content": content}
    for answer in ("red", "a blue circle", "yes", "Yes, there is."):
        prompt = ids([user], True)
        whole = ids([user, {"role": "assistant", "content": answer}], False)
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == bridged.processor.tokenizer.eos_token_id


def test_it_still_tells_stories(bridged: Assembled, real: Path) -> None:
    with quiet():
        llm = AutoModelForCausalLM.from_pretrained(real / "llm/tinystories-656k").eval()
    start = bridged.processor.tokenizer("Once upon a time", return_tensors="pt").input_ids
    settings = {"max_new_tokens": 30, "do_sample": False, "attention_mask": torch.ones_like(start)}
    assert torch.equal(bridged.model.generate(start, **settings), llm.generate(start, **settings))
