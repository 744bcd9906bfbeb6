"""Puts a frozen tower and text model into `VisionTextDualEncoderModel`, saves it, proves both unchanged."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from lockadapt.architectures.dual_encoder.embeddings import (
    initialise_projections,
    pooled_image_features,
    text_embedding,
)
from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.files import new_folder
from lockadapt.models.llms import probe_ids
from lockadapt.models.preprocessing import pixels, square_processor
from lockadapt.models.proof import run_script
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, loading, resolve_dtype, some, tolerance
from lockadapt.models.texts import (
    LoadedText,
    Pooling,
    TextFacts,
    load_text,
    load_text_tokenizer,
    probe_text,
)
from lockadapt.models.towers import LoadedTower, load_tower, probe_pixels

SCRIPT = Path(__file__).parents[2] / "models" / "fresh_embeddings.py"
FITTING_BATCH = 16
LONGEST_FITTING_TEXT = 64
"""Tokens of a text that a projection is fitted to."""


@dataclass(frozen=True)
class DualReport:
    """What was put together, and the largest differences of states from the sources' that the proof found.

    `image_channels` is the width of a pooled image, `stock_forward` whether the stock class's own forward can
    pool this text model (else it only holds the weights, and a trained run is exported to
    sentence-transformers).
    """

    llm: str
    tower: str
    dtype: str
    text_facts: TextFacts
    image_size: int
    image_channels: int
    dimension: int
    stock_forward: bool
    fitted_on: int
    unused_keys: tuple[str, ...]
    text_difference: float
    image_difference: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DualAssembled:
    """A dual encoder in evaluation mode on the CPU, its processor, and the folder they were reloaded from."""

    model: Any
    processor: Any
    folder: Path | None
    report: DualReport


def assemble_dual(
    llm: str | Path,
    tower: str | Path,
    output: str | Path | None,
    *,
    dimension: int = 128,
    image_size: int | None = None,
    dtype: str | torch.dtype = "auto",
    fitting_images: Iterable[Image.Image] | None = None,
    fitting_texts: Sequence[str] = (),
    pooling: Pooling | None = None,
    seed: int = 0,
    prove: bool = True,
) -> DualAssembled:
    """Bridges a text model and a tower for literal locked-image tuning (LiT, arXiv 2111.07991).

    Args:
        llm: folder or Hub id of a decoder LLM, or of BERT, RoBERTa, CLIP's text model and the like.
        tower: folder or Hub id of a vision model.
        output: folder for the model, which must not exist or be empty; written whole or not at all. `None`
            keeps nothing on disk.
        dimension: of the embeddings.
        image_size: side of the square that images are resized to; default: what the tower's own preprocessing
            ends with.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        fitting_images: RGB images whose features the visual projection is fitted to
            (`initialise_projections`).
        fitting_texts: whose states the text projection is fitted to, where the text model stays as it is.
        pooling: of these states; default: what suits the text model.
        seed: of the projections' initial weights.
        prove: also reload in a fresh process. In any case the folder is reloaded in this one and compared.

    Returns:
        The model, its processor, and what was measured.

    Raises:
        RecipeError: `output` is not empty.
        SetupError: a source does not exist or cannot be read.
        AssemblyError: a text or an image cannot be made one vector; the message names why.
        VerificationError: a proof failed. Nothing is left at `output`.
    """
    chosen = resolve_dtype(dtype)
    with _workplace(output) as folder:
        text, vision = load_text(llm, chosen), load_tower(tower, chosen)
        facts = probe_text(text.model, text.source.name, seed)
        tokenizer = load_text_tokenizer(text.source)
        if len(tokenizer) > facts.rows:
            raise AssemblyError(
                f"the tokenizer has {len(tokenizer)} tokens, the embedding {facts.rows} rows",
                where=text.source.name,
                fix="use the tokenizer that belongs to the checkpoint",
            )
        image_processor, side = square_processor(vision.image_processor, image_size, vision.source.name)
        channels = _probe_pooled(vision, image_processor)
        expected = _expect(text.model, vision.model, facts, probe_pixels(image_processor))
        model = _join(text, vision, channels, dimension)
        states = _fitting_states(model, tokenizer, fitting_texts, facts.pooling(pooling))
        fitted = _initialise(model, image_processor, fitting_images, states, seed)
        with quiet():
            model.save_pretrained(folder)
            VisionTextDualEncoderProcessor(image_processor, tokenizer).save_pretrained(folder)
        unused = (*text.unexpected, *vision.unexpected)
        del model, text, vision
        if prove:
            _compare(expected, _fresh_states(folder, expected, chosen), chosen, folder)
        model, processor = load_dual(folder, chosen)
        differences = _compare(expected, _states_here(model, expected), chosen, folder)
    if output is not None:
        # Loaded from the temporary sibling that has become `output` since; adapters point at their base by
        # it.
        model.name_or_path = str(output)
        model.config._name_or_path = str(output)
    report = DualReport(
        llm=str(llm),
        tower=str(tower),
        dtype=str(chosen).removeprefix("torch."),
        text_facts=facts,
        image_size=side,
        image_channels=channels,
        dimension=dimension,
        stock_forward=facts.kind == "pooler",
        fitted_on=fitted,
        unused_keys=unused,
        text_difference=differences["texts"],
        image_difference=differences["images"],
    )
    return DualAssembled(model, processor, None if output is None else Path(output), report)


def load_dual(folder: str | Path, dtype: str | torch.dtype = "auto") -> tuple[Any, Any]:
    """Loads a `VisionTextDualEncoderModel` folder or Hub id.

    Args:
        folder: or a Hub id.
        dtype: of the weights.

    Returns:
        Model (evaluation mode, frozen) and processor.

    Raises:
        SetupError: it does not exist or cannot be read.
        VerificationError: a weight is missing or has no place.
    """
    source = find(folder, "dual encoder")
    with loading(source, "dual encoder"):
        loaded: Any = VisionTextDualEncoderModel.from_pretrained(
            source.name,
            dtype=resolve_dtype(dtype),
            use_safetensors=True,
            output_loading_info=True,
            **source.arguments,
        )
        processor = VisionTextDualEncoderProcessor.from_pretrained(source.name, **source.arguments)
    model, info = loaded
    for kind, keys in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if keys:
            raise VerificationError(
                f"{type(model).__name__} {kind} {some(keys)}",
                where=source.name,
                fix="the folder's weights and config.json do not belong together: make or download it again",
            )
    return model.eval().requires_grad_(False), processor


@dataclass(frozen=True)
class _Expected:
    inputs: dict[str, Tensor]
    states: dict[str, Tensor]
    parts: tuple[str, str]


@contextlib.contextmanager
def _workplace(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        with new_folder(output, what="assembling") as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            yield Path(scratch)


@torch.no_grad()
def _probe_pooled(tower: LoadedTower, image_processor: Any) -> int:
    """Width of a pooled image, and whether every weight behind it was in the checkpoint."""
    values = probe_pixels(image_processor).to(next(tower.model.parameters()).dtype)
    where, name = tower.source.name, type(tower.model).__name__
    try:
        with quiet():
            before = pooled_image_features(tower.model, values)
    except Exception as error:
        raise AssemblyError(
            f"{name} cannot embed images of {values.shape[-1]} x {values.shape[-1]}: "
            f"{(str(error).splitlines() or [''])[0]}",
            where=where,
            fix="leave `image_size` out, or choose one that the tower fits",
        ) from error
    weights = dict(tower.model.named_parameters()) | dict(tower.model.named_buffers())
    kept = {n: weights[n].clone() for n in tower.missing if n in weights and weights[n].is_floating_point()}
    for missing in kept:
        weights[missing].fill_(0.37)
    same = not kept or torch.equal(before, pooled_image_features(tower.model, values))
    for missing, value in kept.items():
        weights[missing].copy_(value)
    if not same:
        raise AssemblyError(
            f"the tower's checkpoint lacks {some(kept)}, which its pooled output goes through",
            where=where,
            fix="use a tower that was saved with its pooler, such as CLIP, SigLIP or DINOv2",
        )
    width = int(before.shape[-1])
    if getattr(tower.model.config, "hidden_size", None) is None:
        # The stock class reads the width of its projection here, and CNN configs lack it.
        tower.model.config.hidden_size = width
    if tower.model.config.hidden_size != width:
        raise AssemblyError(
            f"{name} pools to {width} channels where its config says {tower.model.config.hidden_size}",
            where=where,
            fix="choose another tower",
        )
    return width


@torch.no_grad()
def _expect(text: PreTrainedModel, tower: PreTrainedModel, facts: TextFacts, values: Tensor) -> _Expected:
    """What the sources compute by themselves, before anything is joined."""
    ids = probe_ids(facts.rows, 1, facts.context)
    mask = torch.ones_like(ids)
    states = text(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
    images = tower(pixel_values=values.to(tower.dtype), return_dict=True).last_hidden_state
    return _Expected(
        inputs={"input_ids": ids, "attention_mask": mask, "pixel_values": values},
        states={"texts": states.clone(), "images": images.clone()},
        parts=(_full_name(tower), _full_name(text)),
    )


def _join(text: LoadedText, vision: LoadedTower, channels: int, dimension: int) -> Any:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.model.config, text.model.config, projection_dim=dimension
    )
    for part in (config, config.text_config, config.vision_config):
        part.dtype = text.model.dtype
        part.name_or_path = ""  # a local path, not published
    with quiet():
        model: Any = VisionTextDualEncoderModel(config, vision.model, text.model)
    if model.visual_projection.weight.shape != (dimension, channels):
        raise AssemblyError(
            f"the Transformers class projects {model.visual_projection.weight.shape[1]} channels, the "
            f"tower gives {channels}",
            where=vision.source.name,
            fix="choose another tower",
        )
    return model.to(text.model.dtype).eval()


@torch.no_grad()
def _fitting_states(model: Any, tokenizer: Any, texts: Sequence[str], pooling: Pooling) -> Tensor | None:
    """Pooled states of texts; None for fewer than two, which have no deviation."""
    states = []
    for start in range(0, len(texts), FITTING_BATCH):
        batch = tokenizer(
            list(texts[start : start + FITTING_BATCH]),
            padding=True,
            truncation=True,
            max_length=LONGEST_FITTING_TEXT,
            return_tensors="pt",
        )
        states.append(text_embedding(model, batch["input_ids"], batch["attention_mask"], pooling))
    return torch.cat(states) if len(texts) > 1 else None


def _initialise(
    model: Any,
    image_processor: Any,
    images: Iterable[Image.Image] | None,
    states: Tensor | None,
    seed: int,
) -> int:
    source, features = iter(images or ()), []
    while batch := list(islice(source, FITTING_BATCH)):
        features.append(pooled_image_features(model, pixels(image_processor, batch).to(model.dtype)))
    rows = torch.cat(features) if features else None
    # One image has no deviation.
    fitting = rows if rows is not None and len(rows) > 1 else None
    initialise_projections(model, torch.Generator().manual_seed(seed), fitting, states)
    return 0 if fitting is None else len(fitting)


@torch.no_grad()
def _states_here(model: Any, expected: _Expected) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    given = expected.inputs
    texts = model.text_model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    images = model.vision_model(pixel_values=given["pixel_values"].to(model.dtype))
    parts = (_full_name(model.vision_model), _full_name(model.text_model))
    return {"texts": texts.last_hidden_state, "images": images.last_hidden_state}, parts


def _fresh_states(
    folder: Path, expected: _Expected, dtype: torch.dtype
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    request = {"reader": "dual-states", "dtype": str(dtype).removeprefix("torch.")}
    outputs, answer = run_script(SCRIPT, folder, request, expected.inputs)
    for key in ("missing_keys", "unexpected_keys"):
        if answer[key]:
            raise VerificationError(
                f"{key.replace('_', ' ')} after reloading: {some(answer[key])}", where=str(folder)
            )
    return outputs, tuple(answer["parts"])


def _compare(
    expected: _Expected,
    computed: tuple[dict[str, Tensor], tuple[str, ...]],
    dtype: torch.dtype,
    folder: Path,
) -> dict[str, float]:
    states, parts = computed
    if parts != expected.parts:
        raise VerificationError(f"came back as {parts}, not {expected.parts}", where=str(folder))
    differences = {}
    for name, first in expected.states.items():
        allowed = tolerance(dtype, first)
        differences[name] = float((first.double() - states[name].double()).abs().max())
        if not differences[name] <= allowed:
            raise VerificationError(
                f"the dual encoder's {name} differ from the source's by up to {differences[name]:.3g} "
                f"(allowed: {allowed:.3g})",
                where=str(folder),
                fix="please report this",
            )
    return differences


def _full_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
