"""Make room for `<image>`: a real special token, and vocabulary rows padded to a multiple of 64."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lockadapt.errors import AssemblyError
from lockadapt.models.sources import Source, loading

IMAGE_TOKEN = "<image>"
ROW_MULTIPLE = 64
"""Vocabulary sizes are a multiple of this, which keeps matrix products on fast paths."""


def load_tokenizer(
    source: Source,
    llm: PreTrainedModel,
    extra: Mapping[str, str] = MappingProxyType({}),
    *,
    marked: bool = True,
) -> PreTrainedTokenizerBase:
    """Loads the LLM's tokenizer, with `<image>` as a special token, an eos and a pad token (or eos for it).

    Encoders such as BERT name no ends of a text: their `[CLS]` and `[SEP]` stand for bos and eos then.

    Args:
        source: the tokenizer's folder or Hub id.
        llm: its model.
        extra: further special tokens by the attribute that a stock processor looks for, such as `boi_token`.
        marked: whether `<image>` stands in texts; else it is not added.

    Returns:
        The tokenizer.

    Raises:
        SetupError: there is no tokenizer that loads.
        AssemblyError: nothing says where a text ends, or `<image>` does not become one token.
    """
    with loading(source, "LLM's tokenizer"):
        added = {**({"image_token": IMAGE_TOKEN} if marked else {}), **extra}
        tokenizer = AutoTokenizer.from_pretrained(source.name, **added, **source.arguments)
    for name in ("is_local", "local_files_only"):  # how it was loaded here is not to be saved with it
        tokenizer.init_kwargs.pop(name, None)
    if tokenizer.eos_token is None:
        ids = llm.generation_config.eos_token_id if llm.generation_config else llm.config.eos_token_id
        first = ids[0] if isinstance(ids, list) else ids
        token = tokenizer.sep_token if first is None else tokenizer.convert_ids_to_tokens(first)
        if token is None:
            raise AssemblyError(
                "neither tokenizer nor config names an end-of-text token",
                where=source.name,
                fix="set eos_token in tokenizer_config.json",
            )
        tokenizer.eos_token = token
    if tokenizer.bos_token is None and tokenizer.cls_token is not None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    for token in added.values():
        if tokenizer.encode(token, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(token)]:
            raise AssemblyError(f"the tokenizer does not keep {token} as one token", where=source.name)
    return tokenizer


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of `<image>`."""
    token_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return int(token_id)


def lacks_rows(llm: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token has no row in the embedding."""
    return max(tokenizer.get_vocab().values()) >= int(llm.get_input_embeddings().weight.shape[0])


@torch.no_grad()
def widen_vocabulary(llm: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the embedding and the head a row for every token, padded to a multiple of 64; return the rows.

    New rows are the mean of the old: a row of zeros would have logit 0, which wins wherever the others are
    negative. Rows that were there, also those beyond the tokenizer's last token, stay as they are. In place.
    """
    table, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    # T5's config calls every checkpoint tied: a head of its own would be tied here, and not saved.
    llm.config.tie_word_embeddings = head.weight is table.weight
    old = table.weight.shape[0]
    needed = max(old, max(tokenizer.get_vocab().values()) + 1)
    rows = -(-needed // ROW_MULTIPLE) * ROW_MULTIPLE
    if rows == old:
        return rows
    means = [layer.weight.double().mean(dim=0) for layer in (table, head)]
    bias = None if head.bias is None else head.bias.double().mean()
    llm.resize_token_embeddings(rows, mean_resizing=False)
    for layer, mean in zip((llm.get_input_embeddings(), llm.get_output_embeddings()), means, strict=True):
        layer.weight[old:] = mean.to(layer.weight.dtype)
    if bias is not None:
        widened = llm.get_output_embeddings().bias
        widened[old:] = bias.to(widened.dtype)
    return rows
