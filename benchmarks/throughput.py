"""TRL's `SFTTrainer` and lockadapt side by side: same model, rows, LoRA and optimiser, in one run.

    python benchmarks/throughput.py                          # all cases, a table
    python benchmarks/throughput.py --json --case vqa-5      # one case, for scripts
    python benchmarks/throughput.py --small                  # few steps, small batches: a minute a case

The two sides alternate, each round in a fresh process. What the numbers mean is in docs/benchmarks.md.
Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import CASES, Case, drawn_rows, easy_vqa_rows

from lockadapt.files import write_json

HERE = Path(__file__).resolve().parent
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
KEYS = (
    "name",
    "speedup",
    "memory_ratio",
    "loss_difference",
    "samples_per_second",
    "peer_samples_per_second",
    "gemm_fraction",
)
"""What `--json` prints of a case; `--details` writes everything."""


class WorkerError(Exception):
    """A worker ended badly; the message holds the end of what it wrote."""


@dataclass(frozen=True)
class EvaluationContext:
    """One invocation: its folder, and what is the same for all cases."""

    folder: Path
    arguments: argparse.Namespace

    def work(self, name: str, **job: Any) -> dict[str, Any]:
        """One worker process: its result.

        Raises:
            WorkerError: it did not end with exit code 0.
        """
        source, target, log = (self.folder / f"{name}.{end}" for end in ("job.json", "result.json", "log"))
        base = {
            "folder": str(self.folder / name),
            "dtype": DTYPES[self.arguments.dtype],
            "device": self.arguments.device,
        }
        source.write_text(json.dumps({**base, **job}), encoding="utf-8")
        # TRL reports its use to the Hub unless told not to.
        environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
        with log.open("w", encoding="utf-8") as output:
            command = [sys.executable, str(HERE / "worker.py"), str(source), str(target)]
            code = subprocess.run(command, stdout=output, stderr=output, env=environment).returncode
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise WorkerError(f"{name} ended with exit code {code}:\n{tail}")
        return json.loads(target.read_text(encoding="utf-8"))

    def case(self, case: Case) -> dict[str, Any]:
        """All rounds of a case; see `summary`."""
        arguments = self.arguments
        steps = arguments.steps or (case.small_steps if arguments.small else case.steps)
        images = case.small_images if arguments.small else case.images
        batch, batches = images * case.samples, steps + 2
        if case.rows == "easy-vqa":
            rows = easy_vqa_rows(arguments.real, batch * batches)
        else:
            rows = drawn_rows(case, images, batches, self.folder / f"pictures-{case.name}")
        rows_file = self.folder / f"{case.name}.rows.json"
        rows_file.write_text(json.dumps(rows), encoding="utf-8")
        if case.rows == "easy-vqa":
            source = {"real": str(arguments.real), "model": str(self.folder / "model-easy-vqa")}
        else:
            shape = arguments.shape if case.model == "assembled" else f"{case.model}-{arguments.shape}"
            source = {"shape": shape, "model": str(self.folder / f"model-{shape}")}
        common = {
            **source,
            "rows": str(rows_file),
            "batch": batch,
            "steps": steps,
            "packing": arguments.packing,
            "together": None if case.rows == "easy-vqa" else case.samples,
        }
        plan = self.work(f"{case.name}-plan", task="plan", **common)
        note(f"{case.name}: {batch} samples a batch, {plan['packing']}")
        results: dict[str, list[dict[str, Any]]] = {"trl": [], "lockadapt": []}
        rounds = arguments.rounds or (1 if arguments.small else 3)
        for number in range(rounds):
            for side, done in results.items():
                job = {
                    **common,
                    "order": plan["order"] if side == "trl" else None,
                    "checkpointing": arguments.checkpointing in (side, "both"),
                    "compare": "" if number else str(self.folder / f"{case.name}.tokens.json"),
                    "first": plan["order"][:batch],
                }
                done.append(self.work(f"{case.name}-{side}-{number}", task=side, **job))
                seconds = statistics.median(done[-1]["seconds"])
                note(f"{case.name}, round {number + 1} of {rounds}: {side} {seconds:.3f} s a step")
        return summary(case, batch, plan, results["lockadapt"], results["trl"])


def summary(
    case: Case,
    batch: int,
    plan: dict[str, Any],
    own: list[dict[str, Any]],
    peer: list[dict[str, Any]],
) -> dict[str, Any]:
    """The numbers of a case; `KEYS` first.

    Seconds are of one step, medians and minima over the steps of all rounds.

    `speedup_first_epoch` adds to a step the tower's share of it when every image is seen once; `memory_ratio`
    is that of the peak resident memory of the whole process, `memory_ratio_above_model` without what the
    process held after loading the model.
    """
    seconds = [s for result in own for s in result["seconds"]]
    peer_seconds = [s for result in peer for s in result["seconds"]]
    median, peer_median = statistics.median(seconds), statistics.median(peer_seconds)
    filling = statistics.median(r["filling_seconds"] / r["filled_images"] for r in own) * plan["images"]
    peak, peer_peak = (max(result["peak_mib"] for result in side) for side in (own, peer))
    loaded, peer_loaded = (statistics.median(result["loaded_mib"] for result in side) for side in (own, peer))
    return {
        "name": case.name,
        "speedup": peer_median / median,
        "memory_ratio": peak / peer_peak,
        "loss_difference": abs(own[0]["loss"] - peer[0]["loss"]),
        "samples_per_second": batch / median,
        "peer_samples_per_second": batch / peer_median,
        "gemm_fraction": plan["flops"] / median / plan["gemm_flops_per_second"],
        "batch": batch,
        "images_per_batch": plan["images"],
        "packing": plan["packing"],
        "tokens": plan["tokens"],
        "parameters": plan["parameters"],
        "useful_flops": plan["flops"],
        "gemm_flops_per_second": plan["gemm_flops_per_second"],
        "threads": plan["threads"],
        "versions": plan["versions"],
        "timed_steps": len(seconds),
        "seconds": {"median": median, "minimum": min(seconds)},
        "peer_seconds": {"median": peer_median, "minimum": min(peer_seconds)},
        "speedup_of_minima": min(peer_seconds) / min(seconds),
        "filling_seconds_per_step": filling,
        "speedup_first_epoch": peer_median / (median + filling),
        "peak_mib": peak,
        "peer_peak_mib": peer_peak,
        "memory_ratio_above_model": (peak - loaded) / (peer_peak - peer_loaded),
        "loss": own[0]["loss"],
        "peer_loss": peer[0]["loss"],
        "loss_with_own_tokens": own[0]["loss_with_own_tokens"],
        "rows_tokenised_differently": own[0]["rows_tokenised_differently"],
        "training_loss": own[0]["training_loss"],
        "peer_training_loss": peer[0]["training_loss"],
    }


def table(cases: list[dict[str, Any]]) -> str:
    """For people."""
    head = ("case", "samples/s", "TRL", "speedup", "with tower", "memory", "loss differs by", "of GEMM peak")
    lines = [
        (
            case["name"],
            f"{case['samples_per_second']:.2f}",
            f"{case['peer_samples_per_second']:.2f}",
            f"{case['speedup']:.2f}x",
            f"{case['speedup_first_epoch']:.2f}x",
            f"{case['memory_ratio']:.2f}x",
            f"{case['loss_difference']:.1e}",
            f"{case['gemm_fraction']:.2f}",
        )
        for case in cases
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )


def machine_name() -> str:
    """The processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Where it was measured; GEMM peak: the best that was seen before a case."""
    return {
        "processor": machine_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": max((case["threads"] for case in cases), default=None),
        "device": next((case["versions"]["device"] for case in cases), None),
        "gemm_flops_per_second": max((case["gemm_flops_per_second"] for case in cases), default=None),
    }


def missing(case: Case, real: Path) -> str | None:
    """Why a case cannot be measured here, or None."""
    if case.rows == "easy-vqa" and not (real / "data" / "easy-vqa").is_dir():
        return f"no easy-VQA data at {real / 'data' / 'easy-vqa'} (--real)"
    return None


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this; can be repeated")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of weights and arithmetic")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, help="timed steps a round (default: by case)")
    parser.add_argument("--rounds", type=int, help="rounds of each side (default 3; small: 1)")
    parser.add_argument("--small", action="store_true", help="one round, few steps, small batches")
    parser.add_argument("--packing", choices=["auto", "none"], default="auto", help="of lockadapt's samples")
    parser.add_argument(
        "--checkpointing",
        choices=["none", "both", "trl", "lockadapt"],
        default="none",
        help="gradient checkpointing on which side (TRL's own default is on)",
    )
    parser.add_argument(
        "--shape", choices=["base", "tiny"], default="base", help="tiny: to test the benchmark itself"
    )
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parents[1] / "shared" / "real",
        help="folder of real models and data, for easy-vqa",
    )
    parser.add_argument(
        "--details", type=Path, help="also write everything that was measured to this JSON file"
    )
    return parser.parse_args()


def main() -> None:
    """Measures, and prints."""
    arguments = parse()
    if importlib.util.find_spec("trl") is None:
        sys.exit('TRL is not installed: pip install "lockadapt[test]"')
    reasons = {name: missing(CASES[name], arguments.real) for name in arguments.case or CASES}
    for name, reason in reasons.items():
        if reason is not None:
            note(f"{name} skipped: {reason}")
    measured: list[dict[str, Any]] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="lockadapt-bench-") as folder:
        bench = EvaluationContext(Path(folder), arguments)
        for name, reason in reasons.items():
            if reason is None:
                try:
                    measured.append(bench.case(CASES[name]))
                except WorkerError as error:
                    failed = True
                    note(str(error))
    report(arguments, measured)
    sys.exit(1 if failed else 0)


def report(arguments: argparse.Namespace, measured: list[dict[str, Any]]) -> None:
    """Prints the results, and writes them with all details if asked to."""
    where = machine(measured)
    versions = measured[0]["versions"] if measured else {}
    settings = {
        name: getattr(arguments, name) for name in ("dtype", "packing", "checkpointing", "shape", "small")
    }
    if arguments.details:
        write_json(
            arguments.details,
            {"cases": measured, "machine": where, "versions": versions, "settings": settings},
        )
    if arguments.json:
        cases = [{key: case[key] for key in KEYS} for case in measured]
        print(json.dumps({"cases": cases, "machine": where, "versions": versions}, indent=1))
    elif measured:
        print(table(measured))


if __name__ == "__main__":
    main()
