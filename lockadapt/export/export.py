"""Writes a finished run for one client: merged, or as one of the embedding models in `targets/`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from lockadapt.errors import RecipeError
from lockadapt.evaluation.target import SIDECAR
from lockadapt.export.card import embedding_card
from lockadapt.export.merge import merge_run, provenance
from lockadapt.export.targets import TARGETS, export
from lockadapt.export.trained import require_embedding, trained_embedder
from lockadapt.files import require_new, write_json
from lockadapt.training import run_folder
from lockadapt.training.progress import Reporter

MERGED = "merged"
NAMES = (MERGED, *TARGETS)


def export_run(run: Path, name: str, output: Path, reporter: Reporter) -> dict[str, Any]:
    """Writes a new folder and proves it in a fresh process by the client's own code.

    Args:
        run: a finished run folder.
        name: of `NAMES`.
        output: a new folder; it appears only when every check has passed.

    Returns:
        `{"target", "output", …}`, and the numbers of the proof.

    Raises:
        RecipeError: no such target, or one that cannot hold this run, and why.
        VerificationError: the folder differs from the trained model; nothing is left at `output`.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"there is no target {name!r}", where="--to", fix=f"{hint}There are: {', '.join(NAMES)}"
        )
    require_new(output, what="exporting")
    if name == MERGED:
        return {"target": name, **merge_run(run, output, reporter)}
    require_embedding(run_folder.read_recipe(run), name)
    loaded = run_folder.load_run(run, dequantized=True)
    trained, pictures, texts = trained_embedder(loaded)
    reporter.note(f"writing for {name}, and proving in a fresh process")

    def finish(folder: Path, proof: dict[str, Any]) -> None:
        write_json(folder / SIDECAR, provenance(run, loaded.recipe, loaded.facts, folder))
        (folder / "README.md").write_text(embedding_card(run, proof, trained.frames), encoding="utf-8")

    return {"output": str(output), **export(TARGETS[name], trained, output, texts, pictures, finish)}
