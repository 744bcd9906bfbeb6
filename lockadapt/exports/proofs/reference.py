"""A trained model on its probe samples: logits of images, of images swapped, of text alone; answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.features import beside_text, reads_text_alone
from lockadapt.data.batch import on_device
from lockadapt.data.encode import Encoder
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import PixelInputs, ProcessorInputs, image_part, pixel_inputs
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError
from lockadapt.exports.proofs.rounding import Rounding, rounded_again
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import tolerance
from lockadapt.objectives.answer_tokens import answer_start, model_inputs, writer_of

MAX_PIXELS = 50_000_000
NEW_TOKENS = 20
POSITIONS = 64
"""Logits are kept at the last so many places of a sample that hold no image token: nobody samples from the
others, and those of all 576 patches of an image over 128,000 words would be 300 MB."""
BOTH_SIDES = 2
"""Times the largest change of a logit by a rounding more in every block: each side has its own."""
LIKELIEST = 8
"""Tokens of every step of an answer whose scores are kept, to see how near a tie another answer is."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        prompt: token ids that it followed.
        tokens: its ids, the one that ends it among them.
        pixel_values: that the prompt's image tokens stand for, as forward takes them; None without images.
        likeliest: int64 (steps, LIKELIEST); `scores`: float32, the same shape, falling.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    pixel_values: Tensor | None
    likeliest: Tensor
    scores: Tensor

    def gap(self, other: Sequence[int]) -> float:
        """How much the trained model preferred its own token where another answer first leaves this one.

        0 for the same answer; at least what the last of `likeliest` lacks for a token that is none of them;
        infinite if one answer goes on where the other stops.
        """
        for step, (mine, theirs) in enumerate(zip(self.tokens, other, strict=False)):
            if mine != theirs:
                row = self.likeliest[step].tolist()
                rank = row.index(theirs) if theirs in row else -1
                return float(self.scores[step, 0] - self.scores[step, rank])
        return 0.0 if len(self.tokens) == len(other) else float("inf")


@dataclass(frozen=True)
class Reference:
    """What the trained model computes on a few real samples.

    Attributes:
        tensors: inputs named `case.argument`. Cases: `sample0` … with their images, `swapped0` … the same
            tokens with other images, `text0` … the same conversations without any image.
        logits: float32 (1, places, vocabulary) by case.
        samples: the conversations that were answered: all with their images, then all without.
        answers: one each.
        dtype: that the model computed in.
        image_effect: the largest change of a logit when images are swapped; None if no sample has an image.
        adapter_kl: mean KL divergence, in nats, between the model with and without its adapter; None without
            adapter.
        rounding: what a rounding more in every block changes; None where the model computes in float32.
    """

    tensors: dict[str, Tensor]
    logits: dict[str, Tensor]
    samples: tuple[Sample, ...]
    answers: tuple[Answer, ...]
    dtype: torch.dtype
    image_effect: float | None
    adapter_kl: float | None
    rounding: Rounding | None = None

    def coarse(self, dtype: torch.dtype) -> torch.dtype:
        """The one of `dtype` and the model's with the larger roundings."""
        return max((self.dtype, dtype), key=lambda candidate: torch.finfo(candidate).eps)

    def allowed(self, dtype: torch.dtype) -> float:
        """How far a logit of a folder stored in `dtype` may lie from the trained model's.

        Real models of many layers round further than `tolerance` knows, each in its own way: measured.
        """
        known = max(tolerance(self.coarse(dtype), logits) for logits in self.logits.values())
        return known if self.rounding is None else max(known, BOTH_SIDES * self.rounding.logit)


