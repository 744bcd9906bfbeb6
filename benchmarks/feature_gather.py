"""How long a batch takes to gather from the feature cache, beside a plain copy of as many bytes.

    python benchmarks/feature_gather.py [--batch 64] [--cache FOLDER] [--json]

Writes random features of three shapes to a temporary cache, and gathers batches of random images from it, the
pages being in memory. `share` is the copy's time over the gathering's: 1 would be the bandwidth of the
memory, nothing else. `calls` are torch operators in one batch: they must not grow with tokens, and nothing
may wait for a device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import profile

from lockadapt.features.on_disk import gather
from lockadapt.features.shards import Layout, Shard, open_shard, write_shard

SHAPES = {
    "MobileNetV2, 128 px": (16, 1280),
    "SigLIP-base, 224 px": (196, 768),
    "CLIP-L, 336 px": (576, 1024),
}
SHARD_IMAGES, SHARDS, BATCHES = 16, 4, 15


def main() -> None:
    """Measures all shapes and stored dtypes, and prints a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cache", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.cache) as scratch:
        rows = [
            {"tower": name, **measured(Path(scratch), Layout(*shape, stored), chosen.batch)}
            for name, shape in SHAPES.items()
            for stored in ("float32", "bfloat16", "int8")
        ]
    if chosen.json:
        print(json.dumps({"batch": chosen.batch, "threads": torch.get_num_threads(), "rows": rows}))
        return
    print("tower                stored     KiB/image  us/image  copy us/image  share  torch calls a batch")
    for row in rows:
        print(
            f"{row['tower']:<20} {row['stored']:<10} {row['bytes'] / 1024:>9.0f} {row['us_per_image']:>9.1f} "
            f"{row['copy_us_per_image']:>14.1f} {row['share']:>6.2f} {row['calls']:>6}"
        )


def measured(folder: Path, layout: Layout, batch: int) -> dict[str, Any]:
    """Gathering and copying time per image in microseconds, the medians of `BATCHES`."""
    shards = [_shard(folder / f"{number}", layout, number) for number in range(SHARDS)]
    dice = torch.Generator().manual_seed(0)
    picks = [
        [(shards[i % SHARDS], i // SHARDS) for i in _random(dice, batch, SHARDS * SHARD_IMAGES)]
        for _ in range(BATCHES)
    ]
    # As large as the shards together, so that neither side reads from the processor's caches what the other
    # cannot.
    source = torch.ones((SHARDS * SHARD_IMAGES, layout.image_bytes), dtype=torch.uint8)
    starts = _random(dice, BATCHES, max(1, SHARDS * SHARD_IMAGES - batch))
    gathering = _median([_seconds(lambda part=part: gather(part, layout)) for part in picks])
    copying = _median([_seconds(lambda at=at: source[at : at + batch].clone()) for at in starts])
    with profile(use_kineto=False) as seen:
        gather(picks[0], layout)
    return {
        "stored": layout.stored,
        "bytes": layout.image_bytes,
        "us_per_image": gathering / batch * 1e6,
        "copy_us_per_image": copying / batch * 1e6,
        "share": copying / gathering,
        "calls": sum(event.count for event in seen.key_averages()),
    }


def _shard(path: Path, layout: Layout, seed: int) -> Shard:
    dice = torch.Generator().manual_seed(seed)
    features = torch.randn(SHARD_IMAGES, layout.tokens, layout.channels, generator=dice)
    write_shard(path, "benchmark", [str(i) for i in range(SHARD_IMAGES)], features, layout.stored)
    return open_shard(path, "benchmark", layout, thorough=True)


def _random(dice: torch.Generator, count: int, below: int) -> list[int]:
    return torch.randint(below, (count,), generator=dice).tolist()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
