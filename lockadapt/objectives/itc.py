"""Image-text contrastive learning: images and texts that belong together come to lie side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.features import projector_input
from lockadapt.data.batch import Batch, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError, RecipeError
from lockadapt.features.policy import ImagePolicy
from lockadapt.features.texts import KeptTexts, keep_texts
from lockadapt.metrics.late_interaction import maxsim
from lockadapt.metrics.retrieval import candidates, retrieval_scores
from lockadapt.metrics.zero_shot import class_embeddings, zero_shot_scores
from lockadapt.models.query_tokens import query_token, query_token_ids
from lockadapt.models.texts import Pooling
from lockadapt.objectives.base import EvaluationContext, Objective, Progress, Report, Row
from lockadapt.objectives.gather import gather
from lockadapt.objectives.late_interaction import gathered_tokens, late_loss, stacked
from lockadapt.objectives.retrieval import (
    add_retrieval,
    embed_features,
    embed_sequences,
    embed_states,
    in_chunks,
    retrieval_of,
)
from lockadapt.objectives.similarity import Contrast, Kind, contrastive_loss
from lockadapt.objectives.temperature import Temperature

IMAGES = ("pixel_values", "image_features", "image_scales")
_CAPTION = "\x00"
"""Stands for a caption where a frame is looked for: no caption holds it."""

SHOWN = 5
"""Images that a prediction names."""


@dataclass(frozen=True, eq=False)
class EncodedPair(Encoded):
    """An image and a text; nothing is labelled.

    Attributes:
        image_ids: int32, the image's sequence; `input_ids` is the text's.
        negatives: sequences of texts that do not belong to the image.
        keys: of the image, of the text, and of the negatives: what has the same key is the same.
        kept: states of the texts, where the text model is frozen.
    """

    image_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    negatives: tuple[np.ndarray, ...] = ()
    keys: tuple[int, ...] = ()
    kept: KeptTexts | None = None


@dataclass(frozen=True)
class ImageText(Objective):
    """InfoNCE or the sigmoid loss between images and their texts; scored by retrieval both ways.

    Attributes:
        mode: `vlm` sends both sides through the whole model; `dual` compares what the frozen tower makes of
            an image with what the LLM makes of a text (LiT, arXiv 2111.07991), in a dual encoder.
        contrast: the loss, `infonce` (arXiv 2103.00020) or `sigmoid` (arXiv 2303.15343).
        dimension: of embeddings.
        queries: learned tokens behind image and text; none in a dual encoder.
        pooling: reads the last token, the mean over all, or a text encoder's own pooler; `tokens` embeds
            every token, and compares by late interaction (`late_loss`).
        head: of a dual encoder: `linear` projections, or an `mlp` of two layers with GELU between.
        scale: the factor on cosines that training starts with.
        learn_scale: whether it is learned.
        feature_dropout: share of the tower's outputs that are zeroed in training.
        chunk: images or texts at a time; the loss sees all of a batch.
        image_prompt, text_prompt: what the user says beside an image, and around `{caption}`.
        templates: with `{}` for the class; given, the test rows' texts are classes of a zero-shot
            classification.
    """

    batch_size: int | None = 256
    mode: Literal["vlm", "dual"] = "vlm"
    contrast: Kind = "infonce"
    dimension: int = 128
    queries: int = 1
    pooling: Pooling | None = None
    head: Literal["linear", "mlp"] = "linear"
    scale: float | None = None
    learn_scale: bool = True
    feature_dropout: float = 0.0
    chunk: int = 64
    image_prompt: str = ""
    text_prompt: str = "{caption}"
    templates: tuple[str, ...] = ()

    kind: ClassVar[str] = "itc"
    divisible: ClassVar[bool] = False

    @property
    def scored_as(self) -> str:
        """What it is good for."""
        return "retrieval"

    @property
    def rows(self) -> str:
        """Captions, which are its texts."""
        return "caption"

    @property
    def parts(self) -> tuple[str, ...]:
        """A dual encoder has no projector."""
        return ("retrieval",) if self.mode == "dual" else ("projector", "retrieval")

    @property
    def query_tokens(self) -> int:
        """See `Objective`."""
        return 0 if self.mode == "dual" else self.queries

    def prepare(self, model: nn.Module) -> None:
        """Adds the embedding projection, temperature and bias.

        Args:
            model: a Transformers model, possibly wrapped by PEFT.

        Raises:
            RecipeError: a dual encoder where the whole model shall embed, or the other way round.
        """
        if architecture_of(model).embeds_apart != (self.mode == "dual"):
            raise RecipeError(
                f"{type(unwrap_model(model)).__name__} cannot be trained in this mode",
                where=f"objectives.….mode: {self.mode}",
                fix="mode dual wants llm and tower, or a dual encoder as vlm; mode vlm any other model",
            )
        if architecture_of(model).whole_llm:
            raise RecipeError(
                f"{type(unwrap_model(model)).__name__} keeps its LLM with its head, so nothing embeds in it",
                where="objectives",
                fix="choose another model.fusion, or train retrieval alone (mode dual)",
            )
        temperature = Temperature(self.contrast, (self.batch_size or 2) - 1, self.scale, self.learn_scale)
        add_retrieval(model, self.dimension, temperature, self.pooling, self.head == "mlp")

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Encodes captions as sequences that end with the query tokens, and the one that all images share.

        Args:
            encoder: of the model's processor.
            samples: rows with one image and one caption each.
            progress: told (done, all).

        Returns:
            The encoded rows, and what became of the others.

        Raises:
            DataError: a row without exactly one image, or a caption that fills the context.
        """
        report = EncodeReport()
        image_ids = np.zeros(0, np.int32) if self.mode == "dual" else self._image_ids(encoder)
        for number, sample in enumerate(samples, 1):
            if len(sample.images) != 1:
                raise DataError(
                    f"the row has {len(sample.images)} images", where=sample.where, fix="give it one image"
                )
            ids = self._text_ids(encoder, sample.answer, sample.where)
            labels = np.full(len(ids), IGNORED, np.int32)
            negatives = tuple(self._text_ids(encoder, text, sample.where) for text in sample.negatives)
            words = (sample.answer, *sample.negatives)
            keys = (_key(sample.images[0].key), *(_key(text.strip()) for text in words))
            report.encoded.append(
                EncodedPair(
                    ids,
                    labels,
                    sample.images,
                    sample,
                    image_ids=image_ids,
                    negatives=negatives,
                    keys=keys,
                )
            )
            if progress:
                progress(number, len(samples))
        return report

    def keep(self, model: nn.Module, rows: Sequence[Encoded], policy: ImagePolicy) -> list[Encoded]:
        """In a dual encoder whose text model is frozen, the states of all texts."""
        pairs: list[Any] = list(rows)
        if self.mode != "dual":
            return pairs
        texts = [ids for pair in pairs for ids in (pair.input_ids, *pair.negatives)]
        kept = keep_texts(model, texts, retrieval_of(model).pooling, policy)
        return pairs if kept is None else [replace(pair, kept=kept) for pair in pairs]

    def collate(
        self,
        items: Sequence[Encoded],
        images: ImageInputs,
        pad_id: int,
        name: str,
        max_row_tokens: int | None = None,
    ) -> Batch:
        """Every distinct image and every distinct text once, and which of them make pairs.

        Texts that belong to no image of their row stand behind the pairs' texts, without a key of an image.
        """
        pairs: list[Any] = list(items)
        shown = {item.images[0].key: item.images[0] for item in items}
        wrong = [(ids, key) for pair in pairs for ids, key in zip(pair.negatives, pair.keys[2:], strict=True)]
        token_ids = [*(pair.input_ids for pair in pairs), *(ids for ids, _ in wrong)]
        names = [ids.tobytes() for ids in token_ids]
        distinct = dict(zip(names, token_ids, strict=True))
        kept = pairs[0].kept
        texts = (
            _texts(list(distinct.values()), pad_id)
            if kept is None
            else {"text_states": kept([kept.numbers[name] for name in distinct])}
        )
        batch = {
            "objective": name,
            "image_ids": torch.from_numpy(pairs[0].image_ids.astype(np.int64))[None],
            **texts,
            **images(list(shown.values())),
            "image_of": torch.tensor(_numbers(shown, [item.images[0].key for item in items])),
            "text_of": torch.tensor(_numbers(distinct, names)),
            "keys": torch.tensor([pair.keys[:2] for pair in pairs]),
        }
        if wrong:
            batch["negative_keys"] = torch.tensor([(-1, key) for _, key in wrong])
        return batch

    def terms(self, batch: Batch) -> int:
        """The pairs."""
        return len(batch["keys"])

    def in_smaller_chunks(self) -> ImageText | None:
        """Embeds half as many images or texts at a time."""
        return replace(self, chunk=self.chunk // 2) if self.chunk > 1 else None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Report]:
        """See `contrastive_loss`; pairs of one image or of one text count as belonging together.

        Over all processes.
        """
        images = self.embed_images(model, batch)[batch["image_of"]]
        texts = self.embed_texts(model, batch)[batch["text_of"]]
        keys, temperature = gather(batch["keys"]), retrieval_of(model).temperature
        text_keys = batch["keys"]
        if "negative_keys" in batch:
            text_keys = torch.cat([text_keys, batch["negative_keys"]])
        scale = temperature.scale()
        contrast = Contrast(scale, temperature.bias(), self.contrast)
        if self.pooling == "tokens":
            loss = late_loss(gather(images), gathered_tokens(texts), keys, gather(text_keys), contrast)
        else:
            loss = contrastive_loss(gather(images), gather(texts), keys, gather(text_keys), contrast)
        return loss, {"tokens": torch.tensor(float(len(batch["keys"]))), "scale": scale.detach()}

    def embed_images(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings of the distinct images of a batch, L2-normalised.

        Args:
            model: possibly wrapped.
            batch: of `collate`.

        Returns:
            Float32 (images, dimension); of every token, (images, tokens, dimension), with pooling `tokens`.
        """
        names = [name for name in IMAGES if name in batch]
        if self.mode == "dual" and "image_features" in batch:
            return embed_features(model, self._pooled(model, batch))  # too little to be divided

        def embed(part: slice) -> Tensor:
            shown = {name: batch[name][part] for name in names}
            if self.mode == "dual":
                return embed_features(model, self._pooled(model, shown))
            ids = batch["image_ids"].expand(len(shown[names[0]]), -1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}
            return embed_sequences(model, inputs)

        return in_chunks(model, len(batch[names[0]]), self.chunk, embed)

    def _pooled(self, model: nn.Module, shown: dict[str, Tensor]) -> Tensor:
        """Pooled images (images, 1, channels), remembered or made now."""
        if "pixel_values" in shown:
            features = projector_input(model, shown["pixel_values"])
        else:
            features = shown["image_features"] * shown.get("image_scales", 1)
        return F.dropout(features, self.feature_dropout, training=model.training)

    def embed_texts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings of the distinct texts of a batch, L2-normalised.

        Args:
            model: possibly wrapped.
            batch: of `collate`.

        Returns:
            As `embed_images`; padding of texts is zeros.
        """
        if "text_states" in batch:
            return embed_states(model, batch["text_states"])
        ids, mask = batch["text_ids"], batch["text_mask"]

        def embed(part: slice) -> Tensor:
            # Embeddings of tokens are as many for all texts of a batch.
            longest = mask.shape[1] if self.pooling == "tokens" else int(mask[part].sum(1).max())
            inputs = {"input_ids": ids[part, :longest], "attention_mask": mask[part, :longest]}
            return embed_sequences(model, inputs)

        return in_chunks(model, len(ids), self.chunk, embed)

    def after_step(self, model: nn.Module) -> None:
        """Keeps the temperature within bounds."""
        retrieval_of(model).temperature.clamp_()

    @torch.no_grad()
    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Scores R@K and median rank both ways over all captions; zero-shot accuracy if there are templates.

        Each distinct text is a row, with the images found for it, the best first.
        """
        context.model.eval()
        shown = {sample.images[0].key: sample.images[0] for sample in samples}
        pairs = [(s.images[0].key, text) for s in samples for text in (s.references or (s.answer,))]
        pool = candidates([key for key, _ in pairs], [text for _, text in pairs])
        images = self.image_embeddings(context, [shown[str(key)] for key in pool.images])
        texts = self.text_embeddings(context, pool.texts)
        scores = retrieval_scores(images, texts, pool.pairs)
        if self.templates:
            classes = class_embeddings(
                lambda some: self.text_embeddings(context, some), list(pool.texts), self.templates
            )
            labels = torch.tensor([pool.texts.index(s.answer.strip()) for s in samples])
            of_sample = torch.tensor([pool.images.index(s.images[0].key) for s in samples])
            scores["zero_shot"] = zero_shot_scores(images[of_sample], classes, labels)
        close = maxsim(texts, images) if self.pooling == "tokens" else texts @ images.T
        best = close.topk(min(SHOWN, len(images)), 1).indices.tolist()
        right: dict[int, list[Any]] = {}
        for image, text in pool.pairs.tolist():
            right.setdefault(text, []).append(pool.images[image])
        rows = [
            {"where": "retrieval", "images": [pool.images[i] for i in best[number]], "question": text}
            | {"answer": "", "truth": right[number]}
            for number, text in enumerate(pool.texts)
        ]
        return scores, rows

    @torch.no_grad()
    def image_embeddings(self, context: EvaluationContext, images: Sequence[ImageRef]) -> Tensor:
        """Embeddings of images on the CPU, see `embed_images`, `context.batch_size` at a time."""
        alone = self.mode == "dual"
        ids = None if alone else torch.from_numpy(self._image_ids(context.encoder).astype(np.int64))[None]

        def embed(part: Sequence[ImageRef]) -> Tensor:
            return self.embed_images(
                context.model, _there(context, {"image_ids": ids, **context.images(part)})
            )

        return _over(images, context, embed)

    @torch.no_grad()
    def text_embeddings(self, context: EvaluationContext, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts on the CPU, see `embed_texts`, `context.batch_size` at a time."""
        pad = context.encoder.tokenizer.pad_token_id

        def embed(part: Sequence[str]) -> Tensor:
            ids = [self._text_ids(context.encoder, text, "text") for text in part]
            return self.embed_texts(context.model, _there(context, _texts(ids, pad)))

        return _over(texts, context, embed)

    def frames(self, encoder: Encoder) -> tuple[str, str, str]:
        """Gives what stands before a text, behind it, and for an image, query tokens and bos included.

        The image's holds the image marker once, not yet repeated for every patch; it is empty in a dual
        encoder, whose tokenizer adds bos itself.

        Args:
            encoder: of the model's processor.

        Returns:
            (before, behind, image), as text.

        Raises:
            DataError: the text stands in more than one place.
        """
        before, after = _around(self.text_prompt, "{caption}")
        if self.mode == "dual":
            return before, after, ""
        queries = "".join(self._queries(encoder))
        prompt = Sample((), (Turn("user", f"{before}{_CAPTION}{after}"),), "text")
        before, after = _around(encoder.render(prompt, prompt=True), _CAPTION)
        return before, after + queries, encoder.render(self._shown(), prompt=True) + queries

    def _shown(self) -> Sample:
        return Sample((ImageRef("any"),), (Turn("user", self.image_prompt, images=1),), "image")

    def _queries(self, encoder: Encoder) -> list[str]:
        query_token_ids(encoder.tokenizer, self.query_tokens)  # says so if there are none
        return [query_token(number) for number in range(1, self.query_tokens + 1)]

    def _image_ids(self, encoder: Encoder) -> np.ndarray:
        return self._sequence(encoder, self._shown(), "objectives.….image_prompt")

    def _text_ids(self, encoder: Encoder, text: str, where: str) -> np.ndarray:
        words = self.text_prompt.replace("{caption}", text.strip())
        if self.mode == "dual":
            return _within(encoder, encoder.text_ids(words, where, special=True), where)
        return self._sequence(encoder, Sample((), (Turn("user", words),), where), where)

    def _sequence(self, encoder: Encoder, sample: Sample, where: str) -> np.ndarray:
        queries = self._queries(encoder)
        for marker in filter(None, (encoder.image_token, *queries)):
            if any(marker in turn.text for turn in sample.turns):
                raise DataError(f"the text holds the marker {marker!r}", where=where, fix="remove it")
        text = encoder.expand(encoder.render(sample, prompt=True)) + "".join(queries)
        text_only = sample.turns[0].text if not sample.images else ""
        return _within(encoder, encoder.text_ids(text, where, text_only, special=False), where)


def _within(encoder: Encoder, ids: Sequence[int], where: str) -> np.ndarray:
    if len(ids) > encoder.max_length:
        raise DataError(
            f"the sequence has {len(ids)} tokens, the limit is {encoder.max_length}",
            where=where,
            fix="shorten the text, or raise data.max_length",
        )
    return np.asarray(ids, np.int32)


def _around(text: str, marker: str) -> tuple[str, str]:
    if text.count(marker) != 1:
        raise DataError(
            f"a caption stands in {text.count(marker)} places",
            where="objectives.….text_prompt",
            fix="let it stand in one",
        )
    before, after = text.split(marker)
    return before, after


def _texts(sequences: Sequence[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    return {"text_ids": ids, "text_mask": mask}


def _numbers(known: Mapping[Any, Any], wanted: Sequence[Any]) -> list[int]:
    numbers = {key: number for number, key in enumerate(known)}
    return [numbers[key] for key in wanted]


def _key(text: str) -> int:
    """The same on every process and in every run: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _there(context: EvaluationContext, batch: Batch) -> Batch:
    return on_device(batch, next(context.model.parameters()).device)


def _over(
    things: Sequence[Any], context: EvaluationContext, embed: Callable[[Sequence[Any]], Tensor]
) -> Tensor:
    parts = []
    for start in range(0, len(things), context.batch_size):
        parts.append(embed(things[start : start + context.batch_size]).cpu())
        if context.progress:
            context.progress(min(start + context.batch_size, len(things)), len(things))
    return stacked(parts)
