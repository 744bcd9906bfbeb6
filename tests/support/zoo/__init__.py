"""Tiny random models of stock VLM classes with their processors, built offline. `ENTRIES` lists them all.

`entry_of("qwen2_5_vl").write(folder)` saves what `AutoModelForImageTextToText` and `AutoProcessor` load; with the same
seed the same tensors. Tokens, markers and chat templates have the shapes of the real checkpoints.

Another model is one function and one line in its family's `ENTRIES`; another family is one file, listed below. Some
processors need torchvision, num2words or timm, which lockadapt does not require: `Entry.missing()` names them. Where
torchvision was built for another torch, import `tests.support.torchvision_operators` before Transformers.
"""

from __future__ import annotations

from tests.support.zoo import cohere, gemma, glm, idefics, intern, llama, llava, mistral, others, qwen
from tests.support.zoo.base import Entry

ENTRIES: list[Entry] = [
    entry
    for family in (qwen, gemma, llava, idefics, intern, mistral, cohere, glm, llama, others)
    for entry in family.ENTRIES
]


def entry_of(name: str) -> Entry:
    """The entry called `name`."""
    return next(entry for entry in ENTRIES if entry.name == name)
