"""The head and its loss, several ways: the cost of full logits, and of labelled tokens only.

    python benchmarks/head.py                     # a table: time and memory for three vocabularies
    python benchmarks/head.py --json --details build/head.json

Forward and backward to the hidden states of one batch; the head is frozen. Every way runs in a process of its
own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARIES = (2048, 49152, 151936)
WAYS = {
    "full": "all logits, cross-entropy with -100 for the rest (the stock class)",
    "labelled": "logits of labelled positions, cross-entropy",
    "chunked": "lockadapt: labelled positions in chunks, gradient in the forward pass",
    "trl": "TRL's kernel as its trainer calls it on a CPU: all positions",
    "trl-labelled": "TRL's kernel as its trainer calls it on a GPU: labelled positions",
}
OTHERS = ("liger_kernel", "cut_cross_entropy")
"""Packages with fused heads of their own, for GPUs; said whether they are installed, not measured."""
TRL_CHUNK = 32768
"""Vocabulary entries at a time in TRL 1.16's trainer (`_CHUNKED_LOGPROB_CHUNK_SIZE`)."""


def measure(way: str, vocabulary: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process: seconds, MiB above what was there before, loss and norm of the gradient."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    hidden = (
        torch.randn(arguments.positions, arguments.hidden, generator=generator).to(dtype).requires_grad_()
    )
    weight = (torch.randn(vocabulary, arguments.hidden, generator=generator) * 0.02).to(dtype)
    order = torch.randperm(arguments.positions, generator=generator)
    places = order[: arguments.labelled].sort().values
    targets = torch.randint(vocabulary, (arguments.labelled,), generator=generator)
    # Once on next to nothing, so that what a way imports and sets up is there before memory is looked at.
    few = torch.zeros(4, arguments.hidden, dtype=dtype, requires_grad=True)
    _ways(weight[:8], torch.arange(2), torch.arange(2))[way](few).backward()
    loss_of = _ways(weight, places, targets)[way]
    before, seconds = _memory("VmRSS"), []
    for _ in range(arguments.times + 1):
        hidden.grad = None
        start = time.perf_counter()
        loss = loss_of(hidden)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    assert hidden.grad is not None
    return {
        "way": way,
        "vocabulary": vocabulary,
        "seconds": statistics.median(seconds[1:]),
        "peak_mib": _memory("VmHWM") - before,
        "loss": float(loss.detach()),
        "gradient_norm": float(hidden.grad.float().norm()),
    }


def _ways(weight: Any, places: Any, targets: Any) -> dict[str, Callable[[Any], Any]]:
    import torch
    from torch.nn import functional as F

    def full(hidden: Any) -> Any:
        labels = torch.full((len(hidden),), -100)
        labels[places] = targets
        return F.cross_entropy((hidden @ weight.T).float(), labels)

    def labelled(hidden: Any) -> Any:
        return F.cross_entropy((hidden[places] @ weight.T).float(), targets)

    def chunked(hidden: Any) -> Any:
        from lockadapt.objectives.head import FrozenHead, chunked_cross_entropy

        index = torch.arange(len(places))
        return chunked_cross_entropy(hidden[places], FrozenHead(weight), index, targets)[0]

    def trl_labelled(hidden: Any) -> Any:
        return -_trl_log_probs(hidden[places], weight, targets).sum() / len(targets)

    def trl(hidden: Any) -> Any:
        labels = torch.zeros(len(hidden), dtype=torch.int64)
        labels[places] = targets
        unlabelled = torch.ones(len(hidden), dtype=torch.bool)
        unlabelled[places] = False
        return -_trl_log_probs(hidden, weight, labels).masked_fill(unlabelled, 0).sum() / len(targets)

    return {"full": full, "labelled": labelled, "chunked": chunked, "trl": trl, "trl-labelled": trl_labelled}


def _trl_log_probs(hidden: Any, weight: Any, targets: Any) -> Any:
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("log_probs", "entropy", "is_top1")
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, outputs)[0]


def _memory(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'vocabulary':>10}  {'way':<12}  {'ms':>9}  {'MiB':>8}  loss      gradient's norm"]
    for row in rows:
        if "absent" in row:
            lines.append(f"{row['vocabulary']:>10}  {row['way']:<12}  {row['absent']}")
        else:
            lines.append(
                f"{row['vocabulary']:>10}  {row['way']:<12}  {row['seconds'] * 1e3:>9.1f}  "
                f"{row['peak_mib']:>8.0f}"
                f"  {row['loss']:.6f}  {row['gradient_norm']:.6f}"
            )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--details", type=Path, help="also write it to this file")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--vocabulary", type=int, action="append", help="instead of 2048, 49152 and 151936")
    parser.add_argument("--hidden", type=int, default=576, help="size of a hidden state")
    parser.add_argument("--positions", type=int, default=2150, help="tokens of the batch (10 rows of 215)")
    parser.add_argument("--labelled", type=int, default=40, help="labelled tokens among them")
    parser.add_argument("--times", type=int, default=5, help="how often, after one warm-up")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "VOCABULARY"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures every way for every vocabulary, and prints."""
    arguments = parse()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker[0], int(arguments.worker[1]), arguments)))
        return
    settings = {
        name: getattr(arguments, name) for name in ("dtype", "hidden", "positions", "labelled", "times")
    }
    forwarded = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    rows: list[dict[str, Any]] = []
    for vocabulary in arguments.vocabulary or VOCABULARIES:
        for way in WAYS:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", way, str(vocabulary)]
            done = subprocess.run([*command, *forwarded], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                rows.append({"way": way, "vocabulary": vocabulary, "absent": last})
            else:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{way}, vocabulary {vocabulary}", file=sys.stderr, flush=True)
    report = {
        "rows": rows,
        "settings": settings,
        "installed": {name: importlib.util.find_spec(name) is not None for name in OTHERS},
    }
    if arguments.details:
        from lockadapt.files import write_json

        write_json(arguments.details, report)
    print(json.dumps(report, indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
