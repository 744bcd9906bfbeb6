"""Put a frozen LLM and a frozen vision tower into a stock class, save it, and prove that both are still themselves."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lockadapt.architectures.calibrate import calibrate_projector, embedding_rms
from lockadapt.architectures.fusions import Projector, get_fusion, projector_input
from lockadapt.architectures.janus.graft import DRAWING_TOKENS, check_grids
from lockadapt.architectures.janus.image_tokenizer import ImageTokenizer, load_image_tokenizer
from lockadapt.architectures.janus.siglip import janus_tower, prove_tower
from lockadapt.architectures.load import load_model
from lockadapt.architectures.stock_model import stock_model
from lockadapt.errors import AssemblyError
from lockadapt.files import new_folder
from lockadapt.models.chat_template import TemplateKind
from lockadapt.models.embeddings import image_token_id, load_tokenizer
from lockadapt.models.llms import LlmFacts, load_llm, name_text_class, probe_ids, probe_llm
from lockadapt.models.origins import read_origin, write_origins
from lockadapt.models.preprocessing import pixels, square_processor
from lockadapt.models.proof import Expectation, ProofReport, compare, prove_fresh
from lockadapt.models.query_tokens import add_query_tokens
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import resolve_dtype
from lockadapt.models.tower_size import at_size
from lockadapt.models.towers import TowerFacts, load_tower, probe_pixels, probe_tower

CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class AssemblyReport:
    """What was put together, and how it was proved. `rows` are vocabulary rows before and after padding."""

    model_class: str
    llm: str
    tower: str
    fusion: str
    dtype: str
    llm_facts: LlmFacts
    tower_facts: TowerFacts
    rows: tuple[int, int]
    image_token_id: int
    template: TemplateKind
    calibrated_on: int
    unused_keys: tuple[str, ...]
    proof: ProofReport

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Assembled:
    """A stock model in evaluation mode on the CPU, its processor, and the folder that both were reloaded from."""

    model: Any
    processor: Any
    folder: Path | None
    report: AssemblyReport


def assemble(
    llm: str | Path,
    tower: str | Path,
    output: str | Path | None,
    *,
    fusion_name: str = "mlp",
    image_size: int | None = None,
    feature_layer: int = -2,
    dtype: str | torch.dtype = "auto",
    calibration_images: Iterable[Image.Image] | None = None,
    image_tokenizer: str | Path | None = None,
    seed: int = 0,
    prove: bool = True,
    query_tokens: int = 0,
) -> Assembled:
    """Bridge a causal LM and a vision model in a stock class, chosen by what the tower returns, or by what it shall do.

    Args:
        llm: folder or Hub id of a causal language model.
        tower: folder or Hub id of a vision model: token features go into LLaVA, feature maps into FastVLM.
        output: folder for the stock model, which must not exist or be empty; written whole or not at all. `None`
            keeps nothing on disk.
        fusion_name: `mlp` (two layers) or `linear`.
        image_size: side of the square that images are resized to; default: what the tower's own preprocessing
            ends with. The whole image is resized, nothing is cropped.
        feature_layer: hidden layer of a token tower that is projected (LLaVA: the last but one).
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        calibration_images: RGB images that the projector is calibrated on (`calibrate_projector`); `None` for none.
        image_tokenizer: folder or Hub id of a `JanusVQVAE`: the result also draws (Janus). Only for SigLIP towers,
            whose last hidden state is then projected.
        seed: of all fresh weights.
        prove: also reload in a fresh process (some seconds). In any case the folder is reloaded in this one, and
            logits and features are compared.
        query_tokens: how many the vocabulary gets, for a contrastive run.

    Raises:
        RecipeError: `output` is not empty, or there is no such fusion.
        SetupError: a source does not exist or cannot be read.
        AssemblyError: the stock class cannot hold this LLM or this tower; the message names why.
        VerificationError: a proof failed. Nothing is left at `output`.
    """
    chosen, projector = resolve_dtype(dtype), get_fusion(fusion_name, draws=image_tokenizer is not None)
    with _workplace(output) as folder:
        codes = None if image_tokenizer is None else load_image_tokenizer(image_tokenizer)
        build = _build(
            llm,
            tower,
            folder,
            projector,
            image_size,
            feature_layer,
            chosen,
            calibration_images,
            codes,
            seed,
            query_tokens,
        )
        proof = prove_fresh(folder, build.expected, chosen) if prove else None
        model, processor = load_model(folder, chosen)
        here = _prove_here(model, build.expected, chosen)
    if output is not None:
        # Loaded from the temporary sibling that has become `output` since; adapters point at their base by it.
        model.name_or_path = str(output)
        model.config._name_or_path = str(output)
    report = AssemblyReport(
        model_class=type(model).__name__,
        llm=str(llm),
        tower=str(tower),
        fusion=projector.name,
        dtype=str(chosen).removeprefix("torch."),
        llm_facts=build.llm_facts,
        tower_facts=build.tower_facts,
        rows=(build.llm_facts.rows, model.get_input_embeddings().weight.shape[0]),
        image_token_id=model.config.image_token_id,
        template=build.template,
        calibrated_on=build.calibrated_on,
        unused_keys=build.unused_keys,
        proof=proof or here,
    )
    return Assembled(model, processor, None if output is None else Path(output), report)


@dataclass(frozen=True)
class _Built:
    expected: Expectation
    llm_facts: LlmFacts
    tower_facts: TowerFacts
    template: TemplateKind
    calibrated_on: int
    unused_keys: tuple[str, ...]


@contextlib.contextmanager
def _workplace(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        with new_folder(output, what="assembling") as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            yield Path(scratch)


def _build(
    llm: str | Path,
    tower: str | Path,
    folder: Path,
    projector: Projector,
    image_size: int | None,
    feature_layer: int,
    dtype: torch.dtype,
    images: Iterable[Image.Image] | None,
    codes: ImageTokenizer | None,
    seed: int,
    query_tokens: int,
) -> _Built:
    """Load, probe, build, calibrate and save. Only one copy of the weights lives, and none after it."""
    text = load_llm(llm, dtype)
    llm_facts = probe_llm(text.model, seed)
    tokenizer = load_tokenizer(text.source, text.model, DRAWING_TOKENS if codes is not None else {})
    add_query_tokens(tokenizer, query_tokens)
    vision = load_tower(tower, dtype)
    image_processor, side = square_processor(vision.image_processor, image_size, vision.source.name)
    vision = at_size(vision, side)
    tower_facts = probe_tower(vision, image_processor, feature_layer)
    if llm_facts.context is not None and tower_facts.tokens >= llm_facts.context:
        raise AssemblyError(
            f"an image takes {tower_facts.tokens} tokens, the LLM's context holds {llm_facts.context}",
            where=vision.source.name,
            fix="give a smaller `image_size`, or an LLM with a longer context",
        )
    values, where, seeing = probe_pixels(image_processor), vision.source.name, vision.model
    last = codes is not None
    if codes is not None:
        seeing = janus_tower(vision.model, llm_facts.hidden_size, len(projector.trained), vision.source.name)
        prove_tower(vision.model, seeing, values, where)
        check_grids(seeing.config, codes)
    expected = _expect(
        text.model, vision.model, llm_facts, tower_facts, values, image_token_id(tokenizer), last=last
    )
    expected = replace(expected, tower_class=_full_name(seeing))
    model, processor, kind = stock_model(
        text.model,
        seeing,
        tokenizer,
        image_processor,
        llm_facts,
        tower_facts,
        projector,
        seed,
        codes,
    )
    calibrated = _calibrate(model, processor.image_processor, images) if images is not None else 0
    name_text_class(model.config)
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    sources = {"LLM": llm, "tower": tower, "image tokenizer": codes and codes.name}
    write_origins(folder, [read_origin(part, str(one)) for part, one in sources.items() if one])
    unused = (*text.unexpected, *vision.unexpected)
    return _Built(expected, llm_facts, tower_facts, kind, calibrated, unused)


@torch.no_grad()
def _expect(
    llm: PreTrainedModel,
    tower: PreTrainedModel,
    text: LlmFacts,
    vision: TowerFacts,
    values: Tensor,
    image_id: int,
    *,
    last: bool,
) -> Expectation:
    """What the sources compute by themselves, before anything is joined."""
    ids = probe_ids(text.rows, 1, text.context, avoid=image_id)
    output = tower(values.to(llm.dtype), output_hidden_states=True, return_dict=True)
    if last:
        features = output.last_hidden_state
    elif vision.kind == "feature-map":
        features = output.last_hidden_state.flatten(2).transpose(1, 2)
    else:
        features = output.hidden_states[vision.feature_layer][:, min(vision.extra_tokens, 1) :]
    return Expectation(
        token_ids=ids,
        logits=llm(input_ids=ids, use_cache=False).logits.clone(),
        pixel_values=values,
        features=features.clone(),
        tower_class=_full_name(tower),
        llm_class=_full_name(llm.base_model),
    )


def _calibrate(model: Any, image_processor: Any, images: Iterable[Image.Image]) -> int:
    def features() -> Iterator[Tensor]:
        source = iter(images)
        while batch := list(islice(source, CALIBRATION_BATCH)):
            yield projector_input(model, pixels(image_processor, batch).to(model.dtype))

    return calibrate_projector(model, features(), embedding_rms(model))


@torch.no_grad()
def _prove_here(model: Any, expected: Expectation, dtype: torch.dtype) -> ProofReport:
    logits = model(input_ids=expected.token_ids).logits
    features = projector_input(model, expected.pixel_values.to(dtype))
    return compare(expected, logits, features, dtype, fresh_process=False)


def _full_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
