"""Quality over time: what a user has after so many seconds, by lockadapt and by TRL's trainer.

    python benchmarks/quality.py [--json] [--only photos|easy-vqa] [--seconds 900] [--seeds 1] [--llm FOLDER]
                                 [--dtype float32] [--curve FILE.png]

Each side has a process and as much processor time as the other (900 seconds are seven and a half minutes on
two cores), so that other work on the machine does not count. lockadapt's clock starts with `train`: assembly,
its proof, calibration and the tower's features are in it. TRL's starts with its trainer: the model is given,
fresh and uncalibrated, as one builds it by hand. The BatchNorm layers of its tower are held in evaluation
mode, which TRL leaves to the user: it would go on changing their statistics.

Both train the projector and LoRA of rank 16 on every linear layer, with a cosine schedule that ends with the
time; its length is set after a few steps that tell how fast a side is. Loss and answers are the plain
Transformers model's: unpacked, by its own processor and `generate`. Needs the folder `LOCKADAPT_REAL`
(default: ../shared/real), and for photographs SmolLM2's (`--llm`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))

import lockadapt
from lockadapt.architectures import layout_of
from lockadapt.metrics.captions import score_captions

REAL = Path(os.environ.get("LOCKADAPT_REAL", Path(__file__).parents[2] / "shared" / "real"))
TOWER = REAL / "tower" / "mobilenetv2-1.0-224"
SIDES = ("lockadapt", "trl")
MARKS = 8
"""Times at which the loss is taken."""
WARM_UP = 10
"""Steps that tell how fast a side is."""


@dataclass(frozen=True)
class Task:
    """Data, and what both sides train it with.

    Attributes:
        name: of the task.
        llm: folder.
        image_size: pixels a side.
        prompt: the question where rows have none.
        batch: samples of an optimiser step.
        rates: learning rates of LoRA and of the projector; TRL has the first for both.
        new_tokens: the most that are generated.
    """

    name: str
    llm: str
    image_size: int | None
    prompt: str
    batch: int
    rates: tuple[float, float]
    new_tokens: int


def tasks(llm: str) -> dict[str, Task]:
    """The tasks by name; `llm` is what describes photographs."""
    told, small = "Describe the image in one sentence.", str(REAL / "llm" / "tinystories-656k")
    return {
        "photos": Task("photos", llm, None, told, 20, (2e-4, 1e-3), 24),
        "easy-vqa": Task("easy-vqa", small, 128, "", 64, (3e-3, 3e-3), 12),
    }


def rows_of(task: Task, half: str) -> list[dict[str, Any]]:
    """Rows `{"image", "question", "answers"}` of a half: train or validation."""
    if task.name == "photos":
        folder = REAL / "data" / "photos"
        lines = (folder / f"{half}.jsonl").read_text(encoding="utf-8").splitlines()
        given = [json.loads(line) for line in lines]
        return [
            {"image": str(folder / r["image"]), "question": task.prompt, "answers": r["captions"]}
            for r in given
        ]
    folder = REAL / "data" / "easy-vqa" / ("train" if half == "train" else "test")
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    rows = [
        {"image": str(folder / "images" / f"{image}.png"), "question": question, "answers": [answer]}
        for question, answer, image in questions
    ]
    return rows if half == "train" else Random(0).sample(rows, 300)


class Clock(TrainerCallback):
    """Stops training when the time is over, and takes the loss on the way, outside of the time."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.task, self.seconds = Task(**job["task"]), job["seconds"]
        self.begun, self.outside = time.process_time(), 0.0
        self.curve: list[dict[str, float]] = []
        self.mark = 0.0
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the loss at the next mark; stops behind the last."""
        now = time.process_time() - self.begun - self.outside
        self.ends.append(now)
        last = state.global_step == state.max_steps or now >= self.seconds
        if last or now >= self.mark:
            self.mark = now - now % (self.seconds / MARKS) + self.seconds / MARKS
            began, model = time.process_time(), kwargs["model"]
            loss = validation_loss(model, kwargs["processing_class"], self.task)
            model.train()
            self.curve.append({"seconds": round(now, 1), "step": state.global_step, "loss": round(loss, 4)})
            self.outside += time.process_time() - began
        control.should_training_stop = control.should_training_stop or last


def chat(processor: Any, row: dict[str, Any], answer: str | None) -> str:
    """A conversation about the row's image as text; open for an answer, or with it."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
    if answer is None:
        return str(processor.apply_chat_template([user], add_generation_prompt=True))
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return str(processor.apply_chat_template([user, reply]))


