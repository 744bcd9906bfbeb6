"""Makes an export target of an embedding client: loads the run, folds its adapters, writes, proves, describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.building.objectives import build_objectives
from lockadapt.console import Reporter
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.card import embedding_card
from lockadapt.exports.embedding_client import EmbeddingClient, export
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.targets.base import Target
from lockadapt.exports.trained import trained_embedder
from lockadapt.files import write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs import run_folder
from lockadapt.runs.finished import RunRecord


def embedding_target(client: EmbeddingClient, content: str) -> Target:
    """The target that writes a contrastive run for this client."""

    def refusal(run: RunRecord) -> str | None:
        if contrastive(build_objectives(run.recipe)) is None:
            return "the run was not trained to embed (an objective of the kind itc does that)"
        return client.early(run)

    def write(run: RunRecord, output: Path, reporter: Reporter) -> dict[str, Any]:
        loaded = run_folder.load_run(run.folder, dequantized=True)
        trained, pictures, texts = trained_embedder(loaded)
        reporter.note(f"writing for {client.name}, and proving in a fresh process")

        def finish(folder: Path, proof: dict[str, Any]) -> None:
            write_json(folder / SIDECAR, sidecar(run, folder))
            card = embedding_card(run, proof, client, trained.frames)
            (folder / "README.md").write_text(card, encoding="utf-8")

        return export(client, trained, output, texts, pictures, finish)

    return Target(client.name, content, refusal, write)
