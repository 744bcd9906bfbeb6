"""GradCache: a contrastive batch of 4,096 in chunks of 64, beside the same batch at once and a batch of 64.

    python benchmarks/gradcache.py                # a table: loss, gradients and memory
    python benchmarks/gradcache.py --json --details build/gradcache.json

Forward and backward pass of a frozen tiny Llama with LoRA and a small image side. Every case runs in a
process of its own. Memory is counted twice: the bytes of live tensors, by operation, and the resident memory
of the process.
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
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CASES = {
    "step": "a batch of one chunk, dropout on",
    "gradcache": "the batch in chunks, dropout on",
    "full": "the batch, the graphs of all chunks kept, dropout on",
    "gradcache-plain": "the batch in chunks, no dropout",
    "full-plain": "the batch in one forward pass, no dropout",
}
"""Dropout draws other numbers for a batch than for its chunks, so "full" runs in chunks as well; "full-plain"
does not."""
PAIRS = (("gradcache", "full"), ("gradcache-plain", "full-plain"))
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's own threshold, kept from growing: freed tensors go back to the system, so that resident memory is
what is in use. As it grows, holes in the heap add 40 to 90 MiB that differ from run to run."""
MEMORY_LIMIT, DIFFERENCE_LIMIT = 1.2, 1e-5
TOKENS, FEATURES, SIZE, HIDDEN, LAYERS, VOCABULARY = 24, 64, 64, 128, 3, 512


class Live(TorchDispatchMode):
    """Bytes of the live tensors that operations made: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return made

    def count(self, tensor: Tensor) -> None:
        """Once for each memory, whatever views there are of it."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class Model(nn.Module):
    """A frozen Llama with LoRA and a text projection, a small network for image features, a temperature."""

    def __init__(self, kind: Any, negatives: int, dropout: float) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaModel

        from lockadapt.objectives.temperature import Temperature

        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=dropout,
        )
        lora = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False
        )
        self.text, self.project = (
            get_peft_model(LlamaModel(config), lora),
            nn.Linear(HIDDEN, SIZE, bias=False),
        )
        self.image = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Dropout(dropout), nn.Linear(HIDDEN, SIZE)
        )
        self.temperature = Temperature(kind, negatives)

    def texts(self, ids: Tensor) -> Tensor:
        """(texts, tokens) -> (texts, size), from the last token."""
        hidden = self.text(input_ids=ids.long(), use_cache=False).last_hidden_state[:, -1]
        return F.normalize(self.project(hidden), dim=-1)

    def images(self, features: Tensor) -> Tensor:
        """(images, features) -> (images, size)."""
        return F.normalize(self.image(features), dim=-1)


def measure(case: str, arguments: argparse.Namespace, gradients: Path | None = None) -> dict[str, Any]:
    """One case, in this process; writes its gradients if told where."""
    from safetensors.torch import save_file

    batch = arguments.chunk if case == "step" else arguments.batch
    model = Model(arguments.kind, batch - 1, 0.0 if case.endswith("plain") else 0.1).train()
    # Once on next to nothing, so that what a step imports and sets up is there before memory is looked at.
    _step(model, "step", *_batch(2), arguments).backward()
    model.zero_grad()
    before, start, live = _memory("VmRSS"), time.perf_counter(), Live()
    with live:
        inputs = _batch(batch)
        torch.manual_seed(2)
        loss = _step(model, case, *inputs, arguments)
        loss.backward()
    seconds, peak = time.perf_counter() - start, _memory("VmHWM")
    gradients_by_name = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    if gradients:
        save_file(gradients_by_name, gradients)
    return {
        "case": case,
        "batch": batch,
        "loss": float(loss.detach()),
        "gradient_norm": math.sqrt(
            sum(float(gradient.square().sum()) for gradient in gradients_by_name.values())
        ),
        "tensors": len(gradients_by_name),
        "seconds": seconds,
        "live_mib": live.peak / 2**20,
        "rss_mib": peak - before,
    }


def _batch(rows: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (rows, TOKENS), generator=made, dtype=torch.int32)
    return torch.randn(rows, FEATURES, generator=made), ids


