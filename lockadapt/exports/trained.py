"""From a finished run to what the embedding targets take: adapters folded in, frames and projection beside the model."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lockadapt.architectures.blocks import context_length
from lockadapt.data.encode import Encoder
from lockadapt.data.images import open_image
from lockadapt.errors import RecipeError
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.embedding_client import Frames, Trained, embed_images, embed_texts
from lockadapt.exports.fold import folded, take_retrieval
from lockadapt.exports.proofs.embeddings import Embedded, compare, embed_probe, shown_and_said
from lockadapt.runs.run import LoadedRun


def trained_embedder(loaded: LoadedRun) -> tuple[Trained, list[Image.Image], list[str]]:
    """What the targets are given; and the images and texts of the run's probe.

    What is given embeds the probe as the run itself does, adapters not folded.

    Raises:
        RecipeError: the run has no contrastive objective.
        DataError: captions stand in a frame that is not one piece before and one behind them.
        VerificationError: folding changed an embedding.
    """
    run = loaded.run
    objective = contrastive(run.objectives)
    if objective is None:
        raise RecipeError(
            "the run was not trained to embed",
            where=str(run.folder),
            fix="train with an objective of the kind itc, or choose --to merged",
        )
    model, processor = loaded.model.cpu(), loaded.processor
    samples = run.probe()
    reference = embed_probe(run, model, processor, samples)
    assert reference is not None
    before, after, image = objective.frames(
        Encoder(processor, run.recipe.data.max_length or context_length(model))
    )
    base = folded(model).eval()
    own = take_retrieval(base)
    trained = Trained(
        base.to(run.dtype),
        processor,
        own.pooling,
        Frames(before, after, image),
        own.embedding_proj_layer,
        float(own.temperature.scale().detach()),
    )
    images, texts = shown_and_said(samples)
    pictures = [open_image(one, run.recipe.data.max_pixels) for one in images]
    _same(trained, reference, pictures, texts, str(run.folder))
    return trained, pictures, texts


def _same(
    trained: Trained, reference: Embedded, pictures: Sequence[Image.Image], texts: Sequence[str], where: str
) -> None:
    found = Embedded(
        reference.objective, reference.samples, embed_images(trained, pictures), embed_texts(trained, texts)
    )
    compare(reference, found, next(trained.model.parameters()).dtype, where)
