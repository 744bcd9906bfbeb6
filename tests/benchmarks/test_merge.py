"""The benchmark's ways to merge give the same bits, and its summary has the keys of the contract."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("shards", [1, 2])
def test_all_ways_give_the_same_bits(shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import merge

    for name, value in {"HIDDEN": 64, "INNER": 96, "KEYS": 16, "VOCABULARY": 80}.items():
        monkeypatch.setattr(merge, name, value)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    merge.make_base(base, 2, shards)
    merge.make_adapter(base, adapter)
    for method in ("lockadapt", "shard_dict"):
        report = merge.work(method, base, adapter, tmp_path / method)
        assert report["seconds"] > 0
        assert merge.identical(base, adapter, tmp_path / method), method
    assert not merge.identical(base, adapter, base)


@pytest.mark.usefixtures("scripts")
def test_the_summary_has_the_keys_of_the_contract() -> None:
    from merge import summary, table

    actual = {
        "bytes": 10**9,
        "shards": 1,
        "cores": 2,
        "seconds": {"cp": [1.0, 0.5], "lockadapt": [1.0, 0.75], "peft": [3.0], "shard_dict": [2.0]},
        "rss_excess_mib": {"lockadapt": [200.0, 210.0], "peft": [2000.0], "shard_dict": [1500.0]},
        "bit_identical": True,
    }
    assert summary(actual) == {
        "merge_over_cp": 1.5,
        "peft_over_cp": 6.0,
        "shard_dict_over_cp": 4.0,
        "rss_excess_mib": 210,
        "peft_rss_excess_mib": 2000,
        "bit_identical": True,
    }
    assert "1.50 x cp" in "\n".join(table(actual))