def _step(model: Model, case: str, features: Tensor, ids: Tensor, arguments: argparse.Namespace) -> Tensor:
    from lockadapt.objectives.gradcache import embed_in_chunks
    from lockadapt.objectives.similarity import Contrast, contrastive_loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = len(ids) if case == "full-plain" else arguments.chunk

    def embed(rows: Tensor, side: Callable[[Tensor], Tensor]) -> Tensor:
        chunks = [lambda part=part: side(part) for part in rows.split(size)]
        if case.startswith("full"):
            return torch.cat([chunk() for chunk in chunks])
        return embed_in_chunks(chunks, trained)

    keys = torch.arange(len(ids))
    images, texts = embed(features, model.images), embed(ids, model.texts)
    temperature = model.temperature
    return contrastive_loss(
        images, texts, keys, keys, Contrast(temperature.scale(), temperature.bias(), arguments.kind)
    )


def _memory(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def compare(rows: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Differences of chunks and whole batch, and memory over that of one chunk's step."""
    from safetensors.torch import load_file

    pairs = []
    for ours, whole in PAIRS:
        mine, theirs = load_file(folder / ours), load_file(folder / whole)
        if mine.keys() != theirs.keys():
            raise RuntimeError(f"{ours} and {whole} have gradients of different tensors")
        worst = {name: float((mine[name] - theirs[name]).abs().max()) for name in mine}
        pairs.append(
            {
                "ours": ours,
                "whole": whole,
                "loss_difference": abs(rows[ours]["loss"] - rows[whole]["loss"]),
                "gradient_difference": max(worst.values()),
                "tensor": max(worst, key=worst.__getitem__),
                "largest_gradient": max(float(gradient.abs().max()) for gradient in theirs.values()),
            }
        )
    ratios = {key: rows["gradcache"][key] / rows["step"][key] for key in ("live_mib", "rss_mib")}
    same = all(
        pair[key] <= DIFFERENCE_LIMIT for pair in pairs for key in ("loss_difference", "gradient_difference")
    )
    return {"pairs": pairs, "memory_ratio": ratios, "passed": same and max(ratios.values()) <= MEMORY_LIMIT}


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{'case':<16}  {'batch':>5}  {'loss':>10}  {'grad. norm':>10}  {'tensors, MiB':>12}  "
        f"{'process, MiB':>12}  {'s':>6}"
    ]
    lines += [
        f"{row['case']:<16}  {row['batch']:>5}  {row['loss']:>10.6f}  {row['gradient_norm']:>10.6f}"
        f"  {row['live_mib']:>12.1f}  {row['rss_mib']:>12.1f}  {row['seconds']:>6.1f}"
        for row in report["rows"]
    ]
    lines += [
        f"{pair['ours']} against {pair['whole']}: loss differs by {pair['loss_difference']:.1e}, "
        "gradients by at most "
        f"{pair['gradient_difference']:.1e} (the largest is {pair['largest_gradient']:.1e}); allowed "
        f"{DIFFERENCE_LIMIT:.0e}"
        for pair in report["pairs"]
    ]
    ratio = report["memory_ratio"]
    lines.append(
        f"gradcache over step: tensors {ratio['live_mib']:.2f}, process {ratio['rss_mib']:.2f}; "
        f"allowed {MEMORY_LIMIT}"
    )
    return "\n".join([*lines, "passed" if report["passed"] else "FAILED"])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--details", type=Path, help="also write it to this file")
    parser.add_argument("--batch", type=int, default=4096, help="pairs of the batch")
    parser.add_argument("--chunk", type=int, default=64, help="pairs of a chunk")
    parser.add_argument("--kind", choices=["infonce", "sigmoid"], default="infonce")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures every case, compares and prints; exit code 1 if a limit is not kept."""
    arguments = parse()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker[0], arguments, Path(arguments.worker[1]))))
        return
    settings = {name: getattr(arguments, name) for name in ("batch", "chunk", "kind")}
    forwarded = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", case, f"{folder}/{case}"]
            done = subprocess.run(
                [*command, *forwarded], capture_output=True, text=True, env=os.environ | ALLOCATOR
            )
            if done.returncode:
                sys.exit(f"{case}: exit code {done.returncode}\n{done.stderr[-2000:]}")
            rows[case] = json.loads(done.stdout.splitlines()[-1])
            print(case, file=sys.stderr, flush=True)
        report = {
            "rows": list(rows.values()),
            **compare(rows, Path(folder)),
            "settings": {**settings, "threads": torch.get_num_threads()},
        }
    if arguments.details:
        from lockadapt.files import write_json

        write_json(arguments.details, report)
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    if not report["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
