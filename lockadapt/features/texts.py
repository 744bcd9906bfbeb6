"""Pooled states of texts kept where the text model is frozen, in memory or on disk: each text runs once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lockadapt.architectures import architecture_of, layout_of, llm_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.on_disk import gather
from lockadapt.features.policy import ImagePolicy
from lockadapt.features.shards import Layout
from lockadapt.models.texts import Pooling
from lockadapt.tuning.locks import tensor_digest

FORMAT = 1
TEXTS_AT_ONCE = 32
"""Texts that go through the text model together, sorted by length, so that little of a batch is padding."""

Lookup = Callable[[Sequence[int]], Tensor]
"""Numbers of texts -> their states (texts, hidden size)."""


class KeptTexts:
    """The states of some texts, by the number that each got.

    Args:
        numbers: of each text, by the bytes of its ids.
        lookup: gives states by number.
    """

    def __init__(self, numbers: Mapping[bytes, int], lookup: Lookup) -> None:
        self.numbers, self.lookup = dict(numbers), lookup

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """States of texts, (texts, hidden size), on the CPU."""
        return self.lookup(numbers)


def keep_texts(
    model: nn.Module, texts: Sequence[np.ndarray], pooling: Pooling, policy: ImagePolicy
) -> KeptTexts | None:
    """Runs the frozen text model of a dual encoder once over distinct texts.

    Args:
        model: a dual encoder as it trains, with its adapters.
        texts: ids, int32 (tokens,); may repeat.
        pooling: how a text becomes one state.
        policy: where states are kept; told what was done.

    Returns:
        The states; None where the text model trains, or nothing may be kept.
    """
    settings, layout = policy.settings, layout_of(model)
    trained = any(component_of(n, layout) == "lora" for n, _ in unwrap_model(model).named_parameters())
    if trained or settings.choice == "none" or not texts:
        return None
    distinct = {ids.tobytes(): ids for ids in texts}
    numbers = {key: number for number, key in enumerate(distinct)}
    hidden = int(llm_of(model).config.hidden_size)
    size = len(distinct) * hidden * next(llm_of(model).parameters()).element_size()

    def states(some: Sequence[np.ndarray]) -> Iterator[Tensor]:
        return _states(model, some, pooling)

    on_disk = settings.choice == "disk" or (
        settings.choice == "auto" and size > settings.memory_gib * 2**30 and settings.disk_gib > 0
    )
    if not on_disk:
        order = sorted(distinct.values(), key=len)
        parts, done = [], 0
        for part in states(order):
            parts.append(part)
            done += len(part)
            if policy.progress:
                policy.progress(done, len(order))
        back = torch.tensor([numbers[ids.tobytes()] for ids in order])
        table = torch.cat(parts)[back.argsort()]
        policy.note(f"texts: states of {len(table):,} texts kept in memory, {size / 2**30:.3g} GiB")
        return KeptTexts(numbers, lambda some: table[torch.as_tensor(some)])
    folder = FeatureFolder(
        settings.cache, text_identity(model, pooling, settings.stored), settings.disk_gib, policy.note
    )
    by_length = sorted(distinct.items(), key=lambda item: len(item[1]))
    names = {hashlib.sha256(key).hexdigest(): ids for key, ids in by_length}
    kept = Layout(1, hidden, settings.stored)
    built = folder.fill(
        names,  # type: ignore[arg-type]
        kept,
        lambda items: (part[:, None] for part in states([ids for _, ids in items])),  # type: ignore[misc]
        policy.progress,
    )
    rows = folder.rows(names)
    places: list[Any] = [rows[hashlib.sha256(key).hexdigest()] for key in distinct]
    policy.note(
        f"texts: states of {len(names):,} texts on disk in {folder.path} ({built:,} computed, the others "
        "were there)"
    )

    def lookup(some: Sequence[int]) -> Tensor:
        gathered = gather([places[number] for number in some], kept)
        states = gathered["image_features"]
        return (states * gathered["image_scales"] if "image_scales" in gathered else states).flatten(1)

    return KeptTexts(numbers, lookup)


def text_identity(model: nn.Module, pooling: Pooling, stored: str) -> dict[str, Any]:
    """Gives everything that a text's state depends on beside its ids.

    Args:
        model: a dual encoder.
        pooling: how a text becomes one state.
        stored: dtype of the stored states.

    Returns:
        Plain JSON values.
    """
    text = llm_of(model)
    digest = hashlib.sha256()
    for name, tensor in (*text.named_parameters(), *text.named_buffers()):
        digest.update(f"{name} {tensor_digest(tensor)}\n".encode())
    return {
        "format": FORMAT,
        "kept": "pooled states of texts",
        "class": type(text).__name__,
        "tensors": digest.hexdigest(),
        "pooling": pooling,
        "stored": stored,
    }


@torch.no_grad()
def _states(model: nn.Module, texts: Sequence[np.ndarray], pooling: Pooling) -> Iterator[Tensor]:
    """States of texts in their order, on the CPU, a batch at a time; masked tokens fill shorter ones."""
    apart = architecture_of(model).apart
    assert apart is not None
    llm = llm_of(model)
    training = llm.training
    llm.eval()
    device = next(llm.parameters()).device
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        longest = max(map(len, part))
        ids = torch.zeros((len(part), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(part):
            ids[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
            mask[row, : len(text)] = 1
        yield apart.states(model, ids.to(device), mask.to(device), pooling).cpu()
    llm.train(training)
