"""`lockadapt.json`, where an exported folder comes from: recipe, base, versions, scores, SHA-256."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lockadapt.files import sha256_of
from lockadapt.runs.artifacts import PART_FILES
from lockadapt.runs.run import Run
from lockadapt.tuning.base_identity import tensors_digest


def sidecar(run: Run, folder: Path) -> dict[str, Any]:
    """The record of a folder whose weights are written already."""
    weights = sorted(folder.rglob("*.safetensors"))
    return {
        "run": run.folder.name,
        "recipe": run.recipe.model_dump(mode="json"),
        **base_facts(run),
        "sources": [asdict(origin) for origin in run.origins()],
        "versions": run.record.versions,
        "evaluation": run.scores() or None,
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in weights},
    }


def base_facts(run: Run) -> dict[str, Any]:
    """Which base the run trained on: what `lockadapt.attach` compares a live model with."""
    projector = run.folder / PART_FILES["projector"]
    digest = tensors_digest(load_file(projector)) if projector.is_file() else None
    identity = run.record.base_identity
    return {
        "base_fingerprint": run.record.base_fingerprint,
        "base_identity": asdict(identity) if identity is not None else None,
        "projector_digest": digest,
    }
