"""The processor promises as many image tokens as the model has features, whatever the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from lockadapt.architectures.assemble import Assembled
from lockadapt.models.quiet import quiet


def _pictures() -> dict[str, Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    palette = rgba.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    turned = Image.fromarray(noise[..., :3])
    turned.getexif()[0x0112] = 6
    return {
        "RGB": rgba.convert("RGB"),
        "RGBA": rgba,
        "P": palette,
        "L": rgba.convert("L"),
        "LA": rgba.convert("LA"),
        "1": rgba.convert("1"),
        "CMYK": rgba.convert("RGB").convert("CMYK"),
        "I;16": Image.fromarray(noise[..., 0].astype(np.uint16) * 200),
        "EXIF": turned,
        "1x1": Image.new("RGB", (1, 1), "red"),
        "1x2000": Image.new("RGB", (1, 2000), "red"),
        "2000x1": Image.new("RGB", (2000, 1), "red"),
        "3x7": Image.new("RGB", (3, 7), "red"),
    }


@pytest.mark.parametrize("kind", _pictures())
def test_token_count_is_feature_count(kind: str, assembled: Assembled) -> None:
    picture = _pictures()[kind]
    inputs = assembled.processor(text="<image>what?\n", images=picture, return_tensors="pt")
    tokens = int((inputs["input_ids"] == assembled.model.config.image_token_id).sum())
    with torch.no_grad():
        output = assembled.model(**inputs)  # raises where the counts differ
    assert tokens == assembled.report.tower_facts.tokens
    assert bool(output.logits.isfinite().all())


def test_saved_processor_does_the_same(assembled: Assembled) -> None:
    with quiet():
        again = AutoProcessor.from_pretrained(assembled.folder)
    arguments = {
        "text": ["<image>a<image>b"],
        "images": [list(_pictures().values())[:2]],
        "return_tensors": "pt",
    }
    first, second = assembled.processor(**arguments), again(**arguments)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(first[name], second[name]), name


def test_normalisation_is_the_towers_own(assembled: Assembled) -> None:
    white = assembled.processor.image_processor(images=Image.new("RGB", (9, 9), "white"), return_tensors="pt")
    own = assembled.processor.image_processor
    expected = (1.0 - torch.tensor(own.image_mean)) / torch.tensor(own.image_std)
    torch.testing.assert_close(white["pixel_values"].mean(dim=(0, 2, 3)), expected)


def test_nothing_of_the_image_is_cropped(assembled: Assembled) -> None:
    picture = Image.new("RGB", (200, 40), "black")
    picture.paste("white", (0, 0, 20, 40))
    values = assembled.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    assert float(values[..., 0].mean()) > float(values[..., -1].mean()) + 1


def test_stock_pipeline_answers(assembled: Assembled) -> None:
    with quiet():
        pipe = pipeline("image-text-to-text", model=str(assembled.folder), device="cpu")
        content = [{"type": "image", "image": _pictures()["RGB"]}, {"type": "text", "text": "what?"}]
        answer = pipe(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
