"""Tries every decoder family that Transformers builds: works from assembling to merging, or is refused.

`python benchmarks/decoder_families.py [--only NAME]… [--json] [--without-merge] [--rows FOLDER] [--markdown
docs/families.md]`. Each family runs in a forked child with a limit of processor time, and merged folders are
proved in forks of one process that has imported Transformers, not lockadapt. With --rows, families that have
a file in the folder are not tried again. Exit code 1 if one ends in anything but success or a typed error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import transformers
from family_configs import FAMILIES
from PIL import Image
from transformers.utils import logging

from lockadapt.architectures.assemble import assemble
from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError
from lockadapt.exports.merge import merge_run
from lockadapt.models import proof
from lockadapt.recipe.schema import Recipe
from lockadapt.training.loop import train
from tests.support.warm import Warm

LIMIT_SECONDS = 600
"""Processor time for a family, which Kimi Linear in plain PyTorch needs; ten times that on the clock."""
COLOURS = ("red", "green", "blue", "yellow")


@dataclass(frozen=True)
class Outcome:
    """How a family fared.

    Attributes:
        family: its name in `FAMILIES`.
        result: `works`, `refused` (an error that says why) or `fails` (anything else).
        step: the last that was begun: `build`, `assemble`, `train plain`, `train packed`, `merge`.
        reason: the error's message; empty where it works.
        packing: what the run that packs where it can says of it.
        seconds: that it took.
    """

    family: str
    result: str
    step: str
    reason: str = ""
    packing: str = ""
    seconds: float = 0.0


def try_family(family: str, folder: Path, *, merge: bool = True) -> Outcome:
    """Takes a family as far as it goes.

    Args:
        family: a name of `FAMILIES`.
        folder: an empty one.
        merge: also merge the packed run and prove the merged folder in a fresh process.

    Returns:
        The outcome, without its seconds.
    """
    step, packing = "build", ""
    try:
        llm, tower = _llm(family, folder / "llm"), _tower(folder / "tower")
        step = "assemble"
        assemble(llm, tower, folder / "vlm", dtype="float32", prove=False)
        for kind in ("none", "auto"):
            step = "train plain" if kind == "none" else "train packed"
            result = train(_recipe(folder, kind), folder / kind, Reporter(quiet=True))
            packing = json.loads((Path(result.output) / "run.json").read_text())["stages"][0]["packing"][
                "why"
            ]
        step = "merge"
        if merge:
            merge_run(folder / "auto", folder / "merged", Reporter(quiet=True), "dequantized")
    except LockadaptError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{folder}/")
        return Outcome(family, "refused", step, reason, packing)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        reason = f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
        return Outcome(family, "fails", step, reason, packing)
    return Outcome(family, "works", step, "", packing)


def _llm(family: str, folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        Path(__file__).parent.parent / "lockadapt/quickstart/assets/llm"
    )
    config = FAMILIES[family].build(len(tokenizer))
    torch.manual_seed(0)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tower(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    ).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


def _recipe(folder: Path, packing: str) -> Any:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        lines = []
        for colour in COLOURS:
            Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
            for question in ("what colour is it?", "which colour is the square?", "is it red, or what?"):
                lines.append(json.dumps({"image": f"{colour}.png", "question": question, "answer": colour}))
        rows.write_text("\n".join(lines) + "\n")
    training = {"steps": 3, "batch_size": 12, "learning_rate": 1e-2, "projector_learning_rate": 1e-2}
    return Recipe.model_validate(
        {
            "model": {"vlm": str(folder / "vlm"), "dtype": "float32"},
            "lora": {"rank": 4},
            "objectives": {"vqa": {"train": {"format": "jsonl", "path": str(rows)}}},
            "data": {"packing": packing, "max_samples_per_image": 3},
            "training": training,
        }
    )


def _in_child(family: str, merge: bool) -> Outcome:
    """`try_family` in a forked process, which can hang or die alone."""
    context, start = multiprocessing.get_context("fork"), time.monotonic()
    queue = context.Queue()

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
        with tempfile.TemporaryDirectory(prefix=f"family-{family}-") as folder:
            queue.put(try_family(family, Path(folder), merge=merge))

    child = context.Process(target=run)
    child.start()
    try:
        outcome = _waited(queue, child)
    except Empty:
        child.kill()
        outcome = Outcome(
            family, "fails", "?", f"no end after {LIMIT_SECONDS} s of work, or the process died"
        )
    child.join()
    return Outcome(**{**asdict(outcome), "seconds": round(time.monotonic() - start, 1)})


def _warm() -> Warm:
    """Started here, so that all children share it."""
    warm = Warm()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        warm([script.name], Path.cwd(), dict(os.environ))
    return warm


def _waited(queue: Any, child: Any) -> Outcome:
    """What a child puts into the queue; `Empty` if it dies before, or takes too long."""
    end = time.monotonic() + 10 * LIMIT_SECONDS
    while True:
        try:
            return queue.get(timeout=1)
        except Empty:
            if time.monotonic() > end or (not child.is_alive() and queue.empty()):
                raise


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a page: what works first, then what is refused, each with its own reason."""
    works = [outcome for outcome in outcomes if outcome.result == "works"]
    others = [outcome for outcome in outcomes if outcome.result != "works"]
    lines = [
        "# LLM families",
        "",
        f"Measured by `make families` on tiny random models of the {len(outcomes)} decoder families that "
        f"Transformers {transformers.__version__} builds. Each is assembled with a CLIP tower, trained with "
        "LoRA, merged, and the merged folder proved in a process that does not import lockadapt: "
        f"{len(works)} work, {len(others)} do not.",
        "",
        "| family | packed rows |",
        "| --- | --- |",
        *(f"| {_name(outcome)} | {_cell(_packing(outcome))} |" for outcome in works),
        "",
        "| family | stops at | reason |",
        "| --- | --- | --- |",
        *(f"| {_name(outcome)} | {outcome.step} | {_cell(outcome.reason)} |" for outcome in others),
    ]
    return "\n".join(lines) + "\n"


