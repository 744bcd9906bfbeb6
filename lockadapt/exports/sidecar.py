"""What an exported folder says of where it comes from, in `lockadapt.json`: recipe, base, versions, scores, SHA-256."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lockadapt.evaluation.evaluate import SCORES
from lockadapt.files import sha256_of
from lockadapt.runs.artifacts import PART_FILES
from lockadapt.runs.finished import RunRecord
from lockadapt.runs.origins import origins_of
from lockadapt.tuning.base_identity import tensors_digest


def sidecar(run: RunRecord, folder: Path) -> dict[str, Any]:
    """Of a folder whose weights are written already."""
    scores = run.folder / SCORES
    weights = sorted(folder.rglob("*.safetensors"))
    return {
        "run": run.folder.name,
        "recipe": run.recipe.model_dump(mode="json"),
        **base_facts(run),
        "sources": [asdict(one) for one in origins_of(run.folder)],
        "versions": run.facts["versions"],
        "evaluation": json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in weights},
    }


def base_facts(run: RunRecord) -> dict[str, Any]:
    """Which base the run trained on: what `lockadapt.attach` compares a live model with."""
    projector = run.folder / PART_FILES["projector"]
    digest = tensors_digest(load_file(projector)) if projector.is_file() else None
    facts = {name: run.facts.get(name) for name in ("base_fingerprint", "base_identity")}
    return {**facts, "projector_digest": digest}