@torch.no_grad()
def validation_loss(model: Any, processor: Any, task: Task) -> float:
    """Mean negative log-likelihood of an answer's tokens, of one answer a row, in nats.

    lockadapt tokenises a conversation as a whole, TRL prompt and answer each by itself, and the tokens may
    differ. What the model finds likelier on the whole counts.
    """
    model.eval()
    sums = np.zeros((2, 2))
    for at, row in enumerate(rows_of(task, "validation")):
        opened = chat(processor, row, None)
        closed = chat(processor, row, row["answers"][at % len(row["answers"])])
        image = Image.open(row["image"]).convert("RGB")
        inputs, prompt = (
            processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=False)
            for text in (closed, opened)
        )
        length, pixels = prompt["input_ids"].shape[1], inputs["pixel_values"].to(model.dtype)
        rest = processor.tokenizer(closed[len(opened) :], return_tensors="pt", add_special_tokens=False)
        whole, apart = inputs["input_ids"], torch.cat([prompt["input_ids"], rest["input_ids"]], dim=1)
        first = _answer_loss(model, whole, length, pixels)
        sums += [first, first if torch.equal(whole, apart) else _answer_loss(model, apart, length, pixels)]
    return float((sums[:, 0] / sums[:, 1]).min())


def _answer_loss(model: Any, ids: Tensor, prompt: int, pixels: Tensor) -> tuple[float, int]:
    """Summed over the tokens behind the prompt's, and their number."""
    with torch.autocast("cpu", model.dtype, enabled=model.dtype != torch.float32):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    labels = ids[0, prompt:]
    loss = torch.nn.functional.cross_entropy(logits[0, prompt - 1 : -1].float(), labels, reduction="sum")
    return float(loss), len(labels)


@torch.no_grad()
def score(model: Any, processor: Any, task: Task) -> float:
    """CIDEr-D of captions, or the share of questions that are answered right; greedy."""
    model.eval()
    answers, rows = [], rows_of(task, "validation")
    for row in rows:
        image = Image.open(row["image"]).convert("RGB")
        text = chat(processor, row, None)
        inputs = processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=False)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        # What trains is in float32, also where the rest is not.
        with torch.autocast("cpu", model.dtype, enabled=model.dtype != torch.float32):
            made = model.generate(**inputs, max_new_tokens=task.new_tokens, do_sample=False)
        made = made[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(made, skip_special_tokens=True).strip())
    if task.name == "photos":
        return float(score_captions(answers, [row["answers"] for row in rows])["cider"])
    return sum(a == row["answers"][0] for a, row in zip(answers, rows, strict=True)) / len(rows)


def run_lockadapt(job: dict[str, Any], clock: Clock, scratch: Path) -> tuple[Any, Any]:
    """Trains by a recipe; returns model and processor."""
    from lockadapt.console import Reporter
    from lockadapt.recipe.read import load_recipe
    from lockadapt.training.loop import train

    task = Task(**job["task"])
    rows = rows_of(task, "train")
    kind = "caption" if task.name == "photos" else "vqa"
    root = Path(rows[0]["image"]).parent
    lines = [
        {"image": Path(row["image"]).name, "captions": row["answers"]}
        if kind == "caption"
        else {
            **{"image": Path(row["image"]).name, "question": row["question"]},
            "answer": row["answers"][0],
        }
        for row in rows
    ]
    (scratch / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe = {
        "model": {"llm": task.llm, "tower": str(TOWER), "image_size": task.image_size, "dtype": job["dtype"]},
        "lora": {"rank": 16},
        "objectives": {
            kind: {
                "train": {"format": "jsonl", "path": str(scratch / "rows.jsonl"), "images": str(root)},
                **({"prompt": task.prompt} if kind == "caption" else {}),
            }
        },
        "data": {"cache": str(scratch / "cache"), "features": "memory"},
        "training": {
            **{"steps": job["steps"], "batch_size": task.batch, "learning_rate": task.rates[0]},
            **{"projector_learning_rate": task.rates[1], "schedule": "cosine", "warmup": 0.05},
            **{"seed": job["seed"], "log_every": 10},
        },
    }
    seen: dict[str, Any] = {}

    def observer(session: Any, stage: str, objectives: Any) -> list[TrainerCallback]:
        seen.update(model=session.model, processor=session.processor)
        return [clock]

    loaded = load_recipe(None, tuple(job["overrides"]), recipe)
    train(loaded.recipe, scratch / "run", Reporter(quiet=True), observers=(observer,))
    return seen["model"], seen["processor"]


def run_trl(job: dict[str, Any], clock: Clock, scratch: Path) -> tuple[Any, Any]:
    """Trains by TRL's `SFTTrainer` as documented for a VLM; returns model and processor."""
    from datasets import Dataset, List
    from datasets import Image as ImageFeature
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from lockadapt.architectures.load import load_model
    from lockadapt.tuning.adapters import LoraSettings, lora_config

    task = Task(**job["task"])
    model, processor = load_model(job["folder"], job["dtype"])
    for module in model.get_submodule(layout_of(model).tower).modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda frozen, given: frozen.eval() and None)
    clock.begun = time.process_time()
    pairs = [(row, answer) for row in rows_of(task, "train") for answer in row["answers"]]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": answer}],
                "images": [row["image"]],
            }
            for row, answer in pairs
        ]
    ).cast_column("images", List(ImageFeature()))
    config = SFTConfig(
        str(scratch / "trl"),
        max_length=None,
        max_steps=job["steps"],
        per_device_train_batch_size=task.batch,
        learning_rate=task.rates[0],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * job["steps"]),
        weight_decay=0.0,
        bf16=job["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        seed=job["seed"],
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
    )
    projector = [path.rpartition(".")[2] for path in layout_of(model).projector]
    own = lora_config(model, LoraSettings(rank=16))
    lora = LoraConfig(
        r=own.r, lora_alpha=own.lora_alpha, target_modules=own.target_modules, modules_to_save=projector
    )
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=lora,
        callbacks=[clock],
    )
    trainer.train()
    return trainer.model, processor


