"""What a processor says of an image beside its pixels, as whole numbers, and back as tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lockadapt.architectures.kept import Facts
from lockadapt.errors import AssemblyError

PIXELS = "pixel_values"
"""Every processor's name for the pixels."""

MOST = 4096
"""Whole numbers that a record may hold of one key: what is longer would make headers of shards large."""

DTYPES = (torch.int64, torch.int32, torch.bool, torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def key_facts(images: Mapping[str, Tensor]) -> tuple[Facts, Facts]:
    """What must be kept of the image part of a batch that shows one image.

    Args:
        images: tensors by the name of forward's argument.

    Returns:
        The facts, from which `images_of` makes the part again, but for its pixels; and the keys that are one
        row each, which forward may need beside the image's features.

    Raises:
        AssemblyError: a key takes too many numbers.
    """
    facts = {
        name: shape_of(value) if name == PIXELS else numbers_of(name, value) for name, value in images.items()
    }
    keys = {
        name: tuple(value[0].tolist())
        for name, value in images.items()
        if name != PIXELS and value.dim() == 2 and len(value) == 1 and not value.is_floating_point()
        if value.shape[1] <= 8  # a row of pixels of a mask is no key
    }
    return facts, keys


def images_of(
    facts: Facts, names: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """The image part that facts are of.

    Args:
        facts: from `key_facts`, maybe among others.
        names: of the keys.
        dtype: of the pixels.
        device: where the tensors shall lie.

    Returns:
        Tensors by name. All pixels are one, and take no memory.
    """
    made: dict[str, Any] = {}
    for name in names:
        if name == PIXELS:
            made[name] = torch.ones((), dtype=dtype, device=device).expand(facts[name])
        else:
            made[name] = tensor_of(facts[name]).to(device)
    return made


def shape_of(value: Tensor) -> tuple[int, ...]:
    """The shape as a fact."""
    return tuple(value.shape)


def numbers_of(name: str, value: Tensor) -> tuple[int, ...]:
    """A tensor of whole numbers as a fact: dtype, shape, and runs of equal numbers.

    Args:
        name: of the tensor, for the message.
        value: of any shape.

    Returns:
        Whole numbers, from which `tensor_of` makes the tensor.

    Raises:
        AssemblyError: there are too many runs, or it holds fractions.
    """
    flat = value.flatten()
    if value.dtype not in DTYPES or (value.is_floating_point() and not torch.equal(flat, flat.round())):
        raise AssemblyError(f"{name} of its processor holds other than whole numbers")
    numbers, lengths = torch.unique_consecutive(flat.long(), return_counts=True)
    if 2 * len(numbers) > MOST:
        raise AssemblyError(f"{name} of its processor takes {2 * len(numbers):,} numbers an image")
    runs = itertools.chain.from_iterable(zip(numbers.tolist(), lengths.tolist(), strict=True))
    return (DTYPES.index(value.dtype), value.dim(), *value.shape, *runs)


def tensor_of(fact: tuple[int, ...]) -> Tensor:
    """The tensor that `numbers_of` wrote down."""
    kind, dimensions, *rest = fact
    shape, runs = rest[:dimensions], torch.tensor(rest[dimensions:], dtype=torch.int64).view(-1, 2)
    return torch.repeat_interleave(runs[:, 0], runs[:, 1]).view(shape).to(DTYPES[kind])
