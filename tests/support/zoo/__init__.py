"""Tiny random models of stock VLM classes with their processors, built offline. `ENTRIES` lists them all."""

from __future__ import annotations

from tests.support.zoo import cohere, gemma, glm, idefics, intern, llava, mistral, others, qwen
from tests.support.zoo.base import Entry

ENTRIES: list[Entry] = [
    entry
    for family in (qwen, gemma, llava, idefics, intern, mistral, cohere, glm, others)
    for entry in family.ENTRIES
]


def entry_of(name: str) -> Entry:
    """The entry called `name`."""
    return next(entry for entry in ENTRIES if entry.name == name)