def worker(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Runs one side once.

    Args:
        job: `{"side", "task", "folder", "seconds", "steps", "seed", "dtype", "overrides"}`.
        scratch: for its files.

    Returns:
        `{"curve", "score", "steps", "before", "step"}`: losses over seconds, the final score, and the seconds
        before the first step's end and of a step.
    """
    torch.set_num_threads(1)
    clock = Clock(job)
    trainer = {"lockadapt": run_lockadapt, "trl": run_trl}[job["side"]]
    model, processor = trainer(job, clock, scratch)
    ends = clock.ends
    return {
        "curve": clock.curve,
        "score": score(model, processor, clock.task) if job["scored"] else None,
        "steps": len(ends),
        "before": ends[0],
        "step": (ends[-1] - ends[1]) / max(1, len(ends) - 2),
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    """`worker` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        given, made = Path(scratch) / "job.json", Path(scratch) / "result.json"
        given.write_text(json.dumps(job), encoding="utf-8")
        subprocess.run(
            [sys.executable, __file__, "--worker", str(given), str(made)],
            check=True,
            stdout=sys.stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return dict(json.loads(made.read_text(encoding="utf-8")))


def measured(task: Task, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Both sides, seed by seed: `{"task", "side", "seed", "curve", "score", "steps"}`."""
    lockadapt.assemble(task.llm, TOWER, folder, image_size=task.image_size, dtype=options.dtype, prove=False)
    runs = []
    for side in options.side or SIDES:
        job = {
            **{"side": side, "task": asdict(task), "folder": str(folder), "dtype": options.dtype},
            **{"overrides": options.override, "seconds": math.inf, "steps": WARM_UP, "seed": 0},
        }
        tried = run({**job, "seconds": 1e9, "scored": False})
        steps = max(WARM_UP, round((options.seconds - tried["before"]) / tried["step"]))
        for seed in range(options.seeds):
            done = run({**job, "seconds": options.seconds, "steps": steps, "seed": seed, "scored": True})
            runs.append({"task": task.name, "side": side, "seed": seed, **done})
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return runs


def time_to(curve: Sequence[dict[str, float]], loss: float) -> float | None:
    """Seconds until a curve, straight between its points, is at a loss; None: never."""
    before: dict[str, float] | None = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return point["seconds"]
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task and seed: final losses and scores; lockadapt's time to TRL's final loss, over TRL's time."""
    rows = []
    by = {(r["task"], r["seed"], r["side"]): r for r in runs}
    for task, seed, side in by:
        ours, theirs = by.get((task, seed, "lockadapt")), by.get((task, seed, "trl"))
        if side != "trl" or ours is None or theirs is None:
            continue
        last = theirs["curve"][-1]
        reached = time_to(ours["curve"], last["loss"])
        rows.append(
            {
                **{"task": task, "seed": seed, "seconds": last["seconds"]},
                **{"loss": ours["curve"][-1]["loss"], "trl_loss": last["loss"]},
                **{"score": ours["score"], "trl_score": theirs["score"]},
                "time_ratio": None if reached is None else round(reached / last["seconds"], 3),
            }
        )
    return rows


def plot(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Losses over processor time, a panel a task."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(run["task"] for run in runs))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.5 * len(names), 3.8), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for side, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            for at, line in enumerate(r for r in runs if (r["task"], r["side"]) == (name, side)):
                xs, ys = ([point[key] for point in line["curve"]] for key in ("seconds", "loss"))
                axis.plot(xs, ys, "o-", color=colour, label=None if at else side, markersize=3)
        axis.set(title=name, xlabel="seconds of processor time", ylabel="validation loss, nats a token")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print runs and summary as JSON")
    parser.add_argument("--only", choices=("photos", "easy-vqa"), help="one task")
    parser.add_argument("--side", action="append", choices=SIDES, help="one side")
    parser.add_argument("--seconds", type=float, default=900, help="processor time of each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--llm", default="", help="folder of SmolLM2-135M-Instruct, for photographs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--override", action="append", default=[], help="key=value of lockadapt's recipe")
    parser.add_argument("--curve", type=Path, help="draw the losses into this file")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        given, made = options.worker
        result = worker(json.loads(given.read_text(encoding="utf-8")), given.parent)
        made.write_text(json.dumps(result), encoding="utf-8")
        return
    runs: list[dict[str, Any]] = []
    for name, task in tasks(options.llm).items():
        if options.only not in (None, name) or not task.llm:
            continue
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            runs += measured(task, options, Path(scratch) / "model")
    result = {"runs": runs, "summary": summary(runs)}
    print(json.dumps(result) if options.json else json.dumps(result["summary"], indent=1))
    if options.curve:
        plot(runs, options.curve)


if __name__ == "__main__":
    main()
