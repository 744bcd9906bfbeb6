"""The benchmark beside TRL, on models so small that its numbers mean nothing: the same loss, and what it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CASE_KEYS = {
    "name",
    "speedup",
    "memory_ratio",
    "loss_difference",
    "samples_per_second",
    "peer_samples_per_second",
    "gemm_fraction",
}


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    details = tmp_path / "throughput-fp32.json"
    arguments = ["--json", "--case", "vqa-5", "--small", "--shape", "tiny", "--details", str(details)]
    printed = json.loads(_run("throughput.py", *arguments).stdout)
    assert set(printed) == {"cases", "machine", "versions"}
    (case,) = printed["cases"]
    assert set(case) == CASE_KEYS
    assert case["name"] == "vqa-5"
    assert case["loss_difference"] < 1e-4
    assert min(case[key] for key in CASE_KEYS - {"name", "loss_difference"}) > 0

    everything = json.loads(details.read_text())["cases"][0]
    assert everything["batch"] == 5
    assert everything["images_per_batch"] == 1, "all questions about an image are drawn together"
    assert everything["tokens"]["unique"] < 0.6 * everything["tokens"]["padded"]
    assert "instead of" in everything["packing"]
    # The batch that both train on first: TRL gets the rows in the order in which lockadapt draws them.
    assert abs(everything["training_loss"] - everything["peer_training_loss"]) < 1e-4
    assert everything["rows_tokenised_differently"] == 0

    page = tmp_path / "benchmarks.md"
    shutil.copy(BENCHMARKS.parent / "docs" / "benchmarks.md", page)
    _run("report.py", "--results", str(tmp_path), "--file", str(page))
    assert f"| `vqa-5` | {case['samples_per_second']:.2f} |" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 1000


def test_absent_data_are_skipped_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    done = _run("throughput.py", "--json", "--case", "easy-vqa", "--real", str(tmp_path))
    assert json.loads(done.stdout)["cases"] == []
    assert f"no easy-VQA data at {tmp_path}" in done.stderr


def _run(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done
