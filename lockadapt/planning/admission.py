"""Measures whether a stock VLM that nobody described can be trained rightly, and what is switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from PIL import Image
from torch import nn

from lockadapt.architectures import architecture_of, class_name, inputs_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import block_linears
from lockadapt.architectures.load import load_model
from lockadapt.building.cache_trial import rows_to_try, try_cache
from lockadapt.console import Reporter, table_text
from lockadapt.data.batch import Batch, collate, on_device
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import AssemblyError
from lockadapt.features.inputs import BORROWED
from lockadapt.models.sources import resolve_dtype
from lockadapt.objectives.answer_tokens import answer_loss, ends_with_its_head, model_inputs
from lockadapt.planning.exactness import try_packing
from lockadapt.planning.packing import TRIED, to_be_tried, why_not_exact

MAX_PIXELS = 50_000_000
SEES_AHEAD = 1e-3
"""Change of a logit, relative to the largest, from which a later token has changed it and not rounding."""


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was looked at, what was found (`ok`, `off` …), and the detail."""

    probe: str
    result: str
    detail: str


def check_vlm(source: str, reporter: Reporter) -> dict[str, Any]:
    """Measures a checkpoint alone, with drawn pictures.

    Args:
        source: folder or Hub id.
        reporter: shown the table.

    Returns:
        `{"ok": True, "class", "findings": [{"probe", "result", "detail"}]}`.

    Raises:
        LockadaptError: it cannot be read, or would be trained wrongly.
    """
    model, processor = load_model(source, resolve_dtype("auto"))
    findings = admit(model, processor, drawn_samples())
    reporter.note(findings_text(findings))
    return {"ok": True, "class": class_name(model), "findings": [asdict(finding) for finding in findings]}


def admit_rows(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    reporter: Reporter,
    projector_trains: bool = True,
) -> list[Finding]:
    """Measures a run's model on its own rows, where nobody described its class or its processor.

    Args:
        model: as it trains.
        processor: the model's.
        samples: with images; none: nothing is measured.
        reporter: shown the table.
        projector_trains: whether it trains in any stage.

    Returns:
        See `admit`; empty where there is nothing to measure.

    Raises:
        LockadaptError: training would be wrong, and why.
    """
    stock = architecture_of(model).inputs.stock or inputs_of(processor).stock
    if not stock or not samples:
        return []
    training = model.training
    model.eval()
    findings = admit(model, processor, samples, projector_trains)
    model.train(training)
    reporter.note(findings_text(findings))
    return findings


def drawn_samples() -> list[Sample]:
    """Two questions about two pictures of other shapes and colours."""
    pictures = {"red and round": ((220, 30, 30), (64, 48)), "blue and flat": ((40, 60, 220), (40, 56))}
    return [
        question_answer(
            "What is in the picture?",
            answer,
            [ImageRef(answer, picture=Image.new("RGB", size, colour))],
            f"drawn picture {number}",
        )
        for number, (answer, (colour, size)) in enumerate(pictures.items(), start=1)
    ]


@torch.no_grad()
def admit(
    model: nn.Module, processor: Any, samples: Sequence[Sample], projector_trains: bool = True
) -> list[Finding]:
    """Measures a model on rows.

    Args:
        model: a Transformers model, possibly wrapped; in eval mode.
        processor: the model's.
        samples: some with images, with answers of two tokens or more.
        projector_trains: whether it trains in any stage: what may be kept of images depends on it.

    Returns:
        What was found, in the order of the table.

    Raises:
        LockadaptError: training would be wrong, and why.
    """
    base, architecture = unwrap_model(model), architecture_of(model)
    name, layout = class_name(base), architecture.layout
    rows = model_encoder(model, processor).encode(samples).encoded
    images, pad = pixel_inputs(processor, MAX_PIXELS), processor.tokenizer.pad_token_id
    device = next(model.parameters()).device
    batch = on_device(collate(rows, images, pad, "admission"), device)
    inputs = model_inputs(model, batch)
    learned = processor.tokenizer.decode(rows[0].labels[rows[0].labels != IGNORED])
    placeholder = getattr(base.config, "image_token_id", None)
    if placeholder is not None and not bool((batch["input_ids"] == placeholder).any()):
        raise AssemblyError(
            f"the config of {name} names {placeholder} as the image token, which its processor never writes",
            fix="correct config.json or the processor's files",
        )
    try:
        loss = float(answer_loss(model, batch)[0])
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise AssemblyError(
            f"the forward of {name} fails: {type(error).__name__}: {error}",
            fix="start from another class, or with another version of Transformers",
        ) from error
    swapped = float(answer_loss(model, {**batch, "pixel_values": -batch["pixel_values"]})[0])
    if swapped == loss:
        raise AssemblyError(f"images change nothing in {name}", fix="start from another checkpoint")
    _check_causal(model, {**inputs}, rows[0].labels, name)
    tail = ends_with_its_head(model, inputs, batch["predicting"])
    packing = _packing_problem(
        model, rows, lambda items, limit: collate(items, images, pad, "admission", limit)
    )
    keys = [key for key in inputs if key != "mm_encoder_outputs"]
    return [
        Finding("parts", "ok", f"{layout.tower}, {', '.join(layout.projector)}, {layout.llm}, {layout.head}"),
        Finding("labels", "ok", f"decode to {learned!r}"),
        Finding("keys", "ok", ", ".join(keys)),
        Finding("images", "ok", f"others change the loss by {abs(swapped - loss):.3g}"),
        Finding("answers", "ok", "no token sees what follows it"),
        Finding(
            "tail", "head" if tail else "logits", "" if tail else "the class changes what its head gives"
        ),
        Finding("packing", "off" if packing else "exact", packing or ""),
        _cache_finding(model, processor, rows, projector_trains),
        Finding("nf4", f"{nf4_share(base):.3f}", "share of the LLM's parameters that quantization takes"),
    ]


