"""The rows of a recipe as a plan sees them: read and tokenised if they are here, assumed if not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lockadapt.architectures.blocks import context_length
from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.building.experiment import Experiment
from lockadapt.building.samples import told_source
from lockadapt.building.streams import is_streamed, open_stream
from lockadapt.console import Reporter
from lockadapt.data.encode import IGNORED, Encoded, Encoder
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError
from lockadapt.planning.packing import packed_tokens, samples_per_image
from lockadapt.recipe.schema import SourceSection

MOST_ROWS = 50_000
"""Of more rows, a part is tokenised: whole images, evenly spread, and the longest texts."""
LONGEST_KEPT = 512
ASSUMED_SIZE, SMALLEST_SIDE = (1024, 768), 64
"""Width and height of an image that nothing is known of, where its tokens depend on them; and how small it is
made at least to fit a row."""
ASSUMED_LENGTH = 2048
"""Tokens of a row that nothing is known of, where `data.max_length` is not given, the LLM's context
permitting."""


@dataclass(frozen=True)
class PlannedRows:
    """Training rows by objective, and what they stand for.

    Attributes:
        train: encoded rows; assumed ones where a source is absent.
        counts: how many rows there are by objective; 0 where not known.
        tokens: of one pass over all rows, unpacked and packed; None where a source is absent.
        learned: how many of them are learned, in one pass.
        images: the distinct images of training and validation, by key.
        whole: whether `train` is every row, in its order.
        assumptions: what is not known, in sentences.
        streamed: whether rows are streamed: `images` are some of them then, and nothing is kept of any.
    """

    train: dict[str, list[Encoded]]
    counts: dict[str, int]
    tokens: tuple[int, int] | None
    learned: int
    images: dict[str, ImageRef]
    whole: bool
    assumptions: tuple[str, ...] = field(default=())
    streamed: bool = False


def planned_rows(experiment: Experiment, model: Any, processor: Any, reporter: Reporter) -> PlannedRows:
    """Reads and tokenises the training rows; opens no image, but for its size where tokens depend on it.

    Args:
        experiment: of the recipe.
        model: a Transformers model, with weights or without.
        processor: its own.
        reporter: told of assumptions.

    Returns:
        The rows, read or assumed.

    Raises:
        DataError: rows that are here are wrong, or none is short enough.
    """
    context, data = context_length(model), experiment.data
    encoder = model_encoder(model, processor, data.max_length, data.allow_special_tokens)
    train: dict[str, list[Encoded]] = {}
    counts: dict[str, int] = {}
    images: dict[str, ImageRef] = {}
    assumptions: list[str] = []
    whole, known, learned = True, [0.0, 0.0], 0.0
    objectives = experiment.objectives
    for name, section in experiment.recipe.objectives.items():
        if not objectives[name].plannable:
            assumptions.append(
                f"objectives.{name}: its memory is not planned; `train` tries its largest micro-batch "
                "before step 1"
            )
        absent = [source.path for source in section.sources("train") if not _is_here(source)]
        if absent:
            length = experiment.data.max_length or min(context, ASSUMED_LENGTH)
            row = _assumed(encoder, length)
            train[name], counts[name] = [row], 0
            size = f" of {_pixels(row.images[0])} pixels" if encoder.stock is not None else ""
            assumptions.append(
                f"objectives.{name}.train: {', '.join(absent)} is not here; every row is taken to "
                f"have {len(row.input_ids)} tokens, "
                f"one image{size} ({_image_tokens(encoder, row)} tokens), and to learn all of its text"
            )
            continue
        samples, count = _samples(experiment, name, reporter)
        images |= {image.key: image for sample in samples for image in sample.images}
        kept = _spread(samples)
        share = count / len(kept)
        if share > 1:
            whole = False
            assumptions.append(f"objectives.{name}.train: {len(kept):,} of {count:,} rows are tokenised")
        objective = objectives[name]
        encoded = objective.encode(encoder, kept, reporter.counted(f"encoding {name}")).encoded
        if not encoded:
            raise DataError(
                "no sample is left", where=f"objectives.{name}.train", fix="raise data.max_length"
            )
        train[name], counts[name] = encoded, round(len(encoded) * share)
        step = experiment.training.batch_size * experiment.training.accumulation
        most = samples_per_image(experiment.data.max_samples_per_image, step, experiment.training.batch_size)
        unpacked, packed = sum(len(item.input_ids) for item in encoded), packed_tokens(encoded, most)
        known = [known[0] + unpacked * share, known[1] + packed * share]
        learned += share * sum(int((item.labels != IGNORED).sum()) for item in encoded)
        if all(map(_is_here, section.sources("validation"))) and section.validation is not None:
            for sample in experiment.samples("validation", [name])[name]:
                images |= {image.key: image for image in sample.images}
    tokens = (round(known[0]), round(known[1])) if all(counts.values()) else None
    streamed = experiment.data.rows != "memory" and any(
        is_streamed(source) for s in experiment.recipe.objectives.values() for source in s.sources("train")
    )
    return PlannedRows(train, counts, tokens, round(learned), images, whole, tuple(assumptions), streamed)


def _samples(experiment: Experiment, name: str, reporter: Reporter) -> tuple[list[Sample], int]:
    """Training samples of an objective, of streamed ones those that are looked at; and their number."""
    in_memory = experiment.data.rows == "memory"
    samples = experiment.samples("train", [name], reporter.note, streamed=in_memory).get(name, [])
    count = len(samples)
    if in_memory:
        return samples, count
    for number, section in enumerate(experiment.recipe.objectives[name].sources("train")):
        if is_streamed(section):
            told = told_source(experiment.recipe, name, "train", reporter.note, number)
            rows = open_stream(experiment.recipe, section, told)
            samples += [replace(sample, source=number) for sample in rows.few]
            count += len(rows)
    return samples, count


def shortened(items: list[Encoded], limit: int) -> list[Encoded]:
    """Cuts rows to `limit` tokens, as `data.max_length` does; those whose images would be cut stay whole."""
    cut = []
    for item in items:
        labels = item.labels[:limit]
        text = item.labels[limit:]
        fits = len(item.input_ids) <= limit
        lost = item.image_end > limit
        keep = fits or lost or not (labels != IGNORED).any() or not len(text)
        cut.append(item if keep else replace(item, input_ids=item.input_ids[:limit], labels=labels))
    return cut


def _is_here(source: SourceSection) -> bool:
    if is_streamed(source) and ("://" in source.path or any(mark in source.path for mark in "*?[{")):
        return True
    paths = [source.path, *([source.annotations] if source.annotations else [])]
    return all(Path(path).expanduser().exists() for path in paths)


def _spread(samples: list[Sample]) -> list[Sample]:
    if len(samples) <= MOST_ROWS:
        return samples
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(tuple(image.key for image in sample.images) or (str(number),), []).append(number)
    step = -(-len(samples) // MOST_ROWS)
    chosen = {number for group in list(groups.values())[::step] for number in group}
    lengths = [sum(len(turn.text) for turn in sample.turns) for sample in samples]
    chosen |= set(sorted(range(len(samples)), key=lengths.__getitem__)[-LONGEST_KEPT:])
    return [samples[number] for number in sorted(chosen)]


def _assumed(encoder: Encoder, length: int) -> Encoded:
    """One image, then text that is all learned."""
    if encoder.stock is not None:
        return _assumed_stock(encoder, encoder.stock, length)
    image = min(encoder.image_tokens, length - 1)
    ids = np.full(length, encoder.tokenizer.eos_token_id or 0, np.int32)
    ids[:image] = encoder.image_token_id
    labels = np.where(np.arange(length) < image, IGNORED, ids).astype(np.int32)
    prompt = image if encoder.apart else None
    return Encoded(ids, labels, (ImageRef("assumed"),), Sample((), (), "assumed"), image, prompt)


def _assumed_stock(encoder: Encoder, stock: StockInputs, length: int) -> Encoded:
    """The same of a processor that goes by sizes: the picture of an everyday size, or as much as fits."""
    width, height = ASSUMED_SIZE
    while True:
        text = stock.expansions(((width, height),))[0]
        image = np.asarray(encoder.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        if len(image) < length or min(width, height) <= SMALLEST_SIDE:
            break
        width, height = width // 2, height // 2
    rest = max(length - len(image), 1)
    ids = np.concatenate([image, np.full(rest, encoder.tokenizer.eos_token_id or 0, np.int32)])
    labels = np.where(np.arange(len(ids)) < len(image), IGNORED, ids).astype(np.int32)
    shown = ImageRef(f"assumed {width} x {height}", picture=Image.new("RGB", (width, height), "white"))
    end = int(np.flatnonzero(image == stock.token)[-1]) + 1
    return Encoded(ids, labels, (shown,), Sample((), (), "assumed"), end)


def _pixels(image: ImageRef) -> str:
    width, height = image.picture.size
    return f"{width:,} x {height:,}"


def _image_tokens(encoder: Encoder, row: Encoded) -> int:
    return int((row.input_ids == encoder.image_token_id).sum())
