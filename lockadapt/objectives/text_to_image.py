"""Text-to-image: an image's tokens behind its caption, learned as the stock Janus class generates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from lockadapt.architectures import generation_of, layout_of
from lockadapt.architectures.base import ImageCodec, unwrap_model
from lockadapt.data.batch import Batch, left_padded, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import Frozen, ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.objectives.base import (
    EvaluationContext,
    Objective,
    Progress,
    Report,
    Row,
    prediction_row,
)
from lockadapt.objectives.head import CHUNK_BYTES, head_input
from lockadapt.objectives.image_generation import ImageGenerationConfig, generation_prompts
from lockadapt.objectives.image_samples import SHOWN, ImageSamples

AT_ONCE = 512
_DRAWN = ("prompt_dropped", "view", "misread")


@dataclass(frozen=True, eq=False)
class EncodedPrompt(Encoded):
    """A prompt for image generation.

    `kept` bool (tokens,): what the stock class leaves of it in an unconditional prompt.
    """

    kept: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class TextToImage(Objective):
    """Cross-entropy of an image's tokens given its caption.

    `prompt_drop` is the share of training prompts that are replaced by the stock class's unconditional
    prompt, which classifier-free guidance needs (arXiv 2207.12598). `image_token_noise` is the share of image
    tokens that the model reads wrongly in training, at random: it learns to go on from its own mistakes, and
    small data by heart less. With `crops` each training image is replaced, ten times of eleven, by one of its
    ten crops, half of them mirrored. `probe` is the tower of the probe that judges generated images, if any;
    the other fields say how evaluation generates.
    """

    prompt_drop: float = 0.1
    image_token_noise: float = 0.0
    crops: bool = False
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generation_seed: int = 0
    probe: str | None = None

    kind: ClassVar[str] = "t2i"
    drawable: ClassVar[bool] = False  # image tokens are computed of all images first

    @property
    def rows(self) -> str:
        """Captions, which are its prompts."""
        return "caption"

    @property
    def parts(self) -> tuple[str, ...]:
        """What generates images."""
        return ("generation",)

    @property
    def frozen(self) -> Frozen:
        """Image tokens of the images, or of ten crops of them as well."""
        return "crops" if self.crops else "image_tokens"

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Encodes captions as the prompts that the stock processor makes of them for image generation.

        Args:
            encoder: of the model's processor.
            samples: rows with one image and one caption each.
            progress: told (done, all).

        Returns:
            The encoded rows, and what became of the others.

        Raises:
            DataError: a sample has not exactly one image, or the processor has no generation prompts.
        """
        processor, report = encoder.processor, EncodeReport()
        if not hasattr(processor, "image_start_token"):
            raise DataError(
                f"{type(processor).__name__} does not support prompts for image generation",
                fix="give model.image_tokenizer, or start from a Janus checkpoint",
            )
        start = encoder.tokenizer.convert_tokens_to_ids(processor.image_start_token)
        for first in range(0, len(samples), AT_ONCE):
            part = samples[first : first + AT_ONCE]
            for sample, ids in zip(
                part, generation_prompts(processor, [s.answer for s in part]), strict=True
            ):
                if not encoder.allow_special_tokens:
                    encoder.controls.refuse(sample.answer, sample.where)
                if len(sample.images) != 1:
                    raise DataError(
                        f"{len(sample.images)} images for one caption",
                        where=sample.where,
                        fix="give every caption one image",
                    )
                if len(ids) + processor.num_image_tokens - 1 > encoder.max_length:
                    report.dropped.append(sample.where)
                    continue
                kept = (ids == start) | (ids == encoder.tokenizer.bos_token_id)
                labels = np.full_like(ids, IGNORED)
                report.encoded.append(EncodedPrompt(ids, labels, sample.images, sample, kept=kept))
            if progress:
                progress(first + len(part), len(samples))
        return report

    def collate(
        self,
        items: Sequence[Encoded],
        images: ImageInputs,
        pad_id: int,
        name: str,
        max_row_tokens: int | None = None,
    ) -> Batch:
        """Collates one row an image, prompts padded on the left as for the stock `generate`.

        Args:
            items: encoded rows.
            images: give the image token ids.
            pad_id: the token that fills up.
            name: of the objective, for the batch.
            max_row_tokens: not used; rows of this objective are not packed.

        Returns:
            `input_ids`, `attention_mask` int64 and `unconditional_ids` int64 (rows, tokens);
            `image_token_ids`, and `image_crops` where the images give them.
        """
        input_ids, attention_mask = left_padded([item.input_ids.tolist() for item in items], pad_id)
        unconditional = [
            np.where(item.kept, item.input_ids, pad_id).tolist()  # type: ignore[attr-defined]
            for item in items
        ]
        return {
            "objective": name,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "unconditional_ids": left_padded(unconditional, pad_id)[0],
            **images([image for item in items for image in item.images]),
        }

    def terms(self, batch: Batch) -> int:
        """The image tokens."""
        return batch["image_token_ids"].numel()

    def random_numbers(self, model: nn.Module, batch: Batch, rows: int) -> Batch:
        """Which prompts are dropped, which view of an image is learned, which image tokens are misread.

        From torch's CPU generator.

        Args:
            model: says how large the codebook is.
            batch: says how many tokens and views an image has.
            rows: images.

        Returns:
            `prompt_dropped` bool (rows, 1), `view` int64 (rows,), `misread` bool and `misread_as` int64
            (rows, image tokens), those that this objective uses.
        """
        drawn: Batch = {}
        if self.prompt_drop:
            drawn["prompt_dropped"] = torch.rand(rows, 1) < self.prompt_drop
        if "image_crops" in batch:
            drawn["view"] = torch.randint(batch["image_crops"].shape[1] + 1, (rows,))
        if self.image_token_noise:
            shape = (rows, batch["image_token_ids"].shape[1])
            drawn["misread"] = torch.rand(shape) < self.image_token_noise
            drawn["misread_as"] = torch.randint(_codec(model).codebook_size, shape)
        return drawn

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Report]:
        """Mean over all image tokens.

        Random numbers of training are those of the batch, or are drawn here.
        """
        ids, image_token_ids = batch["input_ids"], batch["image_token_ids"]
        if model.training and not any(name in batch for name in _DRAWN):
            drawn = self.random_numbers(model, batch, len(ids))
            batch = {**batch, **{name: tensor.to(ids.device) for name, tensor in drawn.items()}}
        if model.training and "prompt_dropped" in batch:
            ids = torch.where(batch["prompt_dropped"], batch["unconditional_ids"], ids)
        if model.training and "view" in batch:
            views = torch.cat([image_token_ids[:, None], batch["image_crops"]], dim=1)
            image_token_ids = views[
                torch.arange(len(image_token_ids), device=image_token_ids.device), batch["view"]
            ]
        read = image_token_ids
        if model.training and "misread" in batch:
            read = torch.where(batch["misread"], batch["misread_as"], image_token_ids)
        losses, correct = image_token_losses(model, ids, batch["attention_mask"], image_token_ids, read)
        tokens = torch.tensor(float(losses.numel()))
        return losses.mean(), {"tokens": tokens, "token_accuracy": correct.float() / losses.numel()}

    def callbacks(self, folder: Path, processor: Any, rows: Sequence[Encoded]) -> list[TrainerCallback]:
        """Images for the same captions at every checkpoint."""
        return [ImageSamples(folder, processor, self.generation_config(SHOWN), rows)]

    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Scores true image tokens by cross-entropy, and those generated for the captions by perplexity.

        Args:
            context: lends model and images.
            samples: the rows to score.

        Returns:
            `{"cross_entropy", "uniform", "codebook_perplexity", "n"}`, with `uniform` = ln(codebook size),
            what guessing gives, and `"probe"` where there is one; and each row's generated tokens.
        """
        codebook_size = _codec(context.model).codebook_size
        generated = context.generate_images([sample.answer for sample in samples], self.generation_config())
        used = torch.bincount(generated.flatten(), minlength=codebook_size).double()
        share = used / used.sum().clamp_min(1)
        scores: dict[str, Any] = {
            "cross_entropy": self._cross_entropy(context, samples),
            "uniform": float(np.log(codebook_size)),
            "codebook_perplexity": float(torch.exp(-torch.special.xlogy(share, share).sum())),
            "n": len(samples),
        }
        judged = context.probe(self.probe, samples, generated) if self.probe is not None else None
        if judged is not None:
            scores["probe"] = judged
        rows = [
            prediction_row(sample, " ".join(map(str, row.tolist())))
            for sample, row in zip(samples, generated, strict=True)
        ]
        return scores, rows

    def generation_config(self, batch_size: int = 64) -> ImageGenerationConfig:
        """How this objective's fields say that images are generated."""
        return ImageGenerationConfig(
            self.generation_seed, self.temperature, self.top_k, self.top_p, self.guidance_scale, batch_size
        )

    @torch.no_grad()
    def _cross_entropy(self, context: EvaluationContext, samples: Sequence[Sample]) -> float:
        context.model.eval()
        items = self.encode(context.encoder, samples).encoded
        device, pad = next(context.model.parameters()).device, context.encoder.tokenizer.pad_token_id
        total = tokens = 0.0
        for start in range(0, len(items), context.batch_size):
            part = items[start : start + context.batch_size]
            batch = on_device(self.collate(part, context.images, pad, self.kind), device)
            loss, report = self.loss(context.model, batch)
            total, tokens = total + float(loss * report["tokens"]), tokens + float(report["tokens"])
            if context.progress:
                context.progress(start + len(part), len(items))
        return total / max(tokens, 1.0)


