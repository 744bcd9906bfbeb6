"""How images stand in the text, asked of the stock processor itself."""

from __future__ import annotations

from typing import Any

from PIL import Image

from lockadapt.architectures.base import ImageSpan


def counted_span(processor: Any) -> ImageSpan:
    """As many image tokens as the processor makes of a blank picture, with nothing around them."""
    return ImageSpan(processor.image_token, count_image_tokens(processor))


def count_image_tokens(processor: Any) -> int:
    """How many tokens one image takes, asked of the processor with a blank picture."""
    blank = Image.new("RGB", (32, 32), "white")
    ids = processor(images=[blank], text=processor.image_token, return_tensors="pt")["input_ids"][0]
    return int((ids == processor.tokenizer.convert_tokens_to_ids(processor.image_token)).sum())