def _packing_problem(
    model: nn.Module, rows: Sequence[Encoded], collated: Callable[[Sequence[Encoded], int | None], Batch]
) -> str | None:
    """Why rows that share their beginnings would be computed otherwise than alone; None: they are not."""
    device = next(model.parameters()).device
    tried = to_be_tried({"admission": rows})
    longest = max(len(item.input_ids) for item in tried)
    if problem := why_not_exact(model, longest):
        return problem
    trial = try_packing(
        model, tried, lambda items, limit: on_device(collated(items, limit), device), TRIED * longest
    )
    return trial.problem


def _cache_finding(
    model: nn.Module, processor: Any, rows: Sequence[Encoded], projector_trains: bool
) -> Finding:
    """Whether features may be kept of the images."""
    if not inputs_of(processor).stock:
        architecture = architecture_of(model)
        reason = "not built for this class" if architecture.features is None else ""
        if architecture.inputs.stock:
            reason = BORROWED
        return Finding("cache", "off" if reason else "kept", reason)
    trial = try_cache(model, processor, rows_to_try(rows), projector_trains, MAX_PIXELS)
    if trial.problem is not None:
        return Finding("cache", "off", trial.problem)
    what = "the tower's outputs" if projector_trains else "image tokens"
    gradient = "" if isnan(trial.gradient) else f", gradients by {trial.gradient:.1e}"
    return Finding("cache", "exact", f"of {what}: the loss differs by {trial.loss:.1e}{gradient}")


def cache_refusal(findings: Sequence[Finding]) -> str | None:
    """Why nothing may be kept of images, by what was found; None: it may, or nothing was measured."""
    finding = next((finding for finding in findings if finding.probe == "cache"), None)
    return finding.detail if finding is not None and finding.result == "off" else None


def nf4_share(model: nn.Module) -> float:
    """The share of the LLM's parameters that lie in linear layers of its blocks: fused experts do not."""
    base = unwrap_model(model)
    llm: Any = base.get_submodule(architecture_of(base).layout.llm)
    inside = sum(layer.weight.numel() for layer in block_linears(base).values())  # type: ignore[operator,union-attr,misc]
    return float(inside / sum(parameter.numel() for parameter in llm.parameters()))


def findings_text(findings: Sequence[Finding]) -> str:
    """The table as aligned plain text."""
    cells = [(finding.probe, finding.result, finding.detail) for finding in findings]
    return table_text(("probe", "result", "detail"), cells)


def _check_causal(model: nn.Module, inputs: dict[str, Any], labels: Any, name: str) -> None:
    """Another last answer token may change no logit before it.

    Raises:
        AssemblyError: it does, so the answer would be seen while it is learned.
    """
    last = int((labels != IGNORED).nonzero()[0].max())
    ids = inputs["input_ids"].clone()
    ids[0, last] = ids[0, last - 1]
    before = model(**inputs).logits[0, :last].float()
    after = model(**{**inputs, "input_ids": ids}).logits[0, :last].float()
    change = float((before - after).abs().max() / before.abs().max())
    if change > SEES_AHEAD:
        raise AssemblyError(
            f"{name} lets answers see their later tokens (they change earlier logits by {change:.2g})",
            fix="start from a class whose answers are causal",
        )