def image_token_losses(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    image_token_ids: Tensor,
    read: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every image token after its prompt; as in `generate`, without positions.

    Args:
        model: a stock Janus, possibly wrapped by PEFT or DDP.
        input_ids: int64 (rows, tokens), padded on the left, ending with the begin-of-image token.
        attention_mask: int64 (rows, tokens).
        image_token_ids: int64 (rows, image tokens).
        read: what the model reads in their place, of the same shape; default: the same.

    Returns:
        float32 (rows * image tokens,) with graph, and how many tokens were the likeliest, int64 without.
    """
    base = unwrap_model(model)
    generation, head = generation_of(base), base.get_submodule(layout_of(base).head)
    prompt = base.get_input_embeddings()(input_ids)
    # What stands before the first image token is the prompt, so the last one is predicted but never read.
    embeddings = generation.embed(base, (image_token_ids if read is None else read)[:, :-1])
    predicting = torch.zeros(
        len(image_token_ids), prompt.shape[1] + embeddings.shape[1], dtype=torch.bool, device=prompt.device
    )
    predicting[:, prompt.shape[1] - 1 :] = True
    inputs = {
        "inputs_embeds": torch.cat([prompt, embeddings.to(prompt.dtype)], dim=1),
        "attention_mask": torch.cat([attention_mask, attention_mask.new_ones(embeddings.shape[:2])], dim=1),
    }
    hidden = head_input(model, head, inputs, predicting)
    return _chunked(
        partial(generation.logits, base), _codec(base).codebook_size, hidden, image_token_ids.flatten()
    )


def _codec(model: nn.Module) -> ImageCodec:
    return generation_of(model).codec(unwrap_model(model))


def _chunked(
    head: Callable[[Tensor], Tensor], codebook_size: int, hidden: Tensor, image_token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in chunks; the logits of all but one chunk are computed again for the gradient."""

    def part(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(-1) == targets).sum()

    rows = max(1, CHUNK_BYTES // (4 * codebook_size))
    if len(image_token_ids) <= rows:
        return part(hidden, image_token_ids)
    done = [
        checkpoint(part, states, targets, use_reentrant=False)
        for states, targets in zip(hidden.split(rows), image_token_ids.split(rows), strict=True)
    ]
    return torch.cat([losses for losses, _ in done]), torch.stack([count for _, count in done]).sum()
