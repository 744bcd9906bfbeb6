"""Writes the stock base of a run with what was trained beside LoRA baked in: LLM and tower stay as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lockadapt.evaluation.target import BESIDE
from lockadapt.export.card import bridge_card
from lockadapt.export.finished import FinishedRun
from lockadapt.export.fold import take_retrieval
from lockadapt.export.peft_folder import vocabulary_rows
from lockadapt.export.sidecar import sidecar
from lockadapt.files import write_json
from lockadapt.models.load import load_model
from lockadapt.models.origins import SIDECAR
from lockadapt.models.parts import RETRIEVAL
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, loading
from lockadapt.models.text_class import name_text_class
from lockadapt.training.artifacts import load_parts, save_part
from lockadapt.training.from_recipe import objectives_of


def write_bridge(run: FinishedRun, folder: Path) -> None:
    """Puts model and processor into an existing, empty folder, in the run's dtype; never quantized.

    Projector, what draws, and trained vocabulary rows are in the stock file; what embeds lies in `retrieval/`.

    Raises:
        EnvironmentProblem: the base is gone.
        VerificationError: what was trained does not fit it.
    """
    model, processor = load_model(run.base, getattr(torch, run.facts["dtype"]))
    for objective in objectives_of(run.recipe).values():
        objective.prepare(model)
    load_parts(model, run.folder)
    put_vocabulary_rows(run, model)
    if hasattr(model, RETRIEVAL):
        save_retrieval(model, folder)
        take_retrieval(model)
    name_text_class(model.config)
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def finish_bridge(
    run: FinishedRun, folder: Path, result: Mapping[str, Any], quantization: Mapping[str, Any] | None
) -> None:
    """Writes sidecar and model card into a proved bridge."""
    write_json(folder / SIDECAR, sidecar(run, folder))
    (folder / "README.md").write_text(bridge_card(run, result, quantization), encoding="utf-8")


def local_folder(base: str) -> Path:
    """A stock folder, or where the Hub's cache has it.

    Raises:
        EnvironmentProblem: it is in neither place.
    """
    source = find(base, "run's base")
    if source.local:
        return Path(source.name)
    from huggingface_hub import snapshot_download

    with loading(source, "run's base"):
        return Path(snapshot_download(source.name, local_files_only=True))


@torch.no_grad()
def put_vocabulary_rows(run: FinishedRun, model: Any) -> None:
    """Writes trained rows over those of the embedding table, and so of a tied head; in place."""
    found = vocabulary_rows(run)
    if found is not None:
        ids, rows = found
        table = model.get_input_embeddings().weight
        table[torch.tensor(ids)] = rows.to(table.dtype)


def save_retrieval(model: Any, folder: Path) -> None:
    """Writes what no stock class holds into a file of its own."""
    (folder / BESIDE).parent.mkdir()
    save_part(model, RETRIEVAL, folder / BESIDE)
