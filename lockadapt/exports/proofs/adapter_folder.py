"""Proves a PEFT folder: on its stock folder, loaded by the clients' own code, it is the trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.data.images import open_image
from lockadapt.data.sample import Sample
from lockadapt.errors import VerificationError
from lockadapt.exports.peft_folder import read_config
from lockadapt.exports.proofs.merged_folder import (
    MIN_TOP1,
    compare_logits,
)
from lockadapt.exports.proofs.reference import MAX_PIXELS, NEW_TOKENS, Reference, reference_answers
from lockadapt.models.device import choose_device, held_bytes
from lockadapt.models.proof import run_script
from lockadapt.models.sources import some
from lockadapt.runs.run import Run

SCRIPT = Path(__file__).parents[2] / "models" / "fresh_adapter.py"
WAYS = ("peft", "load_adapter")
"""`PeftModel.from_pretrained` and Transformers' own `load_adapter`."""


@dataclass(frozen=True)
class Trained:
    """What the trained model computes on the run's probe, and how a client has to load its base.

    Attributes:
        quantization: arguments of `BitsAndBytesConfig`, or None.
        size: bytes that the trained model held.
    """

    reference: Reference
    dtype: torch.dtype
    quantization: dict[str, Any] | None
    size: int


def trained_answers(run: Run) -> Trained:
    """Loads the run as it was trained (its base quantized if it was then), and asks it."""
    loaded = run.load()
    reference = reference_answers(loaded.model, loaded.processor, run.probe())
    return Trained(reference, run.dtype, quantization_of(run, loaded.model), held_bytes(loaded.model))


def quantization_of(run: Run, model: nn.Module) -> dict[str, Any] | None:
    """How `BitsAndBytesConfig` is told to quantize the LLM's blocks and nothing else, as in training."""
    if not run.quantized:
        return None
    parts = layout_of(model)
    outside = (parts.tower, *parts.projector, parts.head, *parts.generation, *parts.image_tokenizer)
    kind: dict[str, Any] = {"load_in_8bit": True}
    if run.record.quantization == "nf4":
        kind = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": run.record.dtype,
        }
    return {**kind, "llm_int8_skip_modules": [path for path in outside if path]}


def ways_of(adapter: Mapping[str, Any] | None) -> tuple[str, ...]:
    """How an adapter of this config (None: no adapter) can be put on its base.

    Transformers' `load_adapter` (5.24) does not find DoRA's magnitudes under PEFT's names, and goes on
    without them.
    """
    if adapter is None:
        return ("alone",)
    return ("peft",) if adapter.get("use_dora") else WAYS


def prove_adapter(base: Path, adapter: Path | None, trained: Trained) -> dict[str, Any]:
    """Puts the adapter on the base in a fresh process, each way, and compares with the trained model.

    Args:
        base: stock folder.
        adapter: PEFT folder; None: the base alone must be the trained model.
        trained: what the trained model computes.

    Returns:
        The names of `prove_merge`, the worst of all ways, and `clients`: the largest logit difference of each
            way.

    Raises:
        VerificationError: a key is missing or unexpected, or the outputs differ beyond rounding.
    """
    reference = trained.reference
    ways = ways_of(read_config(adapter) if adapter is not None else None)
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        request = {
            "adapter": str(adapter.resolve()) if adapter is not None else None,
            "ways": list(ways),
            "dtype": str(trained.dtype).removeprefix("torch."),
            "device": choose_device(trained.size),
            "quantization": trained.quantization,
            "conversations": [
                _conversation(sample, Path(scratch), number)
                for number, sample in enumerate(reference.samples)
            ],
            "max_new_tokens": NEW_TOKENS,
        }
        outputs, answer = run_script(SCRIPT, base, request, reference.tensors)
    measures = {
        way: compare_logits(
            reference.logits,
            {case: outputs[f"{way}:{case}.logits"].float() for case in reference.logits},
            reference.coarse(trained.dtype),
        )
        for way in ways
    }
    pairs = list(zip(reference.answers, answer["answer_ids"], strict=True))
    result = {
        **_worst(measures.values()),
        "model_class": answer["model_class"].rsplit(".", 1)[-1],
        "missing_keys": answer["missing_keys"],
        "unexpected_keys": answer["unexpected_keys"],
        "answers_equal": sum(list(mine.tokens) == theirs for mine, theirs in pairs),
        "answers": len(pairs),
        "answer_gap": max((mine.gap(theirs) for mine, theirs in pairs), default=0.0),
        "prompts_equal": [list(expected.prompt) for expected in reference.answers] == answer["prompt_ids"],
        "clients": {way: measured["max_abs_logit_diff"] for way, measured in measures.items()},
    }
    _judge(result, trained, str(adapter or base))
    return result


def _worst(measures: Any) -> dict[str, float]:
    ways = list(measures)
    return {
        "max_abs_logit_diff": max(measured["max_abs_logit_diff"] for measured in ways),
        "kl": max(measured["kl"] for measured in ways),
        "top1_agreement": min(measured["top1_agreement"] for measured in ways),
        "decided_agreement": min(measured["decided_agreement"] for measured in ways),
    }


def _judge(result: Mapping[str, Any], trained: Trained, where: str) -> None:
    allowed = trained.reference.allowed(trained.dtype)
    problems = [
        f"{key.replace('_', ' ')} {some(result[key])}"
        for key in ("missing_keys", "unexpected_keys")
        if result[key]
    ]
    if not result["max_abs_logit_diff"] <= allowed:
        problems.append(f"logits differ by {result['max_abs_logit_diff']:.3g} (allowed {allowed:.3g})")
    if not result["decided_agreement"] >= MIN_TOP1[trained.dtype]:
        problems.append(f"only {result['decided_agreement']:.4f} of the most likely tokens agree")
    if not result["prompts_equal"]:
        problems.append("the saved processor writes other prompts than training used")
    elif not result["answer_gap"] <= 2 * allowed:
        problems.append("greedy answers differ, and not by a near tie")
    if problems:
        raise VerificationError(
            f"what was written is not the trained model: {'; '.join(problems)}",
            where=where,
            fix="please report this",
        )


def _conversation(sample: Sample, scratch: Path, number: int) -> dict[str, Any]:
    """A sample as the fresh process is asked it: everything before the last answer, images as files."""
    last = max(index for index, turn in enumerate(sample.turns) if turn.role == "assistant")
    paths = []
    for position, image in enumerate(sample.images):
        paths.append(scratch / f"{number}-{position}.png")
        open_image(image, MAX_PIXELS).save(paths[-1])
    return {"messages": sample.messages()[:last], "images": [str(path) for path in paths]}
