"""What embedding targets are given: a run's model, adapters folded in, with its frames and projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import RETRIEVAL, unwrap_model
from lockadapt.architectures.features import projector_input
from lockadapt.data.images import open_image
from lockadapt.data.model_encoder import model_encoder
from lockadapt.errors import RecipeError
from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.proofs.embeddings import Embedded, compare, embed_probe, shown_and_said
from lockadapt.models.preprocessing import pixels
from lockadapt.models.texts import Pooling, pool
from lockadapt.objectives.late_interaction import stacked
from lockadapt.objectives.retrieval import headed
from lockadapt.runs.run import LoadedRun


@dataclass(frozen=True)
class Frames:
    """What stands around a text and in an image's place, query tokens and bos included; nothing is added.

    `image` holds the processor's image token once, not yet repeated for every patch. It is empty in a dual
    encoder.
    """

    before: str = ""
    after: str = ""
    image: str = ""


@dataclass(frozen=True)
class EmbeddingModel:
    """A trained contrastive model: adapters folded in, on the CPU, in evaluation mode.

    Attributes:
        model: a `VisionTextDualEncoderModel`; or a stock LLaVA, FastVLM or Janus whose query tokens are rows
            of its embedding table by now.
        processor: its stock processor.
        pooling: how a sequence becomes one vector.
        frames: what training put around texts and images.
        projection: hidden state -> embedding, of a VLM; a dual encoder has its own.
        scale: the learned factor on cosines.
        heads: second layers of a dual encoder's MLP heads, for images and texts; None: they are linear.
    """

    model: Any
    processor: Any
    pooling: Pooling
    frames: Frames = Frames()
    projection: nn.Linear | None = None
    scale: float | None = None
    heads: tuple[nn.Linear, nn.Linear] | None = None

    @property
    def dual(self) -> bool:
        """Whether images and texts go through models of their own."""
        return self.projection is None


def embedding_model(loaded: LoadedRun) -> tuple[EmbeddingModel, list[Image.Image], list[str]]:
    """Makes what the targets are given, from a run.

    What is given embeds the probe as the run itself does, adapters not folded.

    Args:
        loaded: the run, adapters attached; they are folded in place.

    Returns:
        What is given; and the images and texts of the run's probe.

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
    before, after, image = objective.frames(model_encoder(model, processor, run.recipe.data.max_length))
    base = _folded(model).eval()
    own = _take_retrieval(base)
    trained = EmbeddingModel(
        base.to(run.dtype),
        processor,
        own.pooling,
        Frames(before, after, image),
        own.embedding_proj_layer,
        float(own.temperature.scale().detach()),
        None if own.image_head is None else (own.image_head, own.text_head),
    )
    images, texts = shown_and_said(samples)
    pictures = [open_image(image, run.recipe.data.max_pixels) for image in images]
    _same(trained, reference, pictures, texts, str(run.folder))
    return trained, pictures, texts


@torch.no_grad()
def embed_texts(trained: EmbeddingModel, texts: Sequence[str]) -> Tensor:
    """Embeds one text at a time, so that there is no padding.

    Args:
        trained: the model.
        texts: without frames.

    Returns:
        L2-normalised, float32 (texts, dimension); of tokens, (texts, tokens, dimension), zeros behind shorter
        texts.
    """
    rows, apart = [], architecture_of(trained.model).apart
    for text in texts:
        framed = trained.frames.before + text + trained.frames.after
        if apart is not None:
            inputs = trained.processor.tokenizer(framed, return_tensors="pt")
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            states = apart.states(trained.model, ids, mask, trained.pooling)
            layer = None if trained.heads is None else trained.heads[1]
            rows.append(headed(apart.texts(trained.model, states), layer))
        else:
            rows.append(_embed_sequence(trained, framed, None))
    return stacked(rows).float()


@torch.no_grad()
def embed_images(trained: EmbeddingModel, images: Sequence[Image.Image]) -> Tensor:
    """Embeds one image at a time; what is returned is as of `embed_texts`."""
    rows, apart = [], architecture_of(trained.model).apart
    for image in images:
        if apart is not None:
            values = pixels(trained.processor.image_processor, [image])
            projected = apart.images(trained.model, projector_input(trained.model, values))
            rows.append(headed(projected, None if trained.heads is None else trained.heads[0]))
        else:
            rows.append(_embed_sequence(trained, trained.frames.image, image))
    return stacked(rows).float()


def _same(
    trained: EmbeddingModel,
    reference: Embedded,
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    where: str,
) -> None:
    embedded = Embedded(
        reference.objective, reference.samples, embed_images(trained, pictures), embed_texts(trained, texts)
    )
    compare(reference, embedded, next(trained.model.parameters()).dtype, where)


def _embed_sequence(trained: EmbeddingModel, text: str, image: Image.Image | None) -> Tensor:
    shown = {} if image is None else {"images": [image]}
    inputs = trained.processor(text=[text], **shown, add_special_tokens=False, return_tensors="pt")
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(trained.model.dtype)
    states = trained.model.model(**inputs, use_cache=False).last_hidden_state
    layer: Any = trained.projection
    if trained.pooling != "tokens":
        states = pool(states, inputs["attention_mask"], trained.pooling)
    return F.normalize(layer(states.to(layer.weight.dtype)), dim=-1)


@torch.no_grad()
def _folded(model: nn.Module) -> Any:
    """The model with LoRA and query tokens in its weights, in float32 where there was an adapter."""
    if not hasattr(model, "merge_and_unload"):
        return unwrap_model(model)
    return model.float().merge_and_unload(safe_merge=False)  # type: ignore[operator]


def _take_retrieval(model: nn.Module) -> Any:
    """Takes out of a model what a contrastive run added, so that only the stock class is left."""
    base = unwrap_model(model)
    module = getattr(base, RETRIEVAL, None)
    if module is not None:
        delattr(base, RETRIEVAL)
    return module
