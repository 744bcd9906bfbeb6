"""Puts a frozen LLM and a frozen vision tower into a stock class, saves it, and proves both unchanged."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assembly import Assembly, Ingredients
from lockadapt.architectures.bridge import set_generation
from lockadapt.architectures.calibrate import Calibration, embedding_rms
from lockadapt.architectures.calibrate_on_images import (
    CalibrationData,
    calibrate_on_images,
    projector_features,
)
from lockadapt.architectures.choose import USUAL, Choice, Wish, choices, choose
from lockadapt.architectures.janus.image_tokenizer import ImageTokenizer, load_image_tokenizer
from lockadapt.architectures.load import load_model
from lockadapt.errors import AssemblyError
from lockadapt.files import new_folder
from lockadapt.models.chat_template import TemplateKind, add_end_tokens, chat_template, end_token_ids
from lockadapt.models.embeddings import image_token_id, lacks_rows, load_tokenizer, widen_vocabulary
from lockadapt.models.llms import (
    LlmFacts,
    llm_arguments,
    llm_structure,
    load_llm,
    name_text_class,
    probe_ids,
    probe_llm,
    probe_whole_llm,
)
from lockadapt.models.origins import read_origin, write_origins
from lockadapt.models.preprocessing import square_processor
from lockadapt.models.proof import Expectation, ProofReport, compare, prove_fresh
from lockadapt.models.query_tokens import add_query_tokens
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import resolve_dtype
from lockadapt.models.tower_size import at_size
from lockadapt.models.towers import FeatureLayer, TowerFacts, load_tower, probe_pixels, probe_tower


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
    image_token_id: int | None
    template: TemplateKind
    calibrated_on: int
    words_predicted: float | None
    unused_keys: tuple[str, ...]
    proof: ProofReport

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Assembled:
    """A Transformers model in evaluation mode on the CPU, its processor, and the folder of both."""

    model: Any
    processor: Any
    folder: Path | None
    report: AssemblyReport


def assemble(
    llm: str | Path,
    tower: str | Path,
    output: str | Path | None = None,
    *,
    fusion_name: str | None = USUAL,
    image_size: int | None = None,
    feature_layer: int | Sequence[int] = -2,
    dtype: str | torch.dtype = "auto",
    calibration_images: Iterable[Image.Image] | None = None,
    calibration_texts: Sequence[Sequence[str]] | None = None,
    image_tokenizer: str | Path | None = None,
    seed: int = 0,
    prove: bool = True,
    query_tokens: int = 0,
    factor: int | None = None,
    grid: Sequence[tuple[int, int]] | None = None,
    max_tiles: int | None = None,
    queries: int | None = None,
) -> Assembled:
    """Bridges a causal LM and a vision model in a stock class, chosen by the fusion and the tower's outputs.

    Args:
        llm: folder or Hub id of a causal language model, or of an encoder-decoder (`qformer`).
        tower: folder or Hub id of a vision model: token features go into LLaVA, feature maps into FastVLM.
        output: folder for the Transformers model, which must not exist or be empty; written whole or not at
            all. `None` keeps nothing on disk.
        fusion_name: the projector: `mlp` (two layers), `linear`, or another of `fusion_names()`. None: `mlp`,
            or, where no class holds LLM and tower with it, the only fusion that does.
        image_size: side of the square that images are resized to; default: what the tower's own preprocessing
            ends with. The whole image is resized, nothing is cropped.
        feature_layer: hidden layer of a token tower that is projected (LLaVA: the last but one); of several,
            the channels are read side by side, in the classes that do so (LLaVA, LLaVA-NeXT).
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        calibration_images: RGB images that the projector is calibrated on (`calibrate_projector`); `None` for
            none.
        calibration_texts: what is said about each of these images: projectors whose last layer is linear then
            start by predicting its words (`align`); `None`: they start at random.
        image_tokenizer: folder or Hub id of a `JanusVQVAE`: the result also generates images (Janus). Only
            for SigLIP towers, whose last hidden state is then projected.
        seed: of all fresh weights.
        prove: also reload in a fresh process (some seconds). In any case the folder is reloaded in this one,
            and logits and features are compared.
        query_tokens: how many the vocabulary gets, for a contrastive run.
        factor: patches on a side that become one token, for fusions that merge patches; default: the fusion's
            own.
        grid: (rows, columns) of tiles that images may be cut into, for fusions that make tiles; default: all
            of up to `max_tiles` tiles.
        max_tiles: the most tiles of an image; default: the fusion's own.
        queries: tokens that an image becomes, for fusions that read it with learned queries; default: the
            fusion's own.

    Returns:
        Model, processor and a report.

    Raises:
        RecipeError: `output` is not empty, or there is no such fusion.
        SetupError: a source does not exist or cannot be read.
        AssemblyError: the stock class cannot hold this LLM or this tower; the message names why.
        VerificationError: a proof failed. Nothing is left at `output`.
    """
    chosen = resolve_dtype(dtype)
    grids = None if grid is None else tuple(grid)
    draws = image_tokenizer is not None
    wish = Wish(fusion_name or USUAL, factor, grids, max_tiles, draws, queries)
    candidates = choices(wish)
    with _workplace(output) as folder:
        codec = None if image_tokenizer is None else load_image_tokenizer(image_tokenizer)

        def parts() -> LoadedSources:
            layers = feature_layer if isinstance(feature_layer, int) else tuple(feature_layer)
            settings = Loading(chosen, image_size, layers, query_tokens, seed)
            try:
                return load_parts((llm, tower), candidates, codec, settings)
            except AssemblyError as error:
                if fusion_name is not None or image_tokenizer is not None:
                    raise
                # Only now, as it builds on this module.
                from lockadapt.architectures.suggest import holdings, only_fusion

                entries = holdings(llm, tower, image_size=image_size, feature_layer=feature_layer)
                other = replace(wish, fusion=only_fusion(entries, error))
            return load_parts((llm, tower), choices(other), codec, settings)

        # In one expression, so that nothing here holds the sources while the folder is loaded again.
        build = _build(parts(), folder, (calibration_images, calibration_texts), seed)
        proof = prove_fresh(folder, build.expected, chosen) if prove else None
        model, processor = load_model(folder, chosen)
        here = _prove_here(model, build.expected, chosen)
    if output is not None:
        # Loaded from the temporary sibling that has become `output` since; adapters point at their base by
        # it.
        model.name_or_path = str(output)
        model.config._name_or_path = str(output)
    report = AssemblyReport(
        model_class=type(model).__name__,
        llm=str(llm),
        tower=str(tower),
        fusion=build.fusion,
        dtype=str(chosen).removeprefix("torch."),
        llm_facts=build.llm_facts,
        tower_facts=build.tower_facts,
        rows=(build.llm_facts.rows, model.get_input_embeddings().weight.shape[0]),
        image_token_id=getattr(model.config, "image_token_id", None),
        template=build.template,
        calibrated_on=build.calibration.images,
        words_predicted=build.calibration.words_predicted,
        unused_keys=build.unused_keys,
        proof=proof or here,
    )
    return Assembled(model, processor, None if output is None else Path(output), report)


@dataclass(frozen=True)
class LoadedSources:
    """Sources, loaded and measured, and the choice of what they become.

    Attributes:
        ingredients: the tower is still the one that was loaded.
        unused_keys: of the checkpoints.
        sources: what each part was made of: its name, and a folder or Hub id.
    """

    choice: Choice
    ingredients: Ingredients
    unused_keys: tuple[str, ...]
    sources: dict[str, str]


@dataclass(frozen=True)
class Loading:
    """How sources are loaded and probed; the fields are arguments of `assemble`."""

    dtype: torch.dtype
    image_size: int | None
    feature_layer: FeatureLayer
    query_tokens: int
    seed: int


def load_parts(
    names: tuple[str | Path, str | Path],
    candidates: Sequence[Choice],
    codec: ImageTokenizer | None,
    how: Loading,
) -> LoadedSources:
    """Loads and probes an LLM and a tower, by folder or Hub id; errors as `assemble`."""
    llm, tower = names
    text = load_llm(llm, how.dtype)
    # Before the tower is loaded, where all that can come of it holds no more than a plain LLM.
    whole = any(candidate.assembly.whole_llm for candidate in candidates)
    llm_facts = llm_structure(text.model) if whole else probe_llm(text.model, how.seed)
    tokenizer = load_tokenizer(
        text.source, text.model, special_tokens(candidates), marked=writes_images(candidates)
    )
    add_query_tokens(tokenizer, how.query_tokens)
    vision = load_tower(tower, how.dtype)
    image_processor, side = square_processor(vision.image_processor, how.image_size, vision.source.name)
    vision = at_size(vision, side)
    tower_facts = probe_tower(vision, image_processor, how.feature_layer)
    where = vision.source.name
    choice = choose(candidates, tower_facts.kind, where, text.model, vision.model)
    if whole and not choice.assembly.whole_llm:
        llm_facts = probe_llm(text.model, how.seed)
    elif whole and choice.architecture.beside is None:  # it is given embeddings
        llm_facts = probe_whole_llm(text.model, how.seed)
    choice = check_grid(tower_facts, choice, llm_facts, where)
    ingredients = Ingredients(
        text.model,
        vision.model,
        tokenizer,
        image_processor,
        llm_facts,
        tower_facts,
        where,
        image_tokenizer=codec,
        factor=choice.factor,
        grids=choice.grids,
        queries=choice.queries,
    )
    sources = {"LLM": str(llm), "tower": str(tower)}
    if codec is not None:
        sources["image tokenizer"] = codec.name
    return LoadedSources(choice, ingredients, (*text.unexpected, *vision.unexpected), sources)


def writes_images(candidates: Sequence[Choice]) -> bool:
    """Whether images stand in the text, whichever of these it will be."""
    return any(candidate.architecture.beside is None for candidate in candidates)


def special_tokens(candidates: Sequence[Choice]) -> dict[str, str]:
    """What the tokenizer gets beside `<image>`, whichever of these it will be."""
    return {
        name: token for candidate in candidates for name, token in candidate.assembly.special_tokens.items()
    }


def check_grid(vision: TowerFacts, choice: Choice, text: LlmFacts, where: str) -> Choice:
    """Checks that a tower's grid can be divided, and that an image leaves room in the LLM's context.

    Args:
        vision: what the tower returns.
        choice: architecture and fusion.
        text: what the LLM is.
        where: the tower, for messages.

    Returns:
        The choice, with as many queries as read the grid.

    Raises:
        AssemblyError: it cannot, or does not.
    """
    if not isinstance(vision.feature_layer, int) and not choice.assembly.several_layers:
        raise AssemblyError(
            f"{choice.architecture.model_class.__name__} reads one hidden layer of the tower, and "
            f"model.feature_layer lists {len(vision.feature_layer)}",
            where=where,
            fix="name one layer, or choose the fusion mlp, linear or tiles",
        )
    side, factor = vision.image_size // vision.patch_size, choice.factor
    patches_only = choice.grids or choice.fusion.factor is not None
    if patches_only and side * side != vision.tokens:
        does = "joins tiles patch by patch" if choice.grids else "merges patches only"
        raise AssemblyError(
            f"the tower returns {vision.tokens} tokens for {side} x {side} patches, "
            f"and the fusion {choice.fusion.name} {does}",
            where=where,
            fix="give a tower without register tokens, or choose another fusion",
        )
    if side % factor:
        raise AssemblyError(
            f"a grid of {side} x {side} patches is not divided by a factor of {factor}",
            where=where,
            fix="give another model.factor or image_size",
        )
    rows, columns = max(choice.grids, key=lambda grid: grid[0] * grid[1], default=(0, 0))
    choice = replace(choice, queries=choice.assembly.queries(vision, choice.queries, where))
    square, across = vision.tokens // factor**2, side
    if choice.queries:
        square, across = choice.queries, isqrt(choice.queries)
    # The whole image, and behind each row of what the tiles become a newline.
    tokens = square + rows * across * (columns * across + bool(columns))
    if choice.architecture.beside is None and text.context is not None and tokens >= text.context:
        fewer = "fewer `queries`" if choice.queries else "a smaller `image_size`"
        fewer += ", fewer tiles" if choice.grids else ""
        of_tiles = f" in {rows} x {columns} tiles" if choice.grids else ""
        raise AssemblyError(
            f"an image{of_tiles} takes {tokens} tokens, the LLM's context holds {text.context}",
            where=where,
            fix=f"give {fewer}, or an LLM with a longer context",
        )
    return choice


def put_together(choice: Choice, ingredients: Ingredients, seed: int) -> tuple[Any, Any, TemplateKind]:
    """The Transformers model and processor, with weights or without.

    Args:
        choice: what is built.
        ingredients: the tower as the class holds it. The vocabulary is widened; parts move into the result.
        seed: of all fresh weights.

    Returns:
        The model in evaluation mode, its processor, and where the chat template is from.

    Raises:
        AssemblyError: the stock class cannot hold these.
    """
    llm, tokenizer, assembly = ingredients.llm, ingredients.tokenizer, choice.assembly
    if (assembly.image_tokenizer or ingredients.grids) and llm.device.type != "meta":
        ingredients = replace(ingredients, text_rms=embedding_rms(llm))
    beside = choice.architecture.beside is not None
    if not beside or lacks_rows(llm, tokenizer):
        with quiet():
            widen_vocabulary(llm, tokenizer)
    template, kind = chat_template(tokenizer, marked=not beside, begun=assembly.begun)
    tokenizer.chat_template = None
    model = assembly.build(ingredients, choice.fusion, seed)
    processor = assembly.processor(ingredients, template)
    set_generation(model, llm, tokenizer)
    add_end_tokens(model.generation_config, end_token_ids(tokenizer, template))
    if assembly.finish is not None:
        assembly.finish(model, tokenizer)
    return model, processor, kind


@dataclass(frozen=True)
class _Built:
    expected: Expectation
    llm_facts: LlmFacts
    tower_facts: TowerFacts
    fusion: str
    template: TemplateKind
    calibration: Calibration
    unused_keys: tuple[str, ...]


@contextlib.contextmanager
def _workplace(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        with new_folder(output, what="assembling") as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            yield Path(scratch)


def _build(parts: LoadedSources, folder: Path, calibration: CalibrationData, seed: int) -> _Built:
    """Build, calibrate and save. Only one copy of the weights lives, and none after it."""
    choice, given = parts.choice, parts.ingredients
    values = probe_pixels(given.image_processor)
    held = choice.assembly.tower(given, choice.fusion, values)
    example = choice.assembly.example
    shown = choice.architecture.inputs.shown(values) if example is None else example(given, values)
    expected = _expect(choice.assembly, given, shown, held)
    model, processor, kind = put_together(choice, replace(given, tower=held), seed)
    expected = _as_held(choice, model, expected)
    calibrated = calibrate_on_images(model, processor, calibration)
    name_text_class(model.config)
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    write_origins(folder, [read_origin(part, name) for part, name in parts.sources.items()])
    return _Built(expected, given.text, given.vision, choice.fusion.name, kind, calibrated, parts.unused_keys)


@torch.no_grad()
def _expect(assembly: Assembly, given: Ingredients, images: dict[str, Tensor], held: Any) -> Expectation:
    """What the sources compute before anything is joined; `held` is the tower that will be in the model."""
    llm = given.llm
    marked = getattr(given.tokenizer, "image_token", None) is not None
    avoid = image_token_id(given.tokenizer) if marked else None
    ids = probe_ids(given.text.rows, 1, given.text.context, avoid=avoid)
    values = images["pixel_values"].flatten(0, -4).to(llm.dtype)
    output = given.tower(values, output_hidden_states=True, return_dict=True)
    return Expectation(
        token_ids=ids,
        logits=llm(**llm_arguments(llm, ids), use_cache=False).logits.clone(),
        images=images,
        features=assembly.projected(output, given.vision).clone(),
        tower_class=_full_name(held),
        llm_class=_full_name(llm.base_model),
    )


def _as_held(choice: Choice, model: Any, expected: Expectation) -> Expectation:
    """What is expected of classes that hold the LLM otherwise than most: arguments, and where parts lie."""
    arguments, layout = choice.assembly.arguments, architecture_of(model).layout
    llm_class = _full_name(model.get_submodule(layout.llm))
    if arguments is None:
        return replace(expected, llm_class=llm_class)
    return replace(
        expected,
        arguments=arguments(
            model, expected.token_ids, expected.images["pixel_values"].to(model.dtype, copy=True)
        ),
        llm_class=llm_class,
        parts={"tower": layout.tower, "llm": layout.llm},
    )


@torch.no_grad()
def _prove_here(model: Any, expected: Expectation, dtype: torch.dtype) -> ProofReport:
    logits = model(**(expected.arguments or {"input_ids": expected.token_ids})).logits
    features = torch.cat(projector_features(model, expected.images)).reshape(expected.features.shape)
    return compare(expected, logits, features, dtype, fresh_process=False)


def _full_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