def _name(outcome: Outcome) -> str:
    return f"`{outcome.family}`"


def _packing(outcome: Outcome) -> str:
    """Whether rows are packed, without the numbers of this very run."""
    refused = outcome.packing.partition("cannot be exact: ")[2]
    return f"no: {refused}" if refused else "exact"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _tried(family: str, merge: bool, rows: Path | None) -> Outcome:
    """What the folder of rows has of a family; else it is tried, and put there."""
    file = rows / f"{family}.json" if rows else None
    if file is not None and file.is_file():
        return Outcome(**json.loads(file.read_text(encoding="utf-8")))
    outcome = _in_child(family, merge)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def main() -> None:
    """Prints one line a family, or all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(FAMILIES), help="a family; may be repeated")
    parser.add_argument("--json", action="store_true", help="print a list of outcomes as JSON")
    parser.add_argument("--without-merge", action="store_true", help="stop after training")
    parser.add_argument("--rows", type=Path, help="a folder that keeps outcomes, one file a family")
    parser.add_argument("--markdown", type=Path, help="write the page of all of them here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    proof.run_python = warm = _warm()
    outcomes = []
    for family in arguments.only or FAMILIES:
        outcome = _tried(family, not arguments.without_merge, arguments.rows)
        outcomes.append(outcome)
        if outcome.step == "?":  # it may have died in the middle of a request
            warm.close()
            proof.run_python = warm = _warm()
        line = f"{family:<20} {outcome.result:<8} {outcome.step:<13} {outcome.reason or outcome.packing}"
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    warm.close()
    if arguments.markdown:
        arguments.markdown.write_text(markdown(outcomes), encoding="utf-8")
    if arguments.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    counts = {kind: sum(o.result == kind for o in outcomes) for kind in ("works", "refused", "fails")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), file=sys.stderr)
    sys.exit(1 if counts["fails"] else 0)


if __name__ == "__main__":
    main()
