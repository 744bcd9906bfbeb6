"""Arithmetic that a step needs when nothing is computed twice, and the machine's matrix speed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of, llm_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import block_linears
from lockadapt.data.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Tokens:
    """Tokens of one batch or more.

    `padded`: rows times the longest row. `unpacked`: without padding. `unique`: a prefix that samples about
    the same images share is counted once. `attended`: for every unique token the tokens that it sees, itself
    included, summed. `image`: image tokens, every distinct image once. `labelled`: tokens that are predicted.
    """

    padded: int
    unpacked: int
    unique: int
    attended: int
    image: int
    labelled: int


def count(items: Sequence[Encoded], image_tokens: int) -> Tokens:
    """Counts the tokens of one batch; `image_tokens` are those of one image."""
    groups: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for item in items:
        groups[tuple(image.key for image in item.images)].append(item.input_ids.tolist())
    unique = attended = 0
    for sequences in groups.values():
        before: list[int] = []
        # Sorted, a sequence shares with all earlier ones together what it shares with its neighbour.
        for sequence in sorted(sequences):
            shared = _common(before, sequence)
            unique += len(sequence) - shared
            attended += (len(sequence) * (len(sequence) + 1) - shared * (shared + 1)) // 2
            before = sequence
    lengths = [len(item.input_ids) for item in items]
    images = {image.key for item in items for image in item.images}
    return Tokens(
        padded=len(items) * max(lengths),
        unpacked=sum(lengths),
        unique=unique,
        attended=attended,
        image=len(images) * image_tokens,
        labelled=sum(int((item.labels[1:] != IGNORED).sum()) for item in items),
    )


def flops(model: nn.Module, tokens: Tokens) -> int:
    """Return the multiplications and additions that one training step needs, without the tower.

    With P the elements of weight matrices that a token passes:
    - frozen matrices of the blocks: 2 P forward, 2 P for the gradient of their input, no gradient of weights:
      4 P a token;
    - LoRA: the same and 2 P for the gradient of the weights: 6 P a unique token;
    - projector: 4 P an image token (the gradient of its inputs, which only its second layer needs, is left
      out);
    - attention: queries by keys, and weights by values, cost 4 d forward and 8 d backward for a pair of
      tokens, with d = heads x head size;
    - head: 4 P a labelled token (frozen).

    Args:
        model: a stock model with LoRA on it.
        tokens: of the batch.
    """
    base: Any = unwrap_model(model)
    frozen = sum(layer.weight.numel() for layer in block_linears(model).values())
    lora = sum(p.numel() for name, p in base.named_parameters() if ".lora_" in name)
    projector = sum(
        p.numel() for p in base.get_submodule(layout_of(base).projector[0]).parameters() if p.dim() == 2
    )
    config = llm_of(base).config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width *= config.num_attention_heads
    return (
        (4 * frozen + 6 * lora) * tokens.unique
        + 4 * projector * tokens.image
        + 12 * width * config.num_hidden_layers * tokens.attended
        + 4 * base.get_submodule(layout_of(base).head).weight.numel() * tokens.labelled
    )


def gemm_peak(dtype: torch.dtype, device: str, side: int = 2048, times: int = 10) -> float:
    """Operations a second of the best of `times` products of two square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    best = float("inf")
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _common(left: list[int], right: list[int]) -> int:
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))
