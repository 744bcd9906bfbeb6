"""Merges an adapter into a base and prints the peak memory of doing so, in MiB, beyond what imports take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peft  # noqa: F401 - not counted
import transformers.models.llama.modeling_llama  # noqa: F401

from lockadapt.exports.weights.merge_weights import Weighted, merge_weights


def status(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    base, adapter, output = map(Path, sys.argv[1:4])
    before = status("VmRSS")
    report = merge_weights(base, output, [Weighted(adapter)])
    print(json.dumps({"mib": status("VmHWM") - before, "bytes": report.bytes}))
