"""Refuses folders whose weights, tokenizer, image processor and settings do not belong together."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lockadapt.architectures import inputs_of, llm_of
from lockadapt.errors import AssemblyError, LockadaptError, memory_ran_out

PROBE = (64, 64)
FIX = "its files do not belong together: merge, export or download the folder again"


def check_belonging(model: nn.Module, processor: Any, where: str) -> None:
    """Checks what a stock folder says beside its weights, before anything is computed with it.

    Args:
        model: with weights.
        processor: loaded from the same folder.
        where: the folder, for messages.

    Raises:
        AssemblyError: a token of the tokenizer has no row in the LLM's table, the processor writes another
            image token than the class looks for, the image processor fails on a plain picture, or the
            generation settings name tokens that there are none of.
    """
    table: Any = llm_of(model).get_input_embeddings()
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and isinstance(table, nn.Embedding):
        _check_tokens(tokenizer, table.num_embeddings, where)
        _check_generation(getattr(model, "generation_config", None), where)
    _check_image_token(model, processor, where)
    _check_pictures(processor, where)


def _check_tokens(tokenizer: Any, rows: int, where: str) -> None:
    """Added tokens are left out: some folders have more of them than rows, and never write them."""
    added = tokenizer.get_added_vocab()
    token, highest = max(
        ((token, number) for token, number in tokenizer.get_vocab().items() if token not in added),
        key=lambda pair: pair[1],
        default=("", -1),
    )
    if highest >= rows:
        raise AssemblyError(
            f"the tokenizer writes {token!r} as {highest:,}, and the LLM's table has {rows:,} rows",
            where=where,
            fix=FIX,
        )


def _check_image_token(model: Any, processor: Any, where: str) -> None:
    """Only for classes that lockadapt describes: others may put other tokens for their marker (Gemma 3)."""
    written, config = getattr(processor, "image_token_id", None), model.config
    if inputs_of(processor).stock:
        return
    looked_for = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if isinstance(written, int) and isinstance(looked_for, int) and written != looked_for:
        raise AssemblyError(
            f"the processor writes the image token {written}, and config.json says that it is {looked_for}",
            where=where,
            fix=FIX,
        )


def _check_pictures(processor: Any, where: str) -> None:
    """Values of a plain picture are finite numbers."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        return
    try:
        values = image_processor(images=[Image.new("RGB", PROBE, (200, 90, 30))], return_tensors="pt")
    except Exception as error:
        if memory_ran_out(error) or isinstance(error, LockadaptError):
            raise
        raise AssemblyError(
            f"{type(image_processor).__name__} fails on a plain picture: {type(error).__name__}: {error}",
            where=where,
            fix="its settings (processor_config.json) are damaged: export or download the folder again",
        ) from error
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise AssemblyError(
                f"{type(image_processor).__name__} makes {name} of a plain picture that are not finite",
                where=where,
                fix="its settings (processor_config.json) are damaged: is image_std zero?",
            )


def _check_generation(settings: Any, where: str) -> None:
    """Ids of tokens are numbers; -1, as some folders have it, means none."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        given = getattr(settings, name, None)
        if given is None:
            continue
        ids = given if isinstance(given, list) else [given]
        if not all(type(number) is int and number >= -1 for number in ids):
            raise AssemblyError(
                f"generation_config.json: {name} should be the number of a token, got {given!r}",
                where=where,
                fix=FIX,
            )
