"""The model of a recipe: assembled or opened, quantized, with its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lockadapt.architectures.absent_tower import TowerRecord
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.dual_encoder.assemble import DualAssembled, assemble_dual
from lockadapt.architectures.generic.limits import limit_image_tokens
from lockadapt.architectures.load import load_model
from lockadapt.building.experiment import Experiment
from lockadapt.console import Reporter
from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.whole_image import crop_note
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.models.sources import resolve_dtype
from lockadapt.objectives import ImageText
from lockadapt.tuning.adapters import attach_adapters
from lockadapt.tuning.quantize import load_quantized
from lockadapt.tuning.resize_vocabulary import add_rows, with_query_tokens


def build_model(
    experiment: Experiment,
    base: Path,
    samples: Sequence[Sample],
    reporter: Reporter,
    tower: TowerRecord | None = None,
) -> tuple[Any, Any]:
    """Builds the Transformers model that is trained, without adapters: assembled or loaded, and quantized.

    Args:
        experiment: says what is bridged.
        base: folder of the base that the run makes for itself, where it makes one; opened if it is there
            already.
        samples: training rows, whose images calibrate a new projector.
        reporter: is told of long work.
        tower: of a tower that need not be loaded, as all that it would compute is kept.

    Returns:
        Model and processor.

    Raises:
        LockadaptError: a source is not to be had, or does not fit the others.
    """
    section, dtype = experiment.model, resolve_dtype(experiment.model.dtype)
    if section.vlm is None and not base.exists():
        reporter.note(f"assembling {section.llm} and {section.tower}")
        pictures, answers = calibration_images(experiment, samples)
        texts = calibration_texts(experiment, samples)
        built = assemble_model(experiment, base, pictures, prove=True, texts=texts, answers=answers)
        if isinstance(built, Assembled) and (share := built.report.words_predicted) is not None:
            start = f"by predicting the words about images ({share:.1%} of their variance on images held out)"
            reporter.note(f"the projector starts {start if share else 'at random: images do not tell words'}")
        if section.quantization == "none":
            return built.model, built.processor
    if section.vlm is not None and experiment.query_tokens and not base.exists():
        with_query_tokens(section.vlm, base, experiment.query_tokens, dtype)
    start = str(base) if base.exists() else str(section.vlm)
    model, processor = load_quantized(start, section.quantization, dtype, tower)
    if section.vlm is not None and (note := crop_note(processor)):
        reporter.note(note)
    return model, limited(processor, section.max_image_tokens)


def draft_model(experiment: Experiment) -> tuple[Any, Any]:
    """Builds model and processor to look at, not to train: nothing is calibrated, quantized or written.

    Args:
        experiment: says what is built.

    Returns:
        Model and processor.

    Raises:
        LockadaptError: as `build_model`.
    """
    if experiment.model.vlm is not None:
        model, processor = load_model(experiment.model.vlm, resolve_dtype(experiment.model.dtype))
        add_rows(model, processor, experiment.query_tokens)
        return model, limited(processor, experiment.model.max_image_tokens)
    built = assemble_model(experiment, None, [], prove=False)
    return built.model, built.processor


def assemble_model(
    experiment: Experiment,
    output: Path | None,
    images: Sequence[Image.Image],
    *,
    prove: bool,
    texts: Sequence[str] = (),
    answers: Sequence[Sequence[str]] = (),
) -> Assembled | DualAssembled:
    """Assembles the LLM and the tower of a recipe in one class: a dual encoder where the recipe trains one.

    Args:
        experiment: says what is bridged.
        output: folder to write; None: nothing is written.
        images: calibrate the projector, if there are any.
        prove: compare LLM and tower inside the class with what they computed before.
        texts: calibrate a dual encoder's text projection, if there are any.
        answers: what is answered about each image, if the projector starts from that.

    Returns:
        The model, its processor, and what assembling measured.
    """
    section, seed = experiment.model, experiment.training.seed
    assert section.llm is not None
    assert section.tower is not None
    if experiment.dimension is not None:
        return assemble_dual(
            section.llm,
            section.tower,
            output,
            dimension=experiment.dimension,
            image_size=section.image_size,
            dtype=section.dtype,
            fitting_images=images or None,
            fitting_texts=texts,
            pooling=next(o.pooling for o in experiment.objectives.values() if isinstance(o, ImageText)),
            seed=seed,
            prove=prove,
        )
    return assemble(
        section.llm,
        section.tower,
        output,
        fusion_name=section.fusion,
        image_size=section.image_size,
        feature_layer=section.feature_layer,
        dtype=section.dtype,
        calibration_images=images or None,
        calibration_texts=answers or None,
        image_tokenizer=section.image_tokenizer,
        seed=seed,
        prove=prove,
        query_tokens=experiment.query_tokens,
        factor=section.factor,
        grid=section.tile_grid,
        max_tiles=section.max_tiles,
        queries=section.queries,
    )


def limited(processor: Any, max_image_tokens: int | None) -> Any:
    """Limits what an image may become, as a recipe says.

    Args:
        processor: of a stock VLM; changed in place.
        max_image_tokens: see `limit_image_tokens`; None: no limit.

    Returns:
        The processor itself.

    Raises:
        RecipeError: the processor has no setting that limits them so far.
    """
    if max_image_tokens is not None:
        limit_image_tokens(processor, max_image_tokens)
    return processor


def calibration_images(
    experiment: Experiment, samples: Sequence[Sample]
) -> tuple[list[Image.Image], list[list[str]]]:
    """Opens as many training images as the recipe wants, evenly spread; with all that is answered about each.

    Args:
        experiment: says how many, and whether texts are wanted.
        samples: training rows.

    Returns:
        Images, and the answers about each of them; no answers where `model.calibration_words` is off.
    """
    answers: dict[str, list[str]] = {}
    images: dict[str, tuple[ImageRef, str]] = {}
    for sample in samples:
        for image in sample.images:
            images.setdefault(image.key, (image, sample.where))
            answers.setdefault(image.key, []).append(sample.answer)
    wanted = experiment.model.calibration_images
    keys = list(images)[:: max(1, len(images) // max(wanted, 1))][:wanted]
    opened = [open_image(images[key][0], experiment.data.max_pixels, images[key][1]) for key in keys]
    return opened, [answers[key] for key in keys] if experiment.model.calibration_words else []


def calibration_texts(experiment: Experiment, samples: Sequence[Sample]) -> list[str]:
    """Gives as many training texts as the recipe wants images, evenly spread; none where LoRA trains."""
    wanted = experiment.model.calibration_images
    if experiment.dimension is None or experiment.lora is not None:
        return []
    texts = list(dict.fromkeys(sample.answer for sample in samples))
    return texts[:: max(1, len(texts) // max(wanted, 1))][:wanted]


def add_adapters(experiment: Experiment, model: Any, processor: Any) -> Any:
    """The model with the recipe's adapters: LoRA, trained query tokens."""
    ids = query_token_ids(processor.tokenizer, experiment.query_tokens)
    return attach_adapters(model, experiment.lora, ids)
