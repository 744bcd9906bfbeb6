"""Writes a VLM that embeds as a `ColPaliForRetrieval` folder: embeddings are the last token's, or all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import ColPaliConfig, ColPaliForRetrieval

from lockadapt.architectures import architecture_of, llm_of
from lockadapt.architectures.dual_encoder import DUAL_ENCODER
from lockadapt.errors import AssemblyError
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.embedding_model import EmbeddingModel
from lockadapt.exports.targets.embedding import EmbeddingClient, detached, embedding_target, with_tokenizer
from lockadapt.models.llms import probe_ids
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import tolerance
from lockadapt.runs.run import Run

SHIFT = 3
"""Padding that positions are tried with."""


def refusal(trained: EmbeddingModel) -> str | None:
    """The class embeds every token: all count in late interaction, else the last one, `[:, -1]`."""
    try:
        clients = architecture_of(trained.model).clients
    except AssemblyError as error:
        return error.message
    if reason := clients.refused.get("colpali"):
        return reason
    if trained.pooling not in ("last", "tokens"):
        return f"ColPaliForRetrieval has no pooling, and this run pools by {trained.pooling!r}"
    layer: Any = trained.projection
    if layer.bias is None:
        return "ColPaliForRetrieval's embedding_proj_layer has a bias, this run's has none"
    if _counts_padding(trained):
        return (
            f"{type(llm_of(trained.model)).__name__} counts positions from the left edge, and "
            "ColPaliForRetrieval passes it none, so padding on the left would change every embedding"
        )
    return None


def write(trained: EmbeddingModel, folder: Path) -> None:
    """Keys `vlm.*` and `embedding_proj_layer.*`; the VLM's processor beside it, padding on the left.

    See `EmbeddingClient`.
    """
    layer: Any = trained.projection
    vlm = trained.model.model
    config = ColPaliConfig(vlm_config=trained.model.config.to_dict(), embedding_dim=layer.out_features)
    config.dtype = trained.model.dtype
    with torch.device("meta"), quiet():
        model = ColPaliForRetrieval(config)
    # The very modules: nothing is copied, and what the config would have built is thrown away.
    model.vlm, model.embedding_proj_layer = vlm, layer.to(trained.model.dtype)
    tokenizer = detached(trained.processor.tokenizer, padding_side="left")
    with quiet():
        model.save_pretrained(folder)
        with_tokenizer(trained.processor, tokenizer).save_pretrained(folder)


@torch.no_grad()
def _counts_padding(trained: EmbeddingModel) -> bool:
    """Whether the LLM computes something else behind padding that the mask hides."""
    llm: Any = llm_of(trained.model)
    ids = probe_ids(llm.get_input_embeddings().weight.shape[0], 0)
    padded = torch.cat([ids[:, :SHIFT], ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :SHIFT] = 0
    first = llm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    second = llm(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state[:, SHIFT:]
    return not float((first - second).abs().max()) <= 10 * tolerance(first.dtype, first)


def early(run: Run) -> str | None:
    """See `EmbeddingClient`."""
    if run.dual:
        return DUAL_ENCODER.clients.refused["colpali"]
    objective = contrastive(run.objectives)
    pooling = "last" if objective is None else objective.pooling
    if pooling not in (None, "last", "tokens"):
        return f"ColPaliForRetrieval has no pooling, and this run pools by {pooling!r}"
    return None


def use(trained: EmbeddingModel) -> list[str]:
    """See `EmbeddingClient`."""
    frames = trained.frames
    if trained.pooling == "tokens":
        embeddings = [
            "texts, images = (model(**inputs).embeddings for inputs in (said, shown))",
            'scores = torch.einsum("tnd,isd->tins", texts, images).amax(-1).sum(-1)',
        ]
    else:
        embeddings = ["embeddings = [model(**inputs).embeddings[:, -1] for inputs in (said, shown)]"]
    text = f'{json.dumps(frames.before)} + "a text" + {json.dumps(frames.after)}'
    return [
        *(["import torch"] if trained.pooling == "tokens" else []),
        "from PIL import Image",
        "from transformers import AutoProcessor, ColPaliForRetrieval",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = ColPaliForRetrieval.from_pretrained("PATH")',
        f"text = {text}",
        f"image = {json.dumps(frames.image)}",
        'said = processor(text=[text], add_special_tokens=False, padding=True, return_tensors="pt")',
        'shown = processor(text=[image], images=[Image.open("image.png")], add_special_tokens=False, '
        'return_tensors="pt")',
        *embeddings,
    ]


CLIENT = EmbeddingClient("colpali", "transformers", early, refusal, write, use)
COLPALI = embedding_target(CLIENT, "ColPaliForRetrieval, of a VLM that embeds")
