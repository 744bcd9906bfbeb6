"""Compares a merged folder, loaded by its stock class in a fresh process, with the model that was trained."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.data.encode import Encoder
from lockadapt.data.images import open_image
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import VerificationError
from lockadapt.evaluation.predict import Predictor
from lockadapt.models.proof import run_fresh
from lockadapt.models.sources import tolerance
from lockadapt.training.rows import context_length

MAX_PIXELS = 50_000_000
NEW_TOKENS = 20
MIN_TOP1 = {torch.float32: 0.999, torch.bfloat16: 0.95, torch.float16: 0.95}
"""Share of positions whose likeliest token must stay the same; a rounding to 16 bits may flip near ties."""


@dataclass(frozen=True)
class Reference:
    """What the trained model computes on a few real samples: inputs and float32 logits by case, and greedy answers."""

    tensors: dict[str, torch.Tensor]
    logits: dict[str, torch.Tensor]
    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    prompts: tuple[list[int], ...]


@torch.no_grad()
def reference_answers(model: nn.Module, processor: Any, samples: Sequence[Sample]) -> Reference:
    """Runs the trained model, adapter unmerged, on samples with their images, with images swapped, and on text alone."""
    model.eval()
    encoder = Encoder(processor, context_length(model))
    pixels = PixelInputs(processor.image_processor, MAX_PIXELS)
    tensors: dict[str, torch.Tensor] = {}
    logits: dict[str, torch.Tensor] = {}
    parameter = next(model.parameters())
    for number, sample in enumerate(samples):
        ids = torch.from_numpy(encoder.encode([sample]).encoded[0].input_ids.astype("int64"))[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels(sample.images)}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(parameter.dtype)
        case = f"sample{number}"
        tensors.update({f"{case}.{name}": value for name, value in inputs.items()})
        logits[case] = model(**inputs).logits.float()
        if number < 2:
            text = ids[ids != encoder.image_token_id][None]
            tensors.update(
                {f"text{number}.input_ids": text, f"text{number}.attention_mask": torch.ones_like(text)}
            )
            logits[f"text{number}"] = model(input_ids=text).logits.float()
    texts = Predictor(model, encoder, pixels, batch_size=1).generate(samples, NEW_TOKENS)
    prompts = tuple(encoder.prompt_ids(sample) for sample in samples)
    return Reference(tensors, logits, tuple(samples), tuple(texts), prompts)


def prove_merge(folder: Path, reference: Reference, dtype: torch.dtype) -> dict[str, Any]:
    """Loads the folder in a fresh process and compares logits, answers, prompts and keys.

    Returns:
        The numbers that `lockadapt merge --json` prints.

    Raises:
        VerificationError: a key is missing or unexpected, or the outputs differ beyond rounding to `dtype`.
    """
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as room:
        conversations = [_conversation(sample, Path(room), i) for i, sample in enumerate(reference.samples)]
        fresh = run_fresh(
            folder,
            dtype=dtype,
            tensors=reference.tensors,
            conversations=conversations,
            max_new_tokens=NEW_TOKENS,
        )
    found = compare_logits(
        reference.logits, {c: fresh.tensors[f"{c}.logits"].float() for c in reference.logits}
    )
    result: dict[str, Any] = {
        **found,
        "model_class": fresh.answer["model_class"].rsplit(".", 1)[-1],
        "missing_keys": fresh.answer["missing_keys"],
        "unexpected_keys": fresh.answer["unexpected_keys"],
        "answers_equal": sum(a.strip() == b for a, b in zip(fresh.texts, reference.texts, strict=True)),
        "answers": len(reference.texts),
        "prompts_equal": [list(p) for p in fresh.answer["prompt_ids"]]
        == [list(p) for p in reference.prompts],
    }
    _judge(result, reference, dtype, folder)
    return result


def compare_logits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference, mean KL divergence (nats, first against second) and top-1 agreement over all positions."""
    largest, divergence, same, positions = 0.0, 0.0, 0, 0
    for case, a in first.items():
        b = second[case]
        largest = max(largest, float((a - b).abs().max()))
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence += float((log_a.exp() * (log_a - log_b)).sum(-1).sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += a.shape[0] * a.shape[1]
    return {"max_abs_logit_diff": largest, "kl": divergence / positions, "top1_agreement": same / positions}


def _judge(result: dict[str, Any], reference: Reference, dtype: torch.dtype, folder: Path) -> None:
    allowed = max(tolerance(dtype, logits) for logits in reference.logits.values())
    problems = [f"{key} {result[key][:3]}" for key in ("missing_keys", "unexpected_keys") if result[key]]
    if not result["max_abs_logit_diff"] <= allowed:
        problems.append(f"logits differ by {result['max_abs_logit_diff']:.3g} (allowed {allowed:.3g})")
    if not result["top1_agreement"] >= MIN_TOP1[dtype]:
        problems.append(f"only {result['top1_agreement']:.4f} of the likeliest tokens agree")
    if not result["prompts_equal"]:
        problems.append("the saved processor writes other prompts than training used")
    if problems:
        raise VerificationError(
            f"the merged folder is not the trained model: {'; '.join(problems)}",
            where=str(folder),
            fix="please report this",
        )


def _conversation(sample: Sample, room: Path, number: int) -> dict[str, Any]:
    last = max(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    paths = []
    for place, image in enumerate(sample.images):
        path = room / f"{number}-{place}.png"
        open_image(image, MAX_PIXELS).save(path)
        paths.append(path)
    return {"messages": sample.messages()[:last], "images": paths}
