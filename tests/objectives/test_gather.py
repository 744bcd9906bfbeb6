"""Two processes give the loss and gradients of one that holds the whole batch: by DDP, and added up by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lockadapt.errors import DataError
from lockadapt.objectives.gather import gather, sum_gradients
from lockadapt.objectives.gradcache import embed_in_chunks
from lockadapt.objectives.similarity import Contrast, Kind, contrastive_loss
from lockadapt.objectives.temperature import Temperature

RANKS, ROWS = 2, 6
WAYS = ("ddp", "by-hand")
KINDS: tuple[Kind, ...] = ("infonce", "sigmoid")
# A text that two images share across the processes, and three texts for two images.
IMAGE_KEYS = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 1], [4, 4], [5, 5]])
TEXT_KEYS = torch.tensor([[0, 0], [1, 1], [1, 9], [2, 2], [3, 1], [3, 8], [4, 4], [5, 5]])


class Step(nn.Module):
    """Everything of a contrastive step in one forward pass, as DDP wants it."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text, self.kind = nn.Linear(4, 8), nn.Linear(3, 8), kind
        self.temperature = Temperature(kind, ROWS)

    def forward(
        self, images: Tensor, texts: Tensor, image_keys: Tensor, text_keys: Tensor, size: int
    ) -> Tensor:
        trained = list(self.parameters())
        sides = [
            embed_in_chunks([lambda p=p, f=f: F.normalize(f(p), dim=-1) for p in rows.split(size)], trained)
            for rows, f in ((images, self.image), (texts, self.text))
        ]
        scale, bias = self.temperature.scale(), self.temperature.bias()
        keys = gather(image_keys), gather(text_keys)
        return contrastive_loss(gather(sides[0]), gather(sides[1]), *keys, Contrast(scale, bias, self.kind))


def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 4, generator=made), torch.randn(len(TEXT_KEYS), 3, generator=made)


def collected(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    return {
        "loss": loss.detach(),
        **{name: parameter.grad.clone() for name, parameter in module.named_parameters()},
    }  # type: ignore[union-attr]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    part = [rows.chunk(RANKS)[rank] for rows in (*batch(), IMAGE_KEYS, TEXT_KEYS)]
    results: dict[str, dict[str, Tensor] | str] = {}
    for kind in KINDS:
        for size in (2, 100):
            step = Step(kind)
            wrapped = DistributedDataParallel(step)
            loss = wrapped(*part, size)
            loss.backward()
            results[f"{kind}-{size}-ddp"] = collected(loss, step)
            step = Step(kind)
            loss = step(*part, size)
            (loss / RANKS).backward()
            sum_gradients(list(step.parameters()))
            results[f"{kind}-{size}-by-hand"] = collected(loss, step)
    lonely = torch.ones(2, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    if rank == 1:
        lonely.grad = torch.full((2,), 3.0)
    sum_gradients([lonely, unused])
    assert unused.grad is None
    results["lonely"] = {"loss": lonely.grad}  # type: ignore[dict-item]
    try:
        gather(torch.zeros(2 + rank, 4))
    except DataError as error:
        results["unequal"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    # No destructors: freeing the process group with the GIL held waits for gloo's threads, and one of those may be
    # waiting for the GIL to free its last tensor.
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(
    ranks: list[dict[str, dict[str, Tensor]]], kind: Kind, size: int, way: str
) -> None:
    alone = Step(kind)
    loss = alone(*batch(), IMAGE_KEYS, TEXT_KEYS, 100)
    loss.backward()
    wanted = collected(loss, alone)
    for rank in ranks:
        torch.testing.assert_close(rank[f"{kind}-{size}-{way}"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_unequal_rows_are_an_error_everywhere(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for rank in ranks:
        assert "different shapes: [(2, 4), (3, 4)]" in str(rank["unequal"])


@pytest.mark.slow
def test_a_gradient_of_one_process_is_shared(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for rank in ranks:
        assert torch.equal(rank["lonely"]["loss"], torch.full((2,), 3.0))


def test_nothing_to_do_alone() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather(rows) is rows
    rows.grad = torch.ones(2, 3)
    sum_gradients([rows])
    assert torch.equal(rows.grad, torch.ones(2, 3))
