"""Makes an export target of an embedding client: loads the run, folds its adapters, writes, proves, describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.card import embedding_card
from lockadapt.exports.embedding_client import EmbeddingClient, export
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.targets.base import Target
from lockadapt.exports.trained import trained_embedder
from lockadapt.files import write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.run import Run


def embedding_target(client: EmbeddingClient, content: str) -> Target:
    """The target that writes a contrastive run for this client."""

    def refusal(run: Run) -> str | None:
        if contrastive(run.objectives) is None:
            return "the run was not trained to embed (an objective of the kind itc does that)"
        return client.early(run)

    def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
        trained, pictures, texts = trained_embedder(run.load("dequantized"))
        reporter.note(f"writing for {client.name}, and proving in a fresh process")

        def finish(folder: Path, proof: dict[str, Any]) -> None:
            write_json(folder / SIDECAR, sidecar(run, folder))
            card = embedding_card(run, proof, client, trained.frames)
            (folder / "README.md").write_text(card, encoding="utf-8")

        return export(client, trained, output, texts, pictures, finish)

    return Target(client.name, content, refusal, write)
