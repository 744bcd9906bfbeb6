"""Folds LoRA and projector into the stock base, one rounding, and proves the folder before it says done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lockadapt.building.objectives import is_dual
from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.exports.card import merged_card
from lockadapt.exports.proofs.embeddings import Embedded, embed_probe, prove_embeddings
from lockadapt.exports.proofs.merged_folder import (
    Reference,
    compare_logits,
    note_blindness,
    prove_merge,
    record,
    reference_answers,
)
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.stock_folder import BaseMode, write_stock
from lockadapt.files import new_folder, require_new, write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs import run_folder
from lockadapt.runs.finished import finished_run


def merge_run(run: Path, output: Path, reporter: Reporter, base: BaseMode = "dequantized") -> dict[str, Any]:
    """Writes one stock folder and proves it equal to the trained model.

    Weights are streamed from the base's shards, so that memory does not grow with the model (the proof's does, which
    runs it). What a contrastive run added and no stock class holds is kept in a subfolder, `retrieval/`.

    Args:
        run: a finished run folder.
        output: a new folder; it appears only when every check has passed.
        base: of a quantized run. `dequantized`: the matrices that were trained on, each with its adapter (measured:
            anything else is another model). `original`: those before quantization; the folder is proved equal to the
            adapter on them, and `from_trained` says how far that is from what was trained.

    Returns:
        `{"output", "max_abs_logit_diff", "kl", "top1_agreement", "missing_keys", "unexpected_keys", …}`; for a
        contrastive run `"max_abs_embedding_diff"` too; for a quantized one `"base"`; with `original`, `"from_trained": {"max_abs_logit_diff", "kl",
        "top1_agreement"}`.

    Raises:
        RecipeError: the run trained a dual encoder, which answers nothing; or `output` is not empty.
        VerificationError: base, adapter and parts do not fit one another, or the reloaded folder differs from the
            trained model; nothing is left at `output`.
    """
    require_new(output, what="merging")
    recipe, facts = run_folder.read_recipe(run), run_folder.read_facts(run)
    if is_dual(recipe):
        raise RecipeError(
            "the run trained a dual encoder, whose proof is not that of a model that answers",
            where=str(run),
            fix="lockadapt export RUN --to dual, or --to sentence-transformers",
        )
    dtype = getattr(torch, facts["dtype"])
    trained = _reference(run, facts)
    expected = trained
    if base == "original" and facts["quantization"] != "none":
        expected = _reference(run, {**facts, "quantization": "none"})
    with new_folder(output, what="merging") as folder:
        reporter.note("merging")
        write_stock(run, folder, base=base)
        write_json(folder / SIDECAR, sidecar(finished_run(run), folder))
        reporter.note("proving in a fresh process")
        proof = prove_merge(folder, expected.answers, dtype)
        proof |= prove_embeddings(folder, expected.embedded, recipe, dtype)
        note_blindness(proof, reporter)
        if facts["quantization"] != "none":
            proof["base"] = base
        if expected is not trained:
            proof["from_trained"] = compare_logits(trained.answers.logits, expected.answers.logits, dtype)
        record(folder, proof)
        (folder / "README.md").write_text(merged_card(run, proof), encoding="utf-8")
    return {"output": str(output), **proof}


@dataclass(frozen=True)
class _Expected:
    """What a model computes on the run's probe."""

    answers: Reference
    embedded: Embedded | None


def _reference(run: Path, facts: Mapping[str, Any]) -> _Expected:
    """Runs the trained model, its adapter not folded; the model is gone when this returns."""
    recipe, samples = run_folder.read_recipe(run), run_folder.read_probe(run)
    model, processor = run_folder.load_trained(run, recipe, facts, dequantized=True)
    answers = reference_answers(model, processor, samples)
    return _Expected(answers, embed_probe(model, processor, recipe, samples))
