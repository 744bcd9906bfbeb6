"""The chat template that the processor carries: the LLM's own, taught about images, or a plain documented one."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from transformers import PreTrainedTokenizerBase

TemplateKind = Literal["own", "plain"]


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, TemplateKind]:
    """A Jinja chat template for images and text, and where it is from.

    `own`: the tokenizer's template behind a prelude that turns content lists into strings, an image into `<image>`.
    `plain`, for base LLMs: `{bos}<image>question\\nanswer{eos}`, and a newline before a further turn; bos only if the
    tokenizer itself starts texts with it. The generation prompt ends at the newline, so an answer starts a line:
    tokenizers that put the space at the end of a piece see the same pieces at training and at generation.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()))
    if own:
        return _read("flatten.jinja") + own, "own"
    return ("{{- bos_token -}}\n" if starts_with_bos(tokenizer) else "") + _read("plain.jinja"), "plain"


def starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts bos before a text, found out by tokenising one."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _read(name: str) -> str:
    return files("lockadapt.models").joinpath("templates", name).read_text(encoding="utf-8")
