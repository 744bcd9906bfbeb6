"""Where a model is run to be compared with another: on the GPU if it has room there, else on the CPU."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from torch import nn

ROOM = 1 << 30
"""Bytes of a card beside the weights: CUDA's context in the new process, activations and the cache of one
short answer."""


def choose_device(weights: int) -> str:
    """`"cuda"` if the card has room for a model of so many bytes now, else `"cpu"`.

    Memory that this process holds and does not use is given back to the card first.
    """
    if not torch.cuda.is_available():
        return "cpu"
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if weights + ROOM <= free else "cpu"


def stored_bytes(folder: Path) -> int:
    """Of all weights in a stock folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def held_bytes(model: nn.Module) -> int:
    """Of a model's parameters and buffers as they are held now; a tied tensor counts once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(held.values())
