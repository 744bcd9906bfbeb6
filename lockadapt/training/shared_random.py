"""Random numbers on several processes: those of a step are drawn alike on all, those of dropout are not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lockadapt import processes

STRIDE = 1_000_003
"""Between the seeds of processes."""


class SharedRandom:
    """The stream that all processes draw from alike; alone, it is torch's own CPU generator.

    It begins where the generator of a single process would stand, so that several processes with the same
    rows see the same random numbers as one.

    Attributes:
        state: of torch's CPU generator, uint8; None before the first drawing.
    """

    def __init__(self) -> None:
        self.state: torch.Tensor | None = None

    @contextlib.contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Within the block torch's CPU generator is the shared stream.

        Args:
            seed: of the run; the first block gives every process but the first its own generator from it.
        """
        if processes.count() == 1:
            yield
            return
        if self.state is None:
            self.state = torch.get_rng_state()
            separate(seed)
        own = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(own)


def separate(seed: int) -> None:
    """Seeds torch anew on every process but the first, so that dropout differs between them."""
    if processes.rank():
        torch.manual_seed(seed + STRIDE * processes.rank())
