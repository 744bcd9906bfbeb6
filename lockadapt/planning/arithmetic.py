"""How much arithmetic a run takes, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import llm_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import block_linears
from lockadapt.planning.sizes import component_sizes

GEMM_SIDE = 1024
GEMM_REPEATS = 3
REACHED = 0.5
"""Share of a plain matrix product's speed that training is taken to reach; docs/plan.md says where it was
measured."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations for training: of one token, of one learned token more, of one image's tokens.

    `token`: frozen linear layers cost 2 operations a weight forward and 2 backward (towards their input;
    their own gradient is not computed), so 4, not the 6 of full training; LoRA's cost 6; with checkpointing
    the forward comes twice. `pair`: of one token attending to one token of its row, 4 * width forward and 8 *
    width backward in every layer. `learned`: the head, 4 a weight. `image`: the projector, 6 a weight and
    token.
    """

    token: float
    pair: float
    learned: float
    image: float

    def batch(self, rows: int, length: int, learned: int, images: int) -> float:
        """Operations for a micro-batch of `rows` padded to `length`."""
        return self.tokens(rows * length, length, learned, images)

    def tokens(self, tokens: float, length: float, learned: int, images: int) -> float:
        """Operations for `tokens` in rows of `length`, `learned` of them learned, with `images` projected."""
        return tokens * (self.token + self.pair * length) + learned * self.learned + images * self.image


def training_costs(model: nn.Module, checkpointing: bool, image_tokens: float) -> Costs:
    """Reads the costs off a model as it is trained, on any device."""
    sizes = {size.component: size.parameters for size in component_sizes(model)}
    base = unwrap_model(model)
    config: Any = llm_of(base).config
    # A quantized weight is packed, so its own number of elements says nothing.
    layers: list[Any] = list(block_linears(base).values())
    frozen = sum(
        layer.in_features * layer.out_features if hasattr(layer, "in_features") else layer.weight.numel()
        for layer in layers
    )
    head = base.get_output_embeddings().weight.numel()
    again = 2 if checkpointing else 0
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return Costs(
        token=frozen * (4 + again) + sizes.get("lora", 0) * (6 + again),
        pair=config.num_hidden_layers * width * (12 + 2 * again),
        learned=4.0 * head,
        image=6.0 * sizes.get("projector", 0) * image_tokens,
    )


def gemm_speed(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a square matrix product on this machine, the best of a few; takes a moment."""
    left, right = (torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(GEMM_REPEATS + 1):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2.0 * GEMM_SIDE**3 / best
