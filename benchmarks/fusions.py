"""Every fusion on one task with the same LLM, tower, LoRA and training time; tiles where they are needed.

    python benchmarks/fusions.py [--json] [--only FUSION] [--seconds 600] [--tower FOLDER]
                                 [--lines | --photos] [--markdown docs/fusions.md]

Needs easy-VQA and the TinyStories LLM in the folder `LOCKADAPT_REAL` (default: ../shared/real). The tower is
the quickstart's SigLIP, 64 pixels in 4 x 4 patches; a fusion that does not hold it gets the first other one
(`--tower`, several times) that it holds. Each run has a process of its own, for its own peak memory: it first
trains a few steps to learn its speed, then as many as the time allows. Time is the processor's, so that other
work on the machine does not count: 600 seconds are five minutes on two cores. `--lines` and `--photos` run
other tasks instead: fine lines in large scenes, and captions of the photographs in the same folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import lockadapt
import lockadapt.quickstart
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.suggest import holdings
from lockadapt.data.encode import Encoder
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.errors import LockadaptError
from lockadapt.quickstart.drawing import Scene, draw

ASSETS = Path(lockadapt.quickstart.__file__).parent / "assets"
REAL = Path(os.environ.get("LOCKADAPT_REAL", Path(__file__).parents[2] / "shared" / "real"))
WARM_UP = 40
"""Steps that tell how fast a run is."""
BATCH = 64
SCENE, DISC, PERIOD = 448, (0.16, 0.28), (9.0, 12.0)
"""Side of a scene in pixels, radius of its disc as a share of it, and pixels from line to line."""
DIRECTIONS = {"across": 0, "down": 90, "rising": 45, "falling": 135}
"""The answers, and how far lines are turned, in degrees."""
TILE_GRID = [[2, 2]]
BEGIN, END = (
    "<!-- measured by benchmarks/fusions.py: begin -->",
    "<!-- measured by benchmarks/fusions.py: end -->",
)
COLUMNS = (
    *(
        "fusion",
        "class",
        "tower",
        "accuracy",
        "samples_per_second",
        "image_tokens",
        "trained_parameters",
        "peak_mib",
    ),
    "eval_samples_per_second",
)
CAPTION_COLUMNS = (
    *("fusion", "tower", "steps", "samples_per_second", "image_tokens", "validation_loss"),
    *("cider", "cider_mean_image"),
)
VALIDATIONS = 10
"""In a run that has validation rows, the best of which is kept."""


def easy_vqa() -> dict[str, Any]:
    """The rows of easy-VQA."""
    data = REAL / "data" / "easy-vqa"
    halves = {
        half: {
            "format": "jsonl",
            "path": str(data / half / "questions.json"),
            "images": str(data / half / "images"),
            "columns": {"question": 0, "answer": 1, "image": 2},
            "image_name": "{}.png",
        }
        for half in ("train", "test")
    }
    return {"vqa": {**halves, "answers": str(data / "answers.txt")}}


def photographs() -> dict[str, Any]:
    """800 photographs with five captions each; 50 others choose the best state of a run and score it."""
    files = {"train": "train", "validation": "validation", "test": "validation"}
    halves: dict[str, Any] = {
        half: {"format": "jsonl", "path": str(REAL / "data" / "photos" / f"{name}.jsonl")}
        for half, name in files.items()
    }
    return {"caption": {**halves, "prompt": "Describe the image in one sentence.", "max_new_tokens": 24}}


def hatched(folder: Path, count: int = 1200, tested: int = 300) -> dict[str, Any]:
    """Draws a disc of fine lines in each large scene, and asks which way they run: four answers.

    Reduced to the tower's square, the lines are an even grey; in tiles, they are lines.
    """
    halves = {}
    down, across = np.mgrid[:SCENE, :SCENE].astype(np.float32)
    for half, number in (("train", count), ("test", tested)):
        (folder / half).mkdir(parents=True, exist_ok=True)
        random, rows = Random(f"hatched {half}"), []
        for index in range(number):
            answer = list(DIRECTIONS)[index % len(DIRECTIONS)]
            turn = math.radians(DIRECTIONS[answer] + random.uniform(-8, 8))
            x, y = (random.uniform(0.3, 0.7) * SCENE for _ in "xy")
            radius, period, start = random.uniform(*DISC) * SCENE, random.uniform(*PERIOD), random.random()
            phase = (across * math.sin(turn) + down * math.cos(turn)) / period + start
            inside = (across - x) ** 2 + (down - y) ** 2 < radius**2
            scene = np.where(inside, np.where(phase % 1 < 0.5, 30, 250), 240).astype(np.uint8)
            Image.fromarray(scene).convert("RGB").save(folder / half / f"{index:05d}.png", compress_level=1)
            row = {"image": f"{index:05d}.png", "question": "which way do the lines run?", "answer": answer}
            rows.append(json.dumps(row))
        (folder / f"{half}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        halves[half] = {
            "format": "jsonl",
            "path": str(folder / f"{half}.jsonl"),
            "images": str(folder / half),
        }
    return {"vqa": {**halves, "answers": list(DIRECTIONS)}}


def worker(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Trains and scores one fusion.

    Args:
        job: `{"model", "objectives", "seconds"}`.
        scratch: for its runs.

    Returns:
        The contract's keys but the fusion's name.
    """
    recipe = {
        "model": {**job["model"], "dtype": "float32"},
        "lora": {"rank": 16},
        "objectives": job["objectives"],
        "data": {"cache": str(scratch / "cache"), "features": "disk"},
        "training": {
            **{"steps": WARM_UP, "batch_size": BATCH, "learning_rate": 3e-3, "warmup": 0.05},
            **{"projector_learning_rate": 3e-3, "schedule": "cosine", "log_every": 50},
        },
    }
    (name, objective), *_ = job["objectives"].items()
    first, share = _timed(lambda: lockadapt.train(recipe, output=scratch / "warm", quiet=True))
    steps = max(WARM_UP, round(job["seconds"] * first.samples_per_second / share / BATCH))
    recipe["training"]["steps"] = steps
    if "validation" in objective:
        recipe["training"]["validate_every"] = math.ceil(steps / VALIDATIONS)
    done, share = _timed(lambda: lockadapt.train(recipe, output=scratch / "run", quiet=True))
    run = lockadapt.load_run(scratch / "run")
    began = time.process_time()
    scores = lockadapt.evaluate(run, quiet=True).scores[name]
    seconds = time.process_time() - began
    shown = ImageRef("one", picture=draw(Scene(()), job["side"]))
    encoder = Encoder(run.processor, 10**6)
    row = encoder.encode([question_answer("what is it?", "a", [shown], "row")]).encoded[0]
    stage = run.run.record.stages[-1]
    measured: dict[str, Any] = {"accuracy": scores.get("accuracy")}
    if "cider" in scores:
        blind = lockadapt.evaluate(run, quiet=True, blind=True).scores[name]
        measured = {"cider": scores["cider"], "cider_mean_image": blind["cider"]}
        measured["validation_loss"] = stage.best_validation_loss
    return {
        "class": type(unwrap_model(run.model)).__name__,
        **measured,
        "samples_per_second": done.samples_per_second / share,
        "image_tokens": int((row.input_ids == encoder.image_token_id).sum()),
        "trained_parameters": sum(row.parameters for row in stage.components if row.state == "trained"),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "eval_samples_per_second": scores["n"] / seconds,
        "steps": steps,
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What is returned, and seconds of processor time for each that passed: below 1 where others work."""
    passed, used = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.process_time() - used) / (time.perf_counter() - passed)


def in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    """What `worker` measures, in a new Python; the last line of its errors as `reason` where it fails."""
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, __file__, "--worker", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"reason": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        return json.loads(done.stdout.strip().splitlines()[-1])


def measured(
    only: Sequence[str], seconds: float, towers: Sequence[str], objectives: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for every fusion that holds the LLM and one of the towers, with its numbers; else the reason."""
    llm, known = str(REAL / "llm" / "tinystories-656k"), [str(ASSETS / "tower"), *towers]
    columns = zip(*(holdings(llm, tower) for tower in known), strict=True)
    rows = []
    for entries in columns:
        if only and entries[0].fusion not in only:
            continue
        pairs = zip(entries, known, strict=True)
        entry, tower = next((pair for pair in pairs if pair[0].model_class), (entries[0], known[0]))
        row: dict[str, Any] = {"fusion": entry.fusion, "class": entry.model_class, "reason": entry.reason}
        if entry.model_class is not None:
            model = {"llm": llm, "tower": tower, "fusion": entry.fusion}
            job = {"model": model, "objectives": objectives, "seconds": seconds, "side": 64}
            row |= {"tower": tower_name(tower), **in_own_process(job)}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def tower_name(folder: str) -> str:
    """The class of a tower in a folder."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return str(config["architectures"][0])


def measured_lines(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """The square picture and tiles on fine lines in large scenes."""
    llm, tower = str(REAL / "llm" / "tinystories-656k"), str(ASSETS / "tower")
    objectives = hatched(folder)
    rows = []
    for fusion, keys in (("mlp", {}), ("tiles", {"grid": TILE_GRID})):
        model = {"llm": llm, "tower": tower, "fusion": fusion, **keys}
        job = {"model": model, "objectives": objectives, "seconds": seconds, "side": SCENE}
        rows.append({"fusion": fusion, "tower": tower_name(tower), **in_own_process(job)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows with numbers as a table of Markdown, then the reasons of the others."""
    lines = [f"| {' | '.join(columns)} |".replace("_", " "), "| --- " * len(columns) + "|"]
    for row in rows:
        if not row.get("reason"):
            values = [row.get(name, "–") for name in columns]
            cells = [f"{value:,.4g}" if isinstance(value, float) else str(value) for value in values]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"- `{row['fusion']}`: {row['reason']}" for row in rows if row.get("reason")]
    return "\n".join(lines).rstrip() + "\n"


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Accuracy over image tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
    shown = [row for row in rows if row.get("accuracy") is not None]
    for index, row in enumerate(sorted(shown, key=lambda row: row["image_tokens"])):
        point, colour = (row["image_tokens"], row["accuracy"]), f"C{index}"
        axes.scatter(*point, s=row["trained_parameters"] / 2000, alpha=0.7, color=colour)
        # On three lines in turn, as neighbours have much the same accuracy.
        below = (0, -16 - 11 * (index % 3))
        axes.annotate(
            row["fusion"], point, below, textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    axes.margins(x=0.15)
    # From 0.9 at most, so that differences that are noise do not look like more.
    axes.set_ylim(min(0.9, *(row["accuracy"] - 0.05 for row in shown)), 1.01)
    axes.set_xlabel("tokens an image (area: trained parameters)")
    axes.set_ylabel("accuracy, easy-VQA")
    figure.savefig(file)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", action="append")
    parser.add_argument("--seconds", type=float, default=600.0, help="of processor time, each")
    parser.add_argument("--tower", action="append", help="for fusions that do not hold SigLIP")
    parser.add_argument("--lines", action="store_true", help="only the task that needs resolution")
    parser.add_argument("--photos", action="store_true", help="only captions of photographs")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        try:
            result = worker(json.loads(asked.worker.read_text(encoding="utf-8")), asked.worker.parent)
        except LockadaptError as error:
            sys.exit(error.message)
        print(json.dumps(result))
        return
    given = asked.only or (), asked.seconds, asked.tower or ()
    if asked.photos:
        photos = measured(*given, photographs())
        print(json.dumps({"fusions": [], "photos": photos}) if asked.json else table(photos, CAPTION_COLUMNS))
        return
    rows = [] if asked.lines else measured(*given, easy_vqa())
    small: list[dict[str, Any]] = []
    if asked.lines or not asked.only:
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            small = measured_lines(Path(scratch), asked.seconds)
    if asked.markdown:
        text = asked.markdown.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        parts = [f"easy-VQA, {asked.seconds:g} seconds of processor time of training:", table(rows)]
        parts += [f"Which way fine lines run in a scene of {SCENE} pixels:", table(small)]
        inner = "\n\n".join(part.strip() for part in parts)
        asked.markdown.write_text(f"{before}{BEGIN}\n{inner}\n{END}{after}", encoding="utf-8")
        plot(rows, asked.markdown.with_suffix(".png"))
    result = {"fusions": rows, "lines": small}
    print(json.dumps(result) if asked.json else f"{table(rows)}\n{table(small)}")


if __name__ == "__main__":
    main()
