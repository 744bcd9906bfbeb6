"""Compares a merged folder, loaded by its stock class in a fresh process, with the model that was trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lockadapt.console import Reporter
from lockadapt.data.images import open_image
from lockadapt.data.sample import Sample
from lockadapt.errors import VerificationError
from lockadapt.exports.proofs.reference import (
    MAX_PIXELS,
    NEW_TOKENS,
    Answer,
    Reference,
    image_effect,
    kl_divergence,
    reference_answers,
)
from lockadapt.files import write_json
from lockadapt.models.proof import REPORT, FreshResult, run_fresh
from lockadapt.models.sources import some

__all__ = [
    "RECORD",
    "Reference",
    "compare_logits",
    "note_blindness",
    "prove_merge",
    "record",
    "reference_answers",
]

RECORD = "merge.json"
"""Where a merged folder keeps the numbers of its proof."""
MIN_TOP1 = {torch.float32: 0.999, torch.bfloat16: 0.98, torch.float16: 0.98}
"""Share of the positions with a decided likeliest token at which that must stay the same."""
NEAR_TIE = 4
"""Roundings of the largest logit by which a lead can come and go.

Measured: a bfloat16 run whose logits moved by 0.5 at most (of
17, so 4 roundings) kept the likeliest token at 0.941 of all positions, questions that nobody learned among
them."""
KL = {torch.float32: (1e-7, 1e-4), torch.float16: (1e-4, 2e-3), torch.bfloat16: (5e-3, 2e-2)}
"""Mean KL divergence in nats, by dtype: what rounding alone may do, and what nothing excuses.

Between the two, a folder must be
nearer to the trained model than `ADAPTER_SHARE` of what the adapter changed. Two orders of the same
arithmetic differ by 3e-12, 8e-6 and 5e-4 (measured: a Llama of 2 layers and width 128); the first limits
leave deeper models ten times that and more."""
ADAPTER_SHARE = 0.25
ROUNDINGS = 3
"""Times the KL divergence of a rounding more in every block: two sides with their own, and some room."""


def prove_merge(
    folder: Path, reference: Reference, dtype: torch.dtype, *, fix: str = REPORT
) -> dict[str, Any]:
    """Loads the folder in a fresh process and compares logits, answers, prompts and keys.

    Args:
        folder: a stock folder of the class that was trained.
        reference: what the trained model computes.
        dtype: of the folder's weights.
        fix: what the error says to do.

    Returns:
        The numbers that `lockadapt merge --json` prints.

    Raises:
        VerificationError: a key is missing or unexpected, or the outputs differ beyond rounding to `dtype`.
    """
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        conversations = [
            _conversation(sample, Path(scratch), i) for i, sample in enumerate(reference.samples)
        ]
        fresh = run_fresh(
            folder,
            dtype=dtype,
            tensors=reference.tensors,
            conversations=conversations,
            max_new_tokens=NEW_TOKENS,
            fix=fix,
        )
    problems = unsound(fresh)
    result = {} if problems else _measure(fresh, reference, dtype)
    problems = problems or differences(result, reference, dtype)
    if problems:
        raise VerificationError(
            f"the merged folder is not the trained model: {'; '.join(problems)}", where=str(folder), fix=fix
        )
    return result


def record(folder: Path, result: Mapping[str, Any]) -> None:
    """Keeps the numbers of a proof in the folder, as `merge.json`."""
    write_json(folder / RECORD, dict(result))


def note_blindness(result: Mapping[str, Any], reporter: Reporter) -> None:
    """Note that the trained model itself barely uses the image, so image sensitivity was not required."""
    if result["looks_at_images"] is False:
        reporter.note(
            "the trained model barely uses the image: swapping images changes its logits by "
            f"{result['trained_image_effect']:.3g} at most"
        )


def compare_logits(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Compares by largest difference, mean KL divergence (nats, first against second), top-1 agreement.

    Entries that are no finite numbers give a difference of infinity.

    Args:
        first: logits by name, (…, vocabulary), floating.
        second: the same names and shapes.
        dtype: that logits were computed in. `decided_agreement` leaves out the positions where the first's
            two likeliest tokens lie within `NEAR_TIE` roundings of it, whose order says nothing.

    Returns:
        `{"max_abs_logit_diff", "kl", "top1_agreement", "decided_agreement"}`.
    """
    largest, divergence, same, positions = 0.0, 0.0, 0, 0
    kept, decided = 0, 0
    for case, a in first.items():
        b = second[case]
        largest = max(largest, float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).max()))
        divergence += float(kl_divergence(a, b).sum())
        equal = a.argmax(-1) == b.argmax(-1)
        same += int(equal.sum())
        positions += a.shape[0] * a.shape[1]
        best = a.topk(2, dim=-1).values
        clear = best[..., 0] - best[..., 1] > NEAR_TIE * torch.finfo(dtype).eps * float(a.abs().max())
        kept, decided = kept + int((equal & clear).sum()), decided + int(clear.sum())
    return {
        "max_abs_logit_diff": largest,
        "kl": divergence / positions,
        "top1_agreement": same / positions,
        "decided_agreement": kept / decided if decided else 1.0,
    }


