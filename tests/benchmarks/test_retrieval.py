"""The benchmark beside sentence-transformers: its contract, and what it calls better."""

from __future__ import annotations

import pytest


@pytest.mark.usefixtures("scripts")
def test_ours_over_theirs() -> None:
    from retrieval import compared

    ours = {"pairs_per_second": 500.0, "peak_mib": 300.0, "r1": 0.25}
    theirs = {"pairs_per_second": 40.0, "peak_mib": 600.0, "r1": 0.2}
    assert compared({"lockadapt": ours, "sentence-transformers": theirs}) == {
        "pairs_per_second_ratio": 12.5,
        "memory_ratio": 0.5,
        "r1_difference": 0.05,
    }
