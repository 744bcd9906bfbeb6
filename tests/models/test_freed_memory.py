"""Freed memory is kept between batches, and handed back behind them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like"
)

COUNT = """
import resource

import torch

from lockadapt.models.freed_memory import keeping_freed_memory


def page_faults():
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = faults()
    for _ in range(3):
        layers = [torch.zeros(12 << 20) for _ in range(2)]  # 48 MiB each
        del layers
    return faults() - before


usual = page_faults()
with keeping_freed_memory():
    page_faults()
    kept = page_faults()
behind = page_faults()
try:
    with keeping_freed_memory():
        page_faults()
        raise ValueError("bad batch")
except ValueError:
    print(usual, kept, behind, page_faults())
"""


@pytest.fixture(scope="module")
def faults() -> tuple[int, int, int, int]:
    """Pages that the kernel gave for three batches: as usual, with memory kept, behind it, behind an error.

    Counted in a fresh process: where tests before left a large hole in the heap, every batch fits into it.
    """
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    usual, kept, behind, behind_error = map(int, run.stdout.split())
    return usual, kept, behind, behind_error


def test_a_batch_gets_the_memory_of_the_one_before(faults: tuple[int, int, int, int]) -> None:
    usual, kept, _, _ = faults
    assert usual > 3 * 2 * (48 << 20) // 4096 // 512  # even in huge pages
    assert kept < usual / 2


def test_it_is_handed_back_also_after_an_error(faults: tuple[int, int, int, int]) -> None:
    usual, _, behind, behind_error = faults
    assert behind > usual / 4
    assert behind_error > usual / 4
