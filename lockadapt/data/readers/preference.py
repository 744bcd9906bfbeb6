"""Two answers to one prompt, of which somebody prefers the first: in any of the ways that rows hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.data.readers.columns import clean_text
from lockadapt.errors import DataError


@dataclass(frozen=True)
class Preference:
    """Messages that end with the chosen answer, and the text of the rejected one."""

    messages: list[Any]
    rejected: str


def preference_of(prompt: Sequence[Any] | None, chosen: Any, rejected: Any, where: str) -> Preference:
    """Take a row's prompt and answers as a conversation and another end of it.

    Args:
        prompt: messages before the answers; None: both answers hold them, as TRL's implicit prompts do.
        chosen: a text, or a list of messages that ends with one of the assistant; unchecked.
        rejected: the same.
        where: the row's place, for messages.

    Returns:
        The preference.

    Raises:
        DataError: an answer is none, several messages, or the same as the other.
    """
    if prompt is None:
        prompt = _common(chosen, rejected, where)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    texts = [_answer(chosen, "chosen", where), _answer(rejected, "rejected", where)]
    if texts[0] == texts[1]:
        raise DataError(
            f"chosen and rejected are the same: {quote(texts[0])}", where=where, fix="remove the row"
        )
    return Preference([*prompt, {"role": "assistant", "content": texts[0]}], texts[1])


def _common(chosen: Any, rejected: Any, where: str) -> list[Any]:
    """The messages that both begin with."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise DataError(
            "the row has neither a question nor a prompt",
            where=where,
            fix="add `question` or `prompt`, or write chosen and rejected as whole conversations",
        )
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    return chosen[:same]


def _answer(value: Any, name: str, where: str) -> str:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict):
            raise DataError(
                f"{name} holds {len(value)} messages behind the prompt, not one",
                where=where,
                fix="write it as text, or as one message of the assistant",
            )
        role = value[0].get("role", value[0].get("from"))
        if role not in ("assistant", "gpt", "llava"):
            raise DataError(f"{name} is said by {quote(role)}, not by the assistant", where=where)
        value = value[0].get("content", value[0].get("value"))
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            value = value[0].get("text")
    return clean_text(value, name, where)
