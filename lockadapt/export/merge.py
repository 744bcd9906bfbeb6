"""Folds LoRA and projector into the stock base, one rounding, and proves the folder before it says done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lockadapt.errors import RecipeError
from lockadapt.evaluation.evaluate import SCORES
from lockadapt.evaluation.target import BESIDE, SIDECAR
from lockadapt.export.card import merged_card
from lockadapt.export.embeddings import embed_probe, prove_embeddings
from lockadapt.export.fold import folded, take_retrieval
from lockadapt.export.proof import prove_merge, reference_answers
from lockadapt.files import new_folder, require_new, sha256_of, write_json
from lockadapt.models.parts import RETRIEVAL
from lockadapt.models.quiet import quiet
from lockadapt.training import run_folder
from lockadapt.training.artifacts import save_part
from lockadapt.training.from_recipe import is_dual
from lockadapt.training.progress import Reporter


def merge_run(run: Path, output: Path, reporter: Reporter) -> dict[str, Any]:
    """Writes one stock folder and proves it equal to the trained model.

    A quantized base is dequantized first: what was trained is the sum of *that* matrix and the adapter (measured:
    adding the adapter to the original 16-bit weights, or quantizing again, gives another model). What a contrastive
    run added and no stock class holds is kept in a subfolder, `retrieval/`.

    Args:
        run: a finished run folder.
        output: a new folder; it appears only when every check has passed.

    Returns:
        `{"output", "max_abs_logit_diff", "kl", "top1_agreement", "missing_keys", "unexpected_keys", …}`; for a
        contrastive run `"max_abs_embedding_diff"` too.

    Raises:
        RecipeError: the run trained a dual encoder, which answers nothing; or `output` is not empty.
        VerificationError: the reloaded folder differs from the trained model; nothing is left at `output`.
    """
    require_new(output, what="merging")
    if is_dual(run_folder.read_recipe(run)):
        raise RecipeError(
            "the run trained a dual encoder, whose proof is not that of a model that answers",
            where=str(run),
            fix="lockadapt export RUN --to dual, or --to sentence-transformers",
        )
    loaded = run_folder.load_run(run, dequantized=True)
    model, processor = loaded.model.cpu(), loaded.processor
    dtype = getattr(torch, loaded.facts["dtype"])
    samples = run_folder.read_probe(run)
    reference = reference_answers(model, processor, samples)
    embedded = embed_probe(model, processor, loaded.recipe, samples)
    reporter.note("merging")
    merged = folded(model)
    with new_folder(output, what="merging") as folder:
        _put_beside(merged, folder)
        merged = merged.to(dtype)  # what embeds stays in float32
        with quiet():
            merged.save_pretrained(folder)  # type: ignore[operator]
            processor.save_pretrained(folder)
        write_json(folder / SIDECAR, provenance(loaded, folder))
        reporter.note("proving in a fresh process")
        proof = prove_merge(folder, reference, dtype)
        proof |= prove_embeddings(folder, embedded, loaded.recipe, dtype)
        (folder / "README.md").write_text(merged_card(run, proof), encoding="utf-8")
    return {"output": str(output), **proof}


def _put_beside(merged: Any, folder: Path) -> None:
    """Takes out of a stock model what a contrastive run added, into a file of its own, in float32."""
    if hasattr(merged, RETRIEVAL):
        (folder / BESIDE).parent.mkdir()
        save_part(merged, RETRIEVAL, folder / BESIDE)
        take_retrieval(merged)


def provenance(run: run_folder.Run, folder: Path) -> dict[str, Any]:
    """What a folder says of where it comes from: recipe, versions, scores, SHA-256 of its weights."""
    scores = run.folder / SCORES
    return {
        "run": run.folder.name,
        "recipe": run.recipe.model_dump(mode="json"),
        "base_fingerprint": run.facts.get("base_fingerprint"),
        "versions": run.facts["versions"],
        "evaluation": json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
        "files": {
            p.relative_to(folder).as_posix(): sha256_of(p) for p in sorted(folder.rglob("*.safetensors"))
        },
    }
