"""Token ids that clients make of a prompt, with which the encoder's own are compared."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.data.images import open_image
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.models.chat_template import adds_special_tokens

MAX_PIXELS = 100_000_000
"""Of images that are opened for their sizes: a header that says more is refused whatever `data.max_pixels`
says."""


def stock_input_ids(stock: StockInputs, messages: list[dict[str, Any]], sample: Sample) -> list[int]:
    """As `stock_prompt_ids`, with a row's own pictures; the keys of tokens are compared as well.

    Args:
        stock: the processor, looked at.
        messages: a conversation without its last answer.
        sample: whose pictures are shown.

    Returns:
        The ids.

    Raises:
        DataError: a picture cannot be read, or a key of tokens is decided by more than the tokens.
    """
    text = stock.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pictures = [open_image(image, MAX_PIXELS, sample.where) for image in sample.images]
    special = adds_special_tokens(stock.processor.tokenizer, text)
    made = stock.make([text], [pictures], add_special_tokens=special)
    ours = {name: key.of(made["input_ids"]) for name, key in stock.token_keys.items()}
    ours |= stock.row_keys(made["input_ids"], made) if pictures else {}
    for name, value in ours.items():
        if not torch.equal(value, made[name]):
            raise DataError(
                f"{name} of this conversation is decided by more than the token itself",
                where=sample.where,
                fix="start from another checkpoint",
            )
    return [int(token) for token in made["input_ids"][0]]


def refuse_text_alone(stock: StockInputs, sample: Sample) -> None:
    """Refuses a row without an image, where each must show one.

    Args:
        stock: the processor, looked at.
        sample: the row.

    Raises:
        DataError: it shows none.
    """
    if stock.needs_images and not sample.images:
        raise DataError(
            f"{type(stock.processor).__name__} is shown an image with every text, and the row has none",
            where=sample.where,
            fix="leave the row out, or start from another class",
        )


def stock_prompt_ids(
    processor: Any, messages: list[dict[str, Any]], images: int, where: str | None = None
) -> list[int]:
    """Token ids that a stock processor makes of a conversation that asks for an answer, with blank pictures.

    Args:
        processor: as clients load it.
        messages: a conversation without its last answer.
        images: how many pictures the messages show.
        where: the row, for messages.

    Returns:
        The ids.

    Raises:
        DataError: the chat template writes more or fewer image markers.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if text.count(processor.image_token) != images:
        raise DataError(
            f"the chat template writes {text.count(processor.image_token)} image markers for {images} images",
            where=where,
            fix="use a chat template that writes one for each image",
        )
    made = processor(
        text=[text],
        images=[Image.new("RGB", (32, 32), "white")] * images or None,
        add_special_tokens=adds_special_tokens(processor.tokenizer, text),
        return_tensors="pt",
    )
    return [int(token) for token in made["input_ids"][0]]


def beside_prompt_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """Token ids that a client's tokenizer makes of a conversation whose images are shown beside it.

    Args:
        tokenizer: has the chat template.
        messages: a conversation without its last answer.

    Returns:
        The ids.
    """
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=adds_special_tokens(tokenizer, text))["input_ids"]
    return [int(token) for token in ids]