@torch.no_grad()
def reference_answers(model: nn.Module, processor: Any, samples: Sequence[Sample]) -> Reference:
    """Runs the trained model, adapter unmerged, on samples with images, images swapped, and text alone.

    Samples that are longer than the model's context are left out, as in training.

    Args:
        model: the trained model, possibly wrapped by PEFT.
        processor: the model's.
        samples: of the probe.

    Returns:
        Logits, float32 on the CPU, and answers.

    Raises:
        DataError: no sample is left.
    """
    model.eval()
    # As the stock processor takes texts that spell control tokens out, so that both sides read the same.
    encoder = model_encoder(model, processor, None, True)
    samples = [sample for sample in samples if encoder.encode([sample]).encoded]
    if not samples:
        raise DataError(
            "no probe sample fits into the model's context, so nothing can be compared", fix="train again"
        )
    pixels = pixel_inputs(processor, MAX_PIXELS)
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    needs_images = encoder.stock is not None and encoder.stock.needs_images
    reads_alone = reads_text_alone(model) and not needs_images
    alone = [without_images(sample) for sample in samples] if reads_alone else []
    tensors: dict[str, Tensor] = {}
    for number, sample in enumerate(samples):
        shown = _ids(encoder, sample)
        if sample.images:
            own = [pixels.picture(image) for image in sample.images]
            tensors |= _case(
                f"sample{number}", _as_taken(model, shown | _image_keys(model, pixels, own, dtype, shown))
            )
            others = _others(sample, samples, pixels)
            if isinstance(pixels, ProcessorInputs):  # the tokens stay those of the sample's own sizes
                others = [other.resize(mine.size) for other, mine in zip(others, own, strict=True)]
            tensors |= _case(
                f"swapped{number}", _as_taken(model, shown | _image_keys(model, pixels, others, dtype, shown))
            )
    unseen = {}
    if architecture_of(model).inputs.no_image is not None:  # its forward wants pixels with every text
        unseen = _image_keys(model, pixels, [Image.new("RGB", (64, 64), "white")], dtype)
    for number, text in enumerate(alone):
        tensors |= _case(f"text{number}", _as_taken(model, _ids(encoder, text)) | unseen)
    logits = {case: model(**inputs).logits.float().cpu() for case, inputs in cases(model, tensors)}
    conversations = (*(sample for sample in samples if sample.images), *alone)
    answers = tuple(_answer(model, encoder, pixels, sample, dtype) for sample in conversations)
    return Reference(
        tensors,
        logits,
        conversations,
        answers,
        dtype,
        image_effect(logits),
        _adapter_kl(model, tensors, logits),
        _rounding(model, tensors, logits, dtype),
    )


def without_images(sample: Sample) -> Sample:
    """The same conversation about no image."""
    turns = tuple(dataclasses.replace(turn, images=0, places=()) for turn in sample.turns)
    return dataclasses.replace(sample, images=(), turns=turns)


def image_effect(logits: dict[str, Tensor]) -> float | None:
    """The largest change of a logit between `sample0` … and `swapped0` …; None if there are none."""
    effects = [
        float((logits[f"swapped{case.removeprefix('sample')}"] - original).abs().max())
        for case, original in logits.items()
        if case.startswith("sample")
    ]
    return max(effects) if effects else None


