"""Time until the first optimiser step of a run, and its memory, by the number of rows and images.

    python benchmarks/startup.py --rows 600000 --images 100000 [--steps 200] [--format table] [--json]

Synthetic rows about drawn scenes, whose files are hard links of a few; the quickstart's models, assembled
before. A process of its own with one thread trains twice from the same files: cold, where nothing was kept
before, and warm. Tower outputs are not kept, so that the tower runs for the images of a step only. Seconds
count from the start of the process, with imports; CPU seconds are those of all its threads and children.
Resident memory is the anonymous part.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from transformers import TrainerCallback

from lockadapt.console import Reporter
from lockadapt.quickstart.scenes import make_dataset
from lockadapt.quickstart.tour import ASSETS
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train

PER_SHARD = 10_000
"""Rows of a parquet file or tar."""

SCENES = 64
"""Pictures that are drawn; all others are hard links of them."""


@dataclass(frozen=True)
class Startup:
    """What `--json` prints.

    Attributes:
        rows, images: how many.
        format: of the rows: `table`, JSON lines whose images are files; `parquet`, `tar`: shards with images.
        cold_seconds, warm_seconds: wall time to the end of the first optimiser step.
        cold_cpu_seconds, warm_cpu_seconds: the same of all threads and children.
        rss_mib: anonymous resident memory after the first step of the warm run.
        rss_growth_mib: how much more it is after the last one.
    """

    rows: int
    images: int
    format: str
    cold_seconds: float
    warm_seconds: float
    cold_cpu_seconds: float
    warm_cpu_seconds: float
    rss_mib: float
    rss_growth_mib: float


class Watch(TrainerCallback):
    """Notes time and memory behind the first step, and memory behind the last.

    Args:
        began: when the process was started, in seconds since the epoch.
    """

    def __init__(self, began: float) -> None:
        self.began, self.seen = began, dict[str, float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if not self.seen:
            times = os.times()
            cpu = times.user + times.system + times.children_user + times.children_system
            self.seen |= {"seconds": time.time() - self.began, "cpu": cpu, "first": anonymous_mib()}
        self.seen["last"] = anonymous_mib()


def main() -> None:
    """Measures, and prints what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=200, help="of the warm run")
    parser.add_argument("--format", choices=("table", "parquet", "tar"), default="table")
    parser.add_argument("--folder", type=Path, help="where files are written; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", nargs=2, metavar=("RECIPE", "BEGAN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(watched(Path(given.run[0]), float(given.run[1]))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = measure(given.rows, given.images, given.steps, Path(folder), given.format)
    if given.json:
        print(json.dumps(asdict(result)))
    else:
        print(result)


def measure(rows: int, images: int, steps: int, folder: Path, format: str = "table") -> Startup:
    """Writes rows and images, and trains on them twice.

    Args:
        rows: how many.
        images: how many files.
        steps: of the second run; the first takes one.
        folder: is filled.
        format: of the rows.

    Returns:
        What was measured.
    """
    if format == "table":
        write_rows(folder, rows, images)
    else:
        write_shards(folder, rows, images, format)
    base = folder / "base"
    command = ("assemble", "--llm", ASSETS / "llm", "--tower", ASSETS / "tower", "--output", base)
    call(sys.executable, "-m", "lockadapt", *map(str, command), "--feature-layer", "-1")
    cold = started(recipe(folder, "cold", 1, format))
    warm = started(recipe(folder, "warm", steps, format))
    return Startup(
        rows,
        images,
        format,
        round(cold["seconds"], 1),
        round(warm["seconds"], 1),
        round(cold["cpu"], 1),
        round(warm["cpu"], 1),
        round(warm["first"], 1),
        round(warm["last"] - warm["first"], 1),
    )


def write_rows(folder: Path, rows: int, images: int) -> None:
    """Writes `rows.jsonl` and the images that it names, by thousands in folders of their own."""
    make_dataset(folder / "scenes", train=SCENES, test=1)
    scenes = [json.loads(line) for line in (folder / "scenes" / "train.jsonl").read_text().splitlines()]
    for number in range(images):
        link = folder / "images" / name_of(number)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "scenes" / scenes[number % len(scenes)]["image"], link)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in range(rows):
            number = row * images // rows
            file.write(json.dumps({**scenes[number % len(scenes)], "image": name_of(number)}) + "\n")


def write_shards(folder: Path, rows: int, images: int, format: str) -> None:
    """Writes shards of `PER_SHARD` rows, each with the bytes of its image."""
    make_dataset(folder / "scenes", train=SCENES, test=1)
    scenes = [json.loads(line) for line in (folder / "scenes" / "train.jsonl").read_text().splitlines()]
    data = [(folder / "scenes" / scene.pop("image")).read_bytes() for scene in scenes]
    (folder / "shards").mkdir()
    for start in range(0, rows, PER_SHARD):
        numbers = range(start, min(rows, start + PER_SHARD))
        shown = [(row, row * images // rows % len(scenes)) for row in numbers]
        file = folder / "shards" / f"{start // PER_SHARD:06d}"
        if format == "parquet":
            held = [{"image": {"bytes": data[scene], "path": None}, **scenes[scene]} for _, scene in shown]
            pq.write_table(pa.Table.from_pylist(held), file.with_suffix(".parquet"), row_group_size=1000)
            continue
        with tarfile.open(file.with_suffix(".tar"), "w") as archive:
            for row, scene in shown:
                for kind, content in (("png", data[scene]), ("json", json.dumps(scenes[scene]).encode())):
                    member = tarfile.TarInfo(f"{row:09d}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def name_of(number: int) -> str:
    """The file of an image."""
    return f"{number // 1000:04d}/{number:08d}.png"


def recipe(folder: Path, name: str, steps: int, format: str = "table") -> Path:
    """Writes the recipe of a run."""
    source = {"format": "jsonl", "path": str(folder / "rows.jsonl"), "images": str(folder / "images")}
    if format != "table":
        kind = {"parquet": "parquet", "tar": "webdataset"}[format]
        source = {"format": kind, "path": str(folder / "shards")}
    values = {
        "model": {"vlm": str(folder / "base"), "dtype": "float32"},
        "lora": {"rank": 4},
        "objectives": {"vqa": {"train": source}},
        "data": {"features": "none", "cache": str(folder / "cache")},
        "training": {"steps": steps, "batch_size": 16, "log_every": max(1, steps // 2)},
        "output": str(folder / name),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def started(file: Path) -> dict[str, float]:
    """Trains in a process of its own, with one thread."""
    out = call(sys.executable, __file__, "--run", str(file), str(time.time()))
    seen: dict[str, float] = json.loads(out.splitlines()[-1])
    return seen


def watched(file: Path, began: float) -> dict[str, float]:
    """Trains in this process; what `Watch` saw."""
    watch = Watch(began)
    loaded = load_recipe(file, ())
    assert loaded.recipe.output is not None
    train(loaded.recipe, loaded.recipe.output, Reporter(quiet=True), observers=[lambda *_: [watch]])
    return watch.seen


def anonymous_mib() -> float:
    """Anonymous resident memory of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def call(*command: str) -> str:
    """What a command prints; its error ends this process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
