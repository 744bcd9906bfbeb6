"""Folds LoRA and projector into the stock base, one rounding, and proves the folder before it says done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.exports.card import merged_card
from lockadapt.exports.proofs.embeddings import Embedded, embed_probe, prove_embeddings
from lockadapt.exports.proofs.lost_change import lost_change, note_lost_change
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
from lockadapt.runs.run import Base, Run, as_run


def merge_run(
    source: Path | Run, output: Path, reporter: Reporter, base: BaseMode = "dequantized"
) -> dict[str, Any]:
    """Writes one stock folder and proves it equal to the trained model.

    Weights are streamed from the base's shards, so that memory does not grow with the model (the proof's
    does, which runs it). What a contrastive run added and no stock class holds is kept in a subfolder,
    `retrieval/`.

    Args:
        source: a finished run, or its folder.
        output: a new folder; it appears only when every check has passed.
        reporter: told of progress.
        base: of a quantized run. `dequantized`: the matrices that were trained on, each with its adapter
            (measured: anything else is another model). `original`: those before quantization; the folder is
            proved equal to the adapter on them, and `from_trained` says how far that is from what was
            trained.

    Returns:
        `{"output", "max_abs_logit_diff", "kl", "top1_agreement", "missing_keys", "unexpected_keys", …}`; for
        a contrastive run `"max_abs_embedding_diff"` too; for a quantized one `"base"`; with `original`,
        `"from_trained": {"max_abs_logit_diff", "kl", "top1_agreement"}`.

    Raises:
        RecipeError: the run trained a dual encoder, which answers nothing; or `output` is not empty.
        VerificationError: base, adapter and parts do not fit one another, or the reloaded folder differs from
            the trained model; nothing is left at `output`.
    """
    require_new(output, what="merging")
    run = as_run(source)
    if run.dual:
        raise RecipeError(
            "the run trained a dual encoder, whose proof is not that of a model that answers",
            where=str(run.folder),
            fix="lockadapt export RUN --to dual, or --to sentence-transformers",
        )
    trained = _reference(run, "dequantized")
    expected = trained
    if base == "original" and run.quantized:
        expected = _reference(run, "original")
    with new_folder(output, what="merging") as folder:
        reporter.note("merging")
        write_stock(run, folder, base=base)
        write_json(folder / SIDECAR, sidecar(run, folder))
        reporter.note("proving in a fresh process")
        proof = prove_merge(folder, expected.answers, run.dtype)
        proof |= prove_embeddings(run, folder, expected.embedded, run.dtype)
        note_blindness(proof, reporter)
        proof["lost_change"] = lost_change(run, folder, base)
        note_lost_change(proof["lost_change"], run.dtype, reporter)
        if run.quantized:
            proof["base"] = base
        if expected is not trained:
            proof["from_trained"] = compare_logits(trained.answers.logits, expected.answers.logits, run.dtype)
        record(folder, proof)
        (folder / "README.md").write_text(merged_card(run, proof), encoding="utf-8")
    return {"output": str(output), **proof}


@dataclass(frozen=True)
class _Expected:
    """What a model computes on the run's probe."""

    answers: Reference
    embedded: Embedded | None


def _reference(run: Run, base: Base) -> _Expected:
    """Runs the trained model, its adapter not folded; the model is gone when this returns."""
    samples, trained = run.probe(), run.load(base)
    answers = reference_answers(trained.model, trained.processor, samples)
    return _Expected(answers, embed_probe(run, trained.model, trained.processor, samples))