def cases(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The cases among tensors named `case.argument`, on the model's device."""
    device = next(model.parameters()).device
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        case, argument = name.rsplit(".", 1)
        grouped.setdefault(case, {})[argument] = tensor
    for case, inputs in grouped.items():
        yield case, {name: tensor.to(device) for name, tensor in inputs.items()}


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL divergence in nats, float64 (…, places), from logits (…, places, vocabulary)."""
    log_a, log_b = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _ids(encoder: Encoder, sample: Sample) -> dict[str, Tensor]:
    item = encoder.encode([sample]).encoded[-1]
    ids = torch.from_numpy(item.input_ids.astype("int64"))[None]
    if item.prompt is not None:
        asked, answer = ids[:, : item.prompt], ids[:, item.prompt :]
        return {"input_ids": asked, "attention_mask": torch.ones_like(asked), "decoder_input_ids": answer}
    kept = (ids[0] != encoder.image_token_id).nonzero().flatten()[-POSITIONS:]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": kept}
    if encoder.stock is not None:
        given |= {name: key.of(ids) for name, key in encoder.stock.token_keys.items()}
    return given


def _as_taken(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One row's arguments, as the class takes them."""
    shown = len(inputs["pixel_values"]) if "pixel_values" in inputs else 0
    return beside_text(model, inputs, torch.zeros(shown, dtype=torch.long))


def _image_keys(
    model: nn.Module,
    pixels: PixelInputs | ProcessorInputs,
    pictures: list[Image.Image],
    dtype: torch.dtype,
    tokens: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    if isinstance(pixels, ProcessorInputs):
        made = pixels.stock.image_keys([pictures])
    else:
        made = architecture_of(model).inputs.shown(pixels.values(pictures))
    if isinstance(pixels, ProcessorInputs) and tokens is not None:
        made = {**made, **pixels.stock.row_keys(tokens["input_ids"], made)}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in made.items()}


def _case(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    # Clones, because safetensors takes no tensor twice, and a sample and its swapped one share their tokens.
    return {f"{name}.{argument}": value.clone() for argument, value in inputs.items()}


def _others(
    sample: Sample, samples: Sequence[Sample], pixels: PixelInputs | ProcessorInputs
) -> list[Image.Image]:
    """Swaps each image of a sample for the next of the probe; for its negative where there is only one."""
    known: dict[str, ImageRef] = {image.key: image for sample in samples for image in sample.images}
    keys = list(known)
    if len(keys) == 1:
        return [ImageOps.invert(pixels.picture(image)) for image in sample.images]
    return [pixels.picture(known[keys[(keys.index(image.key) + 1) % len(keys)]]) for image in sample.images]


def _answer(
    model: nn.Module,
    encoder: Encoder,
    pixels: PixelInputs | ProcessorInputs,
    sample: Sample,
    dtype: torch.dtype,
) -> Answer:
    prompt = encoder.prompt_ids(sample)
    ids = torch.tensor([prompt])
    shown = image_part(pixels, [sample.images], ids)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}
    inputs = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in on_device(given, next(model.parameters()).device).items()
    }
    arguments = model_inputs(model, inputs)
    with quiet():  # Janus says at every call which of two lengths counts
        writer, given = writer_of(model, arguments)
        made: Any = writer.generate(
            **given,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            pad_token_id=encoder.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
        )
    best = torch.stack([scores[0].float() for scores in made.scores]).topk(LIKELIEST)
    values = arguments["pixel_values"].cpu() if sample.images else None
    tokens = tuple(made.sequences[0, answer_start(model, len(prompt)) :].tolist())
    return Answer(tuple(prompt), tokens, values, best.indices.cpu(), best.values.cpu())


def _adapter_kl(model: Any, tensors: dict[str, Tensor], logits: dict[str, Tensor]) -> float | None:
    """What the adapter changes: a folder that is no nearer than this cannot be told from one without it."""
    if not hasattr(model, "disable_adapter"):
        return None
    with model.disable_adapter():
        divergences = [
            kl_divergence(logits[case], model(**inputs).logits.float().cpu()).flatten()
            for case, inputs in cases(model, tensors)
            if not case.startswith("swapped")
        ]
    return float(torch.cat(divergences).mean())


def _rounding(
    model: nn.Module, tensors: dict[str, Tensor], logits: dict[str, Tensor], dtype: torch.dtype
) -> Rounding | None:
    if dtype in (torch.float32, torch.float64):
        return None
    with rounded_again(model, dtype):
        moved = {case: model(**inputs).logits.float().cpu() for case, inputs in cases(model, tensors)}
    return Rounding(
        logit=max(float((moved[case] - own).abs().max()) for case, own in logits.items()),
        kl=float(
            torch.cat([kl_divergence(own, moved[case]).flatten() for case, own in logits.items()]).mean()
        ),
    )