def unsound(fresh: FreshResult) -> list[str]:
    """Why a fresh process ran nothing, if it did not: keys, or image tokens that disagree."""
    answer = fresh.answer
    problems = [
        f"{len(answer[f'{kind}_keys'])} {kind} keys: {some(answer[f'{kind}_keys'])}"
        for kind in ("missing", "unexpected", "mismatched")
        if answer[f"{kind}_keys"]
    ]
    if answer["image_token_id"] != answer["processor_image_token_id"]:
        problems.append(
            f"config.json names {answer['image_token_id']} as the image token, the processor writes "
            f"{answer['processor_image_token_id']}"
        )
    return problems


def _measure(fresh: FreshResult, reference: Reference, dtype: torch.dtype) -> dict[str, Any]:
    logits = {case: fresh.tensors[f"{case}.logits"].float() for case in reference.logits}
    shapes = {
        case: (list(expected.shape), list(logits[case].shape))
        for case, expected in reference.logits.items()
        if expected.shape != logits[case].shape
    }
    if shapes:
        return {"shapes": shapes}
    gaps = [
        expected.gap(other)
        for expected, other in zip(reference.answers, fresh.answer["answer_ids"], strict=True)
    ]
    return {
        **compare_logits(reference.logits, logits, reference.coarse(dtype)),
        "model_class": fresh.answer["model_class"].rsplit(".", 1)[-1],
        "missing_keys": fresh.answer["missing_keys"],
        "unexpected_keys": fresh.answer["unexpected_keys"],
        "samples": sum(1 for sample in reference.samples if sample.images),
        "text_samples": sum(1 for sample in reference.samples if not sample.images),
        "answers_equal": sum(
            list(expected.tokens) == other
            for expected, other in zip(reference.answers, fresh.answer["answer_ids"], strict=True)
        ),
        "answers": len(gaps),
        "answer_gap": max(gaps, default=0.0),
        "prompts_equal": [list(expected.prompt) for expected in reference.answers]
        == fresh.answer["prompt_ids"],
        "pixels_equal": all(_same_pixels(fresh, n, expected) for n, expected in enumerate(reference.answers)),
        "image_effect": image_effect(logits),
        "trained_image_effect": reference.image_effect,
        "looks_at_images": looks(reference, dtype),
        "adapter_kl": reference.adapter_kl,
    }


def differences(result: Mapping[str, Any], reference: Reference, dtype: torch.dtype) -> list[str]:
    """What is beyond rounding, each named with its number and its limit."""
    if "shapes" in result:
        case, (first, second) = next(iter(result["shapes"].items()))
        return [f"logits of {case} have the shape {second}, not {first}"]
    allowed, problems = reference.allowed(dtype), []
    if not result["max_abs_logit_diff"] <= allowed:
        problems.append(f"logits differ by {result['max_abs_logit_diff']:.3g} (allowed {allowed:.3g})")
    if not result["kl"] <= (limit := kl_limit(reference, dtype)):
        problems.append(f"KL divergence is {result['kl']:.3g} nats (allowed {limit:.3g})")
    if not result["decided_agreement"] >= MIN_TOP1[reference.coarse(dtype)]:
        problems.append(f"only {result['decided_agreement']:.4f} of the most likely tokens agree")
    if not result["prompts_equal"]:
        problems.append("the saved processor writes other prompts than training used")
    elif not result["pixels_equal"]:
        problems.append("the saved image processor makes other pixels than training used")
    # Each of two logits may move by what is allowed, so a lead of twice that may be lost.
    elif not result["answer_gap"] <= 2 * allowed:
        different = result["answers"] - result["answers_equal"]
        problems.append(f"{different} of {result['answers']} greedy answers differ, and not by a near tie")
    seen, trained = result["image_effect"], reference.image_effect
    if trained is not None and looks(reference, dtype) and not seen >= trained / 2:
        problems.append(
            f"swapping images changes logits by {seen:.3g}, in the trained model by {trained:.3g}"
        )
    return problems


def kl_limit(reference: Reference, dtype: torch.dtype) -> float:
    """The largest KL divergence that a folder stored in `dtype` may have."""
    noise, most = KL[reference.coarse(dtype)]
    if reference.rounding is not None:
        own = ROUNDINGS * reference.rounding.kl
        noise, most = max(noise, own), max(most, own)
    return (
        most if reference.adapter_kl is None else min(most, max(noise, ADAPTER_SHARE * reference.adapter_kl))
    )


def looks(reference: Reference, dtype: torch.dtype) -> bool | None:
    """Whether swapping images changes logits by more than rounding to `dtype` may; None without images."""
    return None if reference.image_effect is None else reference.image_effect > reference.allowed(dtype)


def _same_pixels(fresh: FreshResult, number: int, answer: Answer) -> bool:
    """Whether the folder's own processor made of a conversation's images what the trained model was shown."""
    mine, theirs = answer.pixel_values, fresh.tensors.get(f"conversation{number}.pixel_values")
    if mine is None or theirs is None:
        return mine is theirs
    if mine.shape != theirs.shape:
        return False
    share = 1e-4
    if mine.dtype != theirs.dtype:  # each was rounded to what its own model computes in
        share = max(share, torch.finfo(mine.dtype).eps, torch.finfo(theirs.dtype).eps)
    return float((mine.float() - theirs.float()).abs().max()) <= share * float(mine.abs().max())


def _conversation(sample: Sample, scratch: Path, number: int) -> dict[str, Any]:
    last = max(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    paths = []
    for position, image in enumerate(sample.images):
        path = scratch / f"{number}-{position}.png"
        open_image(image, MAX_PIXELS).save(path)
        paths.append(path)
    return {"messages": sample.messages()[:last], "images": paths}
