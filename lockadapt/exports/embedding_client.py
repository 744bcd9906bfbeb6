"""Clients that embedding models are written for: their one shape, what it is given, the proof that a folder embeds alike."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import architecture_of
from lockadapt.architectures.features import projector_input
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.files import new_folder, ordinary_permissions
from lockadapt.models.preprocessing import pixels
from lockadapt.models.proof import run_script
from lockadapt.models.sources import some
from lockadapt.models.texts import Pooling, pool
from lockadapt.runs.run import Run

SCRIPT = Path(__file__).parents[1] / "models" / "fresh_embeddings.py"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Of a normalised embedding's entries, by the dtype that the fresh process computes in."""


@dataclass(frozen=True)
class Frames:
    """What stands around a text and in an image's place, query tokens and bos included; nothing else is added.

    `image` holds the processor's image token once, not yet repeated for every patch. It is empty in a dual encoder.
    """

    before: str = ""
    after: str = ""
    image: str = ""


@dataclass(frozen=True)
class Trained:
    """A trained contrastive model: adapters folded in, on the CPU, in evaluation mode.

    Attributes:
        model: a `VisionTextDualEncoderModel`; or a stock LLaVA, FastVLM or Janus whose query tokens are rows of its
            embedding table by now.
        processor: its stock processor.
        pooling: how a sequence becomes one vector.
        frames: what training put around texts and images.
        projection: hidden state -> embedding, of a VLM; a dual encoder has its own.
        scale: the learned factor on cosines.
    """

    model: Any
    processor: Any
    pooling: Pooling
    frames: Frames = Frames()
    projection: nn.Linear | None = None
    scale: float | None = None

    @property
    def dual(self) -> bool:
        """Whether images and texts go through models of their own."""
        return self.projection is None


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
    refusal: Callable[[Trained], str | None]
    write: Callable[[Trained, Path], None]
    use: Callable[[Frames], list[str]]
    dtype: torch.dtype | None = None


def export(
    client: EmbeddingClient,
    trained: Trained,
    output: str | Path,
    texts: Sequence[str],
    images: Sequence[Image.Image],
    finish: Callable[[Path, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Writes a folder and proves in a fresh process that the client's own code embeds as the trained model does.

    Args:
        output: must not exist or be empty; written whole or not at all.
        texts, images: what is compared; RGB images.
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
    # The same weights, computed with as the client will: what only rounding changes is not to hide a wrong tensor.
    trained = _stored(trained, dtype)
    # Before writing, which may take the modules of the model into another one.
    expected = {"texts": embed_texts(trained, texts), "images": embed_images(trained, images)}
    with new_folder(output, what="exporting") as folder:
        client.write(trained, folder)
        ordinary_permissions(folder)
        proof = {"target": client.name, **_prove(client, trained, folder, expected, texts, images, dtype)}
        if finish is not None:
            finish(folder, proof)
    return proof


@torch.no_grad()
def embed_texts(trained: Trained, texts: Sequence[str]) -> Tensor:
    """L2-normalised embeddings, float32 (texts, dimension), one text at a time, so that no padding is in it."""
    rows, apart = [], architecture_of(trained.model).apart
    for text in texts:
        framed = trained.frames.before + text + trained.frames.after
        if apart is not None:
            inputs = trained.processor.tokenizer(framed, return_tensors="pt")
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            rows.append(apart.texts(trained.model, ids, mask, trained.pooling))
        else:
            rows.append(_embed_sequence(trained, framed, None))
    return torch.cat(rows).float()


@torch.no_grad()
def embed_images(trained: Trained, images: Sequence[Image.Image]) -> Tensor:
    """L2-normalised embeddings, float32 (images, dimension), one image at a time."""
    rows, apart = [], architecture_of(trained.model).apart
    for image in images:
        if apart is not None:
            values = pixels(trained.processor.image_processor, [image])
            rows.append(apart.images(trained.model, projector_input(trained.model, values)))
        else:
            rows.append(_embed_sequence(trained, trained.frames.image, image))
    return torch.cat(rows).float()


def detached(part: Any, padding_side: str | None = None) -> Any:
    """A copy of a tokenizer or image processor that is saved by itself, as if it had never been part of a processor.

    Settings of a tokenizer are saved from what it was built with, not from what its attributes say, so how it was
    loaded here would be saved too, a changed `padding_side` would not, and the processor it was part of would be
    loaded in its place.
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


def _stored(trained: Trained, dtype: torch.dtype) -> Trained:
    projection = None if trained.projection is None else trained.projection.to(dtype)
    return replace(trained, model=trained.model.to(dtype), projection=projection)


def _embed_sequence(trained: Trained, text: str, image: Image.Image | None) -> Tensor:
    shown = {} if image is None else {"images": [image]}
    inputs = trained.processor(text=[text], **shown, add_special_tokens=False, return_tensors="pt")
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(trained.model.dtype)
    states = trained.model.model(**inputs, use_cache=False).last_hidden_state
    layer: Any = trained.projection
    pooled = pool(states, inputs["attention_mask"], trained.pooling)
    return F.normalize(layer(pooled.to(layer.weight.dtype)), dim=-1)


def _prove(
    client: EmbeddingClient,
    trained: Trained,
    folder: Path,
    expected: dict[str, Tensor],
    texts: Sequence[str],
    images: Sequence[Image.Image],
    dtype: torch.dtype,
) -> dict[str, Any]:
    # sentence-transformers folders write the frames themselves; the others leave them to whoever calls the processor.
    framed = [trained.frames.before + text + trained.frames.after for text in texts]
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as room:
        paths = [Path(room) / f"{number}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            image.save(path)
        request = {
            "reader": client.name,
            "dtype": str(dtype).removeprefix("torch."),
            "texts": list(texts) if client.name == "sentence-transformers" else framed,
            "images": [str(path) for path in paths],
            "image_text": trained.frames.image,
        }
        outputs, answer = run_script(SCRIPT, folder, request, {})
    for key in ("missing_keys", "unexpected_keys"):
        if answer[key]:
            raise VerificationError(f"{key.replace('_', ' ')}: {some(answer[key])}", where=str(folder))
    found = {}
    for name, first in expected.items():
        second = outputs[name].float()
        difference = float((first - second).abs().max()) if first.shape == second.shape else float("nan")
        if not difference <= TOLERANCE[dtype]:
            raise VerificationError(
                f"embeddings of {name} differ by {difference:.3g} (allowed: {TOLERANCE[dtype]:.3g})",
                where=str(folder),
                fix="please report this",
            )
        found[f"{name.removesuffix('s')}_difference"] = difference
    return {"model_class": answer["model_class"].rsplit(".", 1)[-1], **found}
