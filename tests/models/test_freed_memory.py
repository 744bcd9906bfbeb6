"""Freed memory is kept between batches, and handed back behind them."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from lockadapt.models.freed_memory import keeping_freed_memory


def page_faults() -> int:
    """Pages that the kernel gave this process while it made and freed what three batches need."""

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = faults()
    for _ in range(3):
        layers = [torch.zeros(12 << 20) for _ in range(2)]  # 48 MiB each
        del layers
    return faults() - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_a_batch_gets_the_memory_of_the_one_before() -> None:
    usual = page_faults()
    with keeping_freed_memory():
        page_faults()
        kept = page_faults()
    assert usual > 3 * 2 * (48 << 20) // 4096 // 512  # even in huge pages
    assert kept < usual / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_it_is_handed_back_also_after_an_error() -> None:
    def bad_batch() -> None:
        with keeping_freed_memory():
            page_faults()
            raise ValueError("bad batch")

    usual = page_faults()
    with pytest.raises(ValueError, match="bad batch"):
        bad_batch()
    assert page_faults() > usual / 4
