"""Proves that a stock folder, reloaded without lockadapt, computes what its sources compute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lockadapt.errors import DiskError, DoesNotFitError, VerificationError, disk_ran_out, memory_ran_out
from lockadapt.models.device import choose_device, stored_bytes
from lockadapt.models.sources import some, tolerance

SCRIPT = Path(__file__).with_name("fresh_process.py")
REPORT = "please report this"


@dataclass(frozen=True)
class FreshResult:
    """A fresh process's output tensors, by `case.logits` / `case.features`, and its JSON answer."""

    tensors: dict[str, Tensor]
    texts: tuple[str, ...]
    answer: dict[str, Any]


@dataclass(frozen=True)
class Expectation:
    """What the sources compute, to be found again in the stock folder.

    `token_ids` (rows, tokens) gave `logits` (rows, tokens, old vocabulary). What `images`, arguments of the
    class's forward, show gave `features` (images, tokens, channels) at the projector's entrance.
    `tower_class` is `module.Class` of the source tower.
    Where the class takes more than ids, `arguments` are what gives the logits, and `parts` says where tower
    and LLM lie; the features are the tower's outputs then.
    """

    token_ids: Tensor
    logits: Tensor
    images: Mapping[str, Tensor]
    features: Tensor
    tower_class: str
    llm_class: str
    arguments: Mapping[str, Tensor] | None = None
    parts: Mapping[str, str] | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs as cases for `run_fresh`."""
        text = self.arguments or {
            "input_ids": self.token_ids,
            "attention_mask": torch.ones_like(self.token_ids),
        }
        return {
            **{f"text.{name}": tensor for name, tensor in text.items()},
            **{f"image.{name}": tensor for name, tensor in self.images.items()},
        }


@dataclass(frozen=True)
class ProofReport:
    """The largest differences found, and what was allowed."""

    logit_difference: float
    logit_tolerance: float
    feature_difference: float
    feature_tolerance: float
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    fresh_process: bool


def run_fresh(
    folder: Path,
    *,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
    conversations: Sequence[Mapping[str, Any]] = (),
    max_new_tokens: int = 16,
    device: str | None = None,
    fix: str = REPORT,
    parts: Mapping[str, str] | None = None,
) -> FreshResult:
    """Loads a stock folder in a fresh process and runs it there; inputs are named as in `fresh_process.py`.

    Args:
        folder: the stock folder.
        dtype: of the weights there.
        tensors: inputs named `case.argument`.
        conversations: `{"messages": …, "images": [paths]}`, answered greedily.
        max_new_tokens: in each answer.
        device: where the process runs the model; default: a GPU that has room for it, else the CPU.
        fix: what the error says to do.
        parts: full paths of `tower` and `llm`, where they are not where most classes have them.

    Returns:
        Outputs, texts and the process's answer.

    Raises:
        VerificationError: the process fails.
    """
    request: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "device": device or choose_device(stored_bytes(Path(folder))),
        "conversations": [
            {
                "messages": list(conversation["messages"]),
                "images": [str(path) for path in conversation["images"]],
            }
            for conversation in conversations
        ],
        "max_new_tokens": max_new_tokens,
        "parts": dict(parts or {}),
    }
    outputs, answer = run_script(SCRIPT, folder, request, tensors or {}, fix=fix)
    return FreshResult(outputs, tuple(answer["texts"]), answer)


def run_script(
    script: Path,
    folder: Path,
    request: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    fix: str = REPORT,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Run one of the package's fresh-process scripts on a folder, offline.

    Args:
        script: takes the path of a request, JSON, as its only argument.
        folder: handed on as `folder`.
        request: handed on; `tensors`, `output` and `answer` (paths of files to read and write) are added.
        tensors: what the file `tensors` holds; without any, `tensors` is null.
        fix: what the error says to do.

    Returns:
        The tensors and the JSON answer that the script wrote.

    Raises:
        VerificationError: the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        working = Path(scratch)
        paths = {
            "folder": str(Path(folder).resolve()),
            "tensors": str(working / "inputs.safetensors") if tensors else None,
            "output": str(working / "outputs.safetensors"),
            "answer": str(working / "answer.json"),
        }
        if tensors:
            inputs = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(inputs, working / "inputs.safetensors")
        (working / "request.json").write_text(json.dumps({**request, **paths}), encoding="utf-8")
        # Offline, whatever the user's settings: a stock folder must need nothing but itself.
        settings = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        code, errors = run_python([str(script), str(working / "request.json")], working, settings)
        if code != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            if disk_ran_out(OSError(last)):
                raise DiskError(
                    f"the disk is full: {last}",
                    where=str(working),
                    fix="let TMPDIR name a folder on a larger disk",
                )
            if memory_ran_out(OSError(last)) or code == -signal.SIGKILL:
                raise DoesNotFitError(
                    f"the fresh process that checks the folder ran out of memory: {last}",
                    where=str(folder),
                    fix="end other programs, or check it on a larger machine: lockadapt verify",
                )
            raise VerificationError(
                f"a fresh process cannot load and run the folder: {last}",
                where=str(folder),
                fix=fix,
            )
        answer = json.loads((working / "answer.json").read_text(encoding="utf-8"))
        # Clones, because the file that the tensors are mapped from goes away with the folder.
        outputs = {
            name: tensor.clone() for name, tensor in load_file(working / "outputs.safetensors").items()
        }
    return outputs, answer


def run_python(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and stderr of this Python, started anew."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def prove_fresh(folder: Path, expected: Expectation, dtype: torch.dtype) -> ProofReport:
    """Reloads the folder in a fresh process and compares.

    Args:
        folder: the stock folder.
        expected: what the sources computed.
        dtype: that the folder is loaded in.

    Returns:
        The differences measured.

    Raises:
        VerificationError: keys missing or unexpected, another class, or other numbers than the sources'.
    """
    fresh = run_fresh(folder, dtype=dtype, tensors=expected.inputs, device="cpu", parts=expected.parts)
    answer = fresh.answer
    for key in ("missing_keys", "unexpected_keys"):
        if answer[key]:
            raise VerificationError(
                f"{key.replace('_', ' ')} after reloading: {some(answer[key])}", where=str(folder)
            )
    for part in ("tower_class", "llm_class"):
        if answer[part] != getattr(expected, part):
            raise VerificationError(
                f"{part.split('_')[0]} came back as {answer[part]}, not {getattr(expected, part)}",
                where=str(folder),
            )
    if answer["image_token_id"] != answer["processor_image_token_id"]:
        raise VerificationError("processor and model disagree about the id of <image>", where=str(folder))
    return compare(
        expected, fresh.tensors["text.logits"], fresh.tensors["image.features"], dtype, fresh_process=True
    )


def compare(
    expected: Expectation, logits: Tensor, features: Tensor, dtype: torch.dtype, *, fresh_process: bool
) -> ProofReport:
    """Compares an assembled model's numbers with its sources', to the `tolerance` of `sources.py`.

    Args:
        expected: what the sources computed.
        logits: text-only, of the assembled model.
        features: its projector's inputs.
        dtype: that they were computed in.
        fresh_process: whether a fresh process computed them.

    Returns:
        The differences measured.

    Raises:
        VerificationError: they differ by more.
    """
    pairs = {
        "text-only logits": (expected.logits, logits[..., : expected.logits.shape[-1]]),
        "tower features": (expected.features, features),
    }
    differences = {}
    for name, (first, second) in pairs.items():
        allowed = tolerance(dtype, first)
        shapes = tuple(first.shape) == tuple(second.shape)
        difference = float((first.double() - second.double()).abs().max()) if shapes else float("nan")
        if not difference <= allowed:
            what = (
                f"by up to {difference:.3g} (allowed: {allowed:.3g})"
                if shapes
                else f"in shape {tuple(second.shape)}"
            )
            raise VerificationError(f"the assembled model's {name} differ from the source's {what}")
        differences[name] = (difference, allowed)
    return ProofReport(
        *differences["text-only logits"], *differences["tower features"], (), (), fresh_process
    )
