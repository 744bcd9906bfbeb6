"""Does a generated image show what its caption says?

A frozen tower plus linear layers, trained on real images, is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.models.preprocessing import pixels, square_processor
from lockadapt.models.quiet import quiet
from lockadapt.models.towers import load_tower

STEPS, BATCH, RATE, DECAY = 600, 512, 2e-3, 1e-3
"""AdamW with a cosine schedule; a linear layer over standardised features needs no more."""

MOST_VALUES = 100
"""A word position with more values than this is no attribute that a linear layer could be asked about."""

Features = Callable[[Sequence[Image.Image]], Tensor]
"""RGB pictures -> float32 (pictures, channels)."""


class TowerFeatures:
    """What all layers of a frozen tower return, each pooled over the picture by mean, largest and smallest.

    Early layers know colours that late ones have forgotten, so none is left out.

    Args:
        tower: folder or Hub id of a vision model.
        image_size: side of the square that pictures are resized to; None for the tower's own.
        batch_size: pictures at a time; few, as all layers of all of them are in memory at once.

    Raises:
        SetupError, AssemblyError: as `load_tower`.
    """

    def __init__(self, tower: str | Path, image_size: int | None = None, batch_size: int = 8) -> None:
        loaded = load_tower(tower, torch.float32)
        self.model: Any = loaded.model
        self.square, _ = square_processor(loaded.image_processor, image_size, loaded.source.name)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See `Features`."""
        rows = []
        for start in range(0, len(pictures), self.batch_size):
            values = pixels(self.square, list(pictures[start : start + self.batch_size]))
            with quiet():
                output = self.model(values, output_hidden_states=True, return_dict=True)
            layers = [*output.hidden_states, output.last_hidden_state]
            flat = [layer.transpose(1, 2) if layer.ndim == 3 else layer.flatten(2) for layer in layers]
            pooled = [(features.mean(2), features.amax(2), features.amin(2)) for features in flat]
            rows.append(torch.cat([part for parts in pooled for part in parts], dim=1).float())
        return torch.cat(rows)


def at_side(pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Real pictures as large as generated ones, so that a probe sees no more of them."""
    return [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]


@dataclass(frozen=True)
class Probe:
    """Linear layers over features: one for each varying word position of captions, or one for whole captions.

    Attributes:
        positions: which words are told apart, or None for the caption as a whole.
        values: for each of them, what it can be.
        layers: for each of them, features -> logits over its values.
        mean, deviation: of the features that it was trained on.
    """

    positions: tuple[int, ...] | None
    values: tuple[tuple[str, ...], ...]
    layers: tuple[nn.Linear, ...]
    mean: Tensor
    deviation: Tensor

    @torch.no_grad()
    def right(self, features: Tensor, captions: Sequence[str]) -> Tensor:
        """Whether each picture shows its caption in every respect, bool (pictures, respects).

        What the probe was never shown cannot be recognised, and is not right.
        """
        standard = (features - self.mean) / self.deviation
        columns = []
        for number, (known, layer) in enumerate(zip(self.values, self.layers, strict=True)):
            index_of = {value: index for index, value in enumerate(known)}
            wanted = torch.tensor(
                [index_of.get(_value(caption, self.positions, number), -1) for caption in captions]
            )
            columns.append(layer(standard).argmax(1) == wanted)
        return torch.stack(columns, dim=1)


def train_probe(features: Tensor, captions: Sequence[str], seed: int = 0) -> Probe:
    """Trains linear layers to read captions off the features of real pictures.

    Captions of equal length in words ("a red circle") are taken word by word: each position that varies is a
    respect. Otherwise every distinct caption is a class.

    Args:
        features: float32 (pictures, channels).
        captions: one a picture.
        seed: of initial weights and batches.

    Returns:
        The probe, its layers float32 on the CPU.

    Raises:
        DataError: there is nothing to tell apart, or too much.
    """
    positions = _positions(captions)
    names = [
        tuple(sorted({_value(caption, positions, number) for caption in captions}))
        for number in range(1 if positions is None else len(positions))
    ]
    if not names or any(not 2 <= len(values) <= MOST_VALUES for values in names):
        raise DataError(
            f"{len(set(captions))} different captions are nothing that a linear probe can tell apart",
            where="probe",
            fix=f"a probe needs captions of a few words each, or at most {MOST_VALUES} different ones",
        )
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-3)
    standard, generator = (features - mean) / deviation, torch.Generator().manual_seed(seed)
    layers = []
    for number, values in enumerate(names):
        targets = torch.tensor([values.index(_value(caption, positions, number)) for caption in captions])
        layers.append(_fit(standard, targets, len(values), generator))
    return Probe(positions, tuple(names), tuple(layers), mean, deviation)


def probe_scores(
    probe: Probe,
    generated: Tensor,
    prompts: Sequence[str],
    real: Tensor,
    captions: Sequence[str],
    tokenized: Tensor,
) -> dict[str, Any]:
    """Scores how many generated pictures show their prompt, beside how many real ones show their caption.

    Args:
        probe: trained on other real pictures than `real`.
        generated: features of generated pictures, float32 (pictures, channels).
        prompts: what was to be generated.
        real: features of real pictures, float32 (pictures, channels).
        captions: of the real pictures.
        tokenized: those of the same pictures, there and back through the image tokenizer.

    Returns:
        `{"accuracy", "probe_accuracy_on_real", "probe_accuracy_on_tokenized", "by_word"}`: in every respect
        at once; `by_word` by respect, as [generated, real].
    """
    first, second = probe.right(generated, prompts).float(), probe.right(real, captions).float()
    words = ["caption"] if probe.positions is None else [str(position + 1) for position in probe.positions]
    return {
        "accuracy": float(first.prod(1).mean()),
        "probe_accuracy_on_real": float(second.prod(1).mean()),
        "probe_accuracy_on_tokenized": float(probe.right(tokenized, captions).float().prod(1).mean()),
        "by_word": {
            word: [float(first[:, number].mean()), float(second[:, number].mean())]
            for number, word in enumerate(words)
        },
    }


def _positions(captions: Sequence[str]) -> tuple[int, ...] | None:
    words = [caption.split() for caption in captions]
    if len({len(line) for line in words}) != 1:
        return None
    columns = [set(column) for column in zip(*words, strict=True)]
    if any(len(column) > MOST_VALUES for column in columns):
        return None
    return tuple(number for number, column in enumerate(columns) if len(column) > 1)


def _value(caption: str, positions: tuple[int, ...] | None, number: int) -> str:
    if positions is None:
        return caption
    words = caption.split()
    return words[positions[number]] if positions[number] < len(words) else ""


def _fit(features: Tensor, targets: Tensor, classes: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        layer.weight.normal_(0, features.shape[1] ** -0.5, generator=generator)
        layer.bias.zero_()
    optimizer = torch.optim.AdamW(layer.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(features), (min(BATCH, len(features)),), generator=generator)
        loss = F.cross_entropy(layer(features[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return layer.requires_grad_(False)
