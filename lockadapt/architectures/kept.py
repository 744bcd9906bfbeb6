"""What is kept of images that give different numbers of tokens: a record of each, and records joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Facts = Mapping[str, tuple[int, ...]]
"""Whole numbers by name, such as a picture's height and width in pixels."""


@dataclass(frozen=True)
class ImageRecord:
    """All that the frozen part of a model computes of one image.

    Attributes:
        levels: (tokens, channels) by name. Every image has the same names and channels; tokens may differ
            from image to image and from level to level.
        facts: what `Features.give` needs of the image beside its levels; every image has the same names.
        keys: what the processor says of the image and forward takes beside its pixels (`image_grid_thw`): a
            row of a tensor by the argument's name. Every image has the same names and lengths.
    """

    levels: Mapping[str, Tensor]
    facts: Facts = field(default_factory=dict)
    keys: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class RaggedFeatures:
    """Records of several images, each level in one tensor.

    Attributes:
        levels: (tokens of all images, channels) by name, in the dtype that they are stored in.
        tokens: how many of them each image has, by the level's name.
        facts: of each image.
        keys: of each image.
        scales: what int8 levels are multiplied with, float32 (images, channels) by name; empty otherwise.
    """

    levels: Mapping[str, Tensor]
    tokens: Mapping[str, tuple[int, ...]]
    facts: tuple[Facts, ...]
    keys: tuple[Facts, ...]
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.facts)

    @classmethod
    def joined(cls, records: Sequence[ImageRecord]) -> RaggedFeatures:
        """Records side by side, copied."""
        names = tuple(records[0].levels)
        return cls(
            {name: torch.cat([record.levels[name] for record in records]) for name in names},
            {name: tuple(len(record.levels[name]) for record in records) for name in names},
            tuple(record.facts for record in records),
            tuple(record.keys for record in records),
        )

    def batch(self) -> dict[str, Any]:
        """What a batch gets: `image_features`, the keys of its images, and `processor_keys`, their names."""
        names = tuple(self.keys[0]) if self.keys else ()
        rows = {name: torch.tensor([keys[name] for keys in self.keys]) for name in names}
        return {"image_features": self, **rows, **({"processor_keys": names} if names else {})}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RaggedFeatures:
        """The same on a device."""
        return replace(
            self,
            levels={name: level.to(device, non_blocking=non_blocking) for name, level in self.levels.items()},
            scales={name: scale.to(device, non_blocking=non_blocking) for name, scale in self.scales.items()},
        )

    def level(self, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What a level means, of each image (tokens, channels): int8 is multiplied with its scales."""
        rows: Sequence[Tensor] = self.levels[name].split(self.tokens[name])
        if name in self.scales:
            rows = [row.float() * scale for row, scale in zip(rows, self.scales[name], strict=True)]
        return tuple(row.to(dtype) for row in rows)

    def records(self, dtype: torch.dtype) -> list[ImageRecord]:
        """The images' records, their levels in a dtype."""
        levels = {name: self.level(name, dtype) for name in self.levels}
        return [
            ImageRecord({name: rows[number] for name, rows in levels.items()}, facts, keys)
            for number, (facts, keys) in enumerate(zip(self.facts, self.keys, strict=True))
        ]

    def negative(self) -> RaggedFeatures:
        """Every number with the other sign."""
        return replace(self, levels={name: -level for name, level in self.levels.items()})
