"""Writes an embedding model for `SentenceTransformer(folder).encode(texts or images)`."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.evaluation.embedder import contrastive
from lockadapt.exports.embedding_model import EmbeddingModel, Frames
from lockadapt.exports.targets.embedding import EmbeddingClient, detached, embedding_target, with_tokenizer
from lockadapt.models.quiet import quiet
from lockadapt.runs.run import Run

POOLINGS = {"last": "lasttoken", "mean": "mean"}
"""sentence-transformers' names of poolings."""


def refusal(trained: EmbeddingModel) -> str | None:
    """Needs the package itself, which writes and proves; and frames that its modules can write."""
    if reason := _absent():
        return reason
    if trained.dual and trained.frames.after:
        return "sentence-transformers has no place for what stands behind a text; put it in front"
    if not trained.dual and len(_begins(trained)) > 1:
        return (
            "only one of the frames around images and texts begins with bos, so the tokenizer cannot add "
            "it to both or none"
        )
    return None


def write(trained: EmbeddingModel, folder: Path) -> None:
    """Modules that are sentence-transformers' own; nothing in the folder is code. See `EmbeddingClient`.

    A dual encoder becomes a `Router` with a route for texts and one for images, each `Transformer`, `Pooling`
    (unless the model pools itself), `Dense` and `Normalize`. A VLM becomes `Transformer`, `Pooling`, `Dense`,
    `Normalize`, and its chat template writes the frames.
    """
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch, quiet():
        modules = (
            _dual_modules(trained, Path(scratch)) if trained.dual else _vlm_modules(trained, Path(scratch))
        )
        prompts = {"text": trained.frames.before} if trained.dual and trained.frames.before else None
        client = SentenceTransformer(
            modules=modules,
            device="cpu",
            similarity_fn_name="cosine",
            prompts=prompts,
            default_prompt_name="text" if prompts else None,
        )
        client.save(str(folder), create_model_card=False)


def _dual_modules(trained: EmbeddingModel, scratch: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Router

    model, processor = trained.model, trained.processor
    second_image, second_text = trained.heads or (None, None)
    texts = _route(
        model.text_model,
        processor.tokenizer,
        "text",
        trained.pooling,
        (model.text_projection, second_text),
        scratch / "text",
    )
    images = _route(
        model.vision_model,
        processor.image_processor,
        "image",
        _image_pooling(trained),
        (model.visual_projection, second_image),
        scratch / "image",
    )
    routes: dict[Any, str] = {(None, "text"): "text", (None, "image"): "image"}
    return [Router({"text": texts, "image": images}, default_route="text", route_mappings=routes)]


def _route(
    part: Any,
    processor: Any,
    modality: str,
    pooling: str,
    layers: tuple[nn.Linear, nn.Linear | None],
    folder: Path,
) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    part.save_pretrained(folder)
    detached(processor).save_pretrained(folder)
    pooled = pooling == "pooler"
    output = "pooler_output" if pooled else "last_hidden_state"
    transformer = Transformer(
        str(folder),
        model_kwargs=_loading(part),
        modality_config={modality: {"method": "forward", "method_output_name": output}},
        module_output_name="sentence_embedding" if pooled else "token_embeddings",
    )
    projection, second = layers
    between = [] if pooled else [Pooling(projection.in_features, POOLINGS[pooling])]
    heads = [_dense(projection)] if second is None else [_dense(projection, nn.GELU()), _dense(second)]
    return [transformer, *between, *heads, Normalize()]


def _image_pooling(trained: EmbeddingModel) -> str:
    """`pooler` where the tower pools to a vector itself; else `mean`, which is what a pooled map of 1 x 1 is.

    sentence-transformers flattens feature maps to rows of channels before it pools.
    """
    size = trained.processor.image_processor.size["height"]
    with torch.no_grad():
        seen = trained.model.vision_model(
            pixel_values=torch.zeros(1, 3, size, size, dtype=trained.model.dtype), return_dict=True
        )
    pooled = getattr(seen, "pooler_output", None)
    return "pooler" if isinstance(pooled, torch.Tensor) and pooled.ndim == 2 else "mean"


def _vlm_modules(trained: EmbeddingModel, scratch: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    projection: Any = trained.projection
    body = trained.model.model
    body.save_pretrained(scratch)
    processor = with_tokenizer(trained.processor, detached(trained.processor.tokenizer))
    processor.chat_template = frames_template(trained.frames)
    processor.save_pretrained(scratch)
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = Transformer(
        str(scratch),
        model_kwargs=_loading(body),
        # Frames hold whatever begins a sequence, and the tokenizer must not add it again. Transformers sees
        # to that itself where they begin with bos, and fails if it is told as well.
        processing_kwargs={} if _begins(trained) == {True} else {"text": {"add_special_tokens": False}},
        modality_config={
            "text": forward,
            "image": forward,
            "message": {**forward, "format": "structured"},
        },
        module_output_name="token_embeddings",
    )
    pooling = Pooling(projection.in_features, POOLINGS[trained.pooling])
    return [transformer, pooling, _dense(projection), Normalize()]


def _begins(trained: EmbeddingModel) -> set[bool]:
    bos = trained.processor.tokenizer.bos_token
    frames = trained.frames
    return {bos is not None and frame.startswith(bos) for frame in (frames.before, frames.image)}


def frames_template(frames: Frames) -> str:
    """A chat template that writes the image's frame for a message with an image, else the text in its own."""
    image, before, after = (json.dumps(text) for text in (frames.image, frames.before, frames.after))
    return (
        "{%- for message in messages %}"
        '{%- if message["content"] is string %}'
        f'{{{{- {before} + (message["content"] | trim) + {after} }}}}'
        '{%- elif message["content"] | selectattr("type", "equalto", "image") | list %}'
        f"{{{{- {image} }}}}"
        "{%- else %}"
        f'{{{{- {before} + (message["content"] | map(attribute="text") | join("") | trim) + {after} }}}}'
        "{%- endif %}{%- endfor %}"
    )


def _loading(part: Any) -> dict[str, Any]:
    return {"dtype": part.dtype, "use_safetensors": True, "local_files_only": True}


def _dense(projection: nn.Linear, activation: nn.Module | None = None) -> Any:
    from sentence_transformers.sentence_transformer.modules import Dense

    bias = projection.bias
    return Dense(
        projection.in_features,
        projection.out_features,
        bias=bias is not None,
        activation_function=activation,
        init_weight=projection.weight.detach(),
        init_bias=None if bias is None else bias.detach(),
    )


def early(run: Run) -> str | None:
    """See `EmbeddingClient`."""
    objective = contrastive(run.objectives)
    if objective is not None and objective.pooling == "tokens":
        return "a SentenceTransformer gives one vector a text, and this run has one a token"
    return _absent()


def _absent() -> str | None:
    if importlib.util.find_spec("sentence_transformers") is None:
        return "the package is not installed (pip install 'sentence-transformers>=5.4')"
    return None


def use(trained: EmbeddingModel) -> list[str]:
    """See `EmbeddingClient`."""
    return [
        "from PIL import Image",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("PATH")',
        'texts, images = model.encode(["a text"]), model.encode([Image.open("image.png")])',
        "model.similarity(texts, images)",
    ]


NAME = "sentence-transformers"
# Its `Dense` comes back in float32, whatever it was saved in, and fails behind a transformer in 16 bits.
CLIENT = EmbeddingClient(NAME, NAME, early, refusal, write, use, dtype=torch.float32)
SENTENCE_TRANSFORMERS = embedding_target(CLIENT, "SentenceTransformer, of a run that embeds")
