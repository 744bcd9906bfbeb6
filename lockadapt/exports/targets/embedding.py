"""Clients that embedding models are written for: their one shape, and the export target that each becomes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.card import embedding_card
from lockadapt.exports.embedding_model import EmbeddingModel, embedding_model
from lockadapt.exports.proofs.embedding_folder import ExpectedEmbeddings, prove_embedding_folder
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.files import new_folder, ordinary_permissions, write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.run import Run


@dataclass(frozen=True)
class EmbeddingClient:
    """One client that an embedding model is written for.

    Attributes:
        name: what the user says, and what `fresh_embeddings.py` calls it.
        library: its name on the Hub.
        early: why no model of this run can be written for it, from what lies in its folder alone, or None.
        refusal: why this model cannot, found by running it before anything is written, or None.
        write: puts everything into an existing, empty folder.
        use: lines of Python for the model card.
        dtype: that the client keeps weights in, whatever the run's is; None: the run's.
    """

    name: str
    library: str
    early: Callable[[Run], str | None]
    refusal: Callable[[EmbeddingModel], str | None]
    write: Callable[[EmbeddingModel, Path], None]
    use: Callable[[EmbeddingModel], list[str]]
    dtype: torch.dtype | None = None


def embedding_target(client: EmbeddingClient, content: str) -> ExportTarget:
    """The target that writes a contrastive run for this client."""

    def refusal(run: Run) -> str | None:
        if contrastive(run.objectives) is None:
            return "the run was not trained to embed (an objective of the kind itc does that)"
        return client.early(run)

    def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
        trained, pictures, texts = embedding_model(run.load("dequantized"))
        reporter.note(f"writing for {client.name}, and proving in a fresh process")

        def finish(folder: Path, proof: dict[str, Any]) -> None:
            write_json(folder / SIDECAR, sidecar(run, folder))
            card = embedding_card(run, proof, client.library, client.use(trained))
            (folder / "README.md").write_text(card, encoding="utf-8")

        return export(client, trained, output, texts, pictures, finish)

    return ExportTarget(client.name, content, refusal, write)


def export(
    client: EmbeddingClient,
    trained: EmbeddingModel,
    output: str | Path,
    texts: Sequence[str],
    images: Sequence[Image.Image],
    finish: Callable[[Path, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Writes a folder; proves in a fresh process that the client's own code embeds as the trained model.

    Args:
        client: what writes and reads the folder.
        trained: the run's model with its adapters folded in.
        output: must not exist or be empty; written whole or not at all.
        texts: what is compared.
        images: what is compared; RGB.
        finish: given the proved folder, still at its temporary place, and what is returned.

    Returns:
        `{"target", "model_class", "text_difference", "image_difference"}`.

    Raises:
        RecipeError: the target cannot hold this model, and why.
        VerificationError: the folder embeds otherwise. Nothing is left at `output`.
    """
    if reason := client.refusal(trained):
        raise RecipeError(f"no export to {client.name}: {reason}", where="--to", fix="choose another target")
    dtype = client.dtype or next(trained.model.parameters()).dtype
    # The same weights, computed with as the client will: what only rounding changes is not to hide a wrong
    # tensor.
    trained = _stored(trained, dtype)
    # Before writing, which may take the modules of the model into another one.
    expected = ExpectedEmbeddings.of(trained, texts, images)
    with new_folder(output, what="exporting") as folder:
        client.write(trained, folder)
        ordinary_permissions(folder)
        proof = {
            "target": client.name,
            **prove_embedding_folder(folder, client.name, trained, expected, dtype),
        }
        if finish is not None:
            finish(folder, proof)
    return proof


def detached(part: Any, padding_side: str | None = None) -> Any:
    """Copies a tokenizer or image processor to be saved by itself, as if never part of a processor.

    Settings of a tokenizer are saved from what it was built with, not from what its attributes say, so how it
    was loaded here would be saved too, a changed `padding_side` would not, and the processor it was part of
    would be loaded in its place.
    """
    part = copy.deepcopy(part)
    part._processor_class = None
    settings = getattr(part, "init_kwargs", {})
    for name in ("is_local", "local_files_only", "processor_class"):
        settings.pop(name, None)
    if padding_side is not None:
        part.padding_side = settings["padding_side"] = padding_side
    return part


def with_tokenizer(processor: Any, tokenizer: Any) -> Any:
    """A copy of a processor with another tokenizer."""
    processor = copy.copy(processor)
    processor.tokenizer = tokenizer
    return processor


def _stored(trained: EmbeddingModel, dtype: torch.dtype) -> EmbeddingModel:
    projection = None if trained.projection is None else trained.projection.to(dtype)
    heads = None if trained.heads is None else (trained.heads[0].to(dtype), trained.heads[1].to(dtype))
    return replace(trained, model=trained.model.to(dtype), projection=projection, heads=heads)
