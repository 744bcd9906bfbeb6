"""Image-text contrastive learning: images and texts that belong together come to lie side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lockadapt.data.batch import Batch, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError
from lockadapt.metrics.retrieval import candidates, retrieval_scores
from lockadapt.metrics.zero_shot import class_embeddings, zero_shot_scores
from lockadapt.models.query_tokens import query_token, query_token_ids
from lockadapt.objectives.base import Bench, Frozen, Progress, Report, Row
from lockadapt.objectives.gather import gather
from lockadapt.objectives.retrieval import Pooling, add_retrieval, embed_sequences, in_chunks, retrieval_of
from lockadapt.objectives.similarity import Kind, contrastive_loss

IMAGES = ("pixel_values", "image_features", "image_scales")
SHOWN = 5
"""Images that a prediction names."""


@dataclass(frozen=True, eq=False)
class EncodedPair(Encoded):
    """An image and a text: `input_ids` is the text's sequence, `image_ids` int32 the image's; nothing is labelled."""

    image_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True)
class ImageText:
    """InfoNCE or the sigmoid loss between images and their texts; scored by retrieval both ways.

    See `Objective` for the other attributes and methods.

    Attributes:
        mode: `vlm` sends both sides through the whole model.
        contrast: the loss, `infonce` (arXiv 2103.00020) or `sigmoid` (arXiv 2303.15343).
        dimension: of embeddings.
        query_tokens: learned tokens behind image and text.
        pooling: reads the last token, or the mean over all.
        chunk: images or texts at a time; the loss sees all of a batch.
        image_prompt, text_prompt: what the user says beside an image, and around `{caption}`.
        templates: with `{}` for the class; given, the test rows' texts are classes of a zero-shot classification.
    """

    weight: float = 1.0
    ratio: float = 1.0
    batch_size: int | None = 256
    mode: Literal["vlm"] = "vlm"
    contrast: Kind = "infonce"
    dimension: int = 128
    query_tokens: int = 1
    pooling: Pooling = "last"
    chunk: int = 64
    image_prompt: str = ""
    text_prompt: str = "{caption}"
    templates: tuple[str, ...] = ()

    kind: ClassVar[str] = "itc"
    scored_as: ClassVar[str] = "retrieval"
    rows: ClassVar[str] = "caption"
    parts: ClassVar[tuple[str, ...]] = ("projector", "retrieval")
    frozen: ClassVar[Frozen] = "tower"
    packs: ClassVar[bool] = False
    plannable: ClassVar[bool] = False

    def prepare(self, model: nn.Module) -> None:
        """Adds the embedding projection, temperature and bias."""
        add_retrieval(model, self.dimension, self.contrast, (self.batch_size or 2) - 1)

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """The caption as a sequence that ends with the query tokens, and the one that all images share.

        Raises:
            DataError: a row without exactly one image, or a caption that fills the context.
        """
        report, image_ids = EncodeReport(), self._image_ids(encoder)
        for number, sample in enumerate(samples, 1):
            if len(sample.images) != 1:
                raise DataError(
                    f"the row has {len(sample.images)} images", where=sample.where, fix="give it one image"
                )
            ids = self._text_ids(encoder, sample.answer, sample.where)
            labels = np.full(len(ids), IGNORED, np.int32)
            report.encoded.append(EncodedPair(ids, labels, sample.images, sample, 0, image_ids))
            if progress:
                progress(number, len(samples))
        return report

    def collate(
        self,
        items: Sequence[Encoded],
        images: ImageInputs,
        pad_id: int,
        name: str,
        row_tokens: int | None = None,
    ) -> Batch:
        """Every distinct image and every distinct text once, and which of them make pairs."""
        first: Any = items[0]
        shown = {item.images[0].key: item.images[0] for item in items}
        said = {item.input_ids.tobytes(): item.input_ids for item in items}
        image_of = [list(shown).index(item.images[0].key) for item in items]
        text_of = _places(said, [item.input_ids.tobytes() for item in items])
        keys = [(_key(item.images[0].key), _key(item.sample.answer.strip())) for item in items]
        return {
            "objective": name,
            "image_ids": torch.from_numpy(first.image_ids.astype(np.int64))[None],
            **_texts(list(said.values()), pad_id),
            **images(list(shown.values())),
            "image_of": torch.tensor(image_of),
            "text_of": torch.tensor(text_of),
            "keys": torch.tensor(keys),
        }

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Report]:
        """See `contrastive_loss`; pairs of one image or of one text count as belonging together. Over all processes."""
        images = self.embed_images(model, batch)[batch["image_of"]]
        texts = self.embed_texts(model, batch)[batch["text_of"]]
        keys, temperature = gather(batch["keys"]), retrieval_of(model).temperature
        scale, bias = temperature.scale(), temperature.bias()
        loss = contrastive_loss(gather(images), gather(texts), keys, keys, scale, bias, self.contrast)
        return loss, {"tokens": torch.tensor(float(len(batch["keys"]))), "scale": scale.detach()}

    def embed_images(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings of the distinct images of a batch, float32 (images, dimension), L2-normalised."""
        names = [name for name in IMAGES if name in batch]

        def embed(part: slice) -> Tensor:
            shown = {name: batch[name][part] for name in names}
            ids = batch["image_ids"].expand(len(shown[names[0]]), -1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}
            return embed_sequences(model, inputs, self.pooling)

        return in_chunks(model, len(batch[names[0]]), self.chunk, embed)

    def embed_texts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings of the distinct texts of a batch, float32 (texts, dimension), L2-normalised."""
        ids, mask = batch["text_ids"], batch["text_mask"]

        def embed(part: slice) -> Tensor:
            longest = int(mask[part].sum(1).max())
            inputs = {"input_ids": ids[part, :longest], "attention_mask": mask[part, :longest]}
            return embed_sequences(model, inputs, self.pooling)

        return in_chunks(model, len(ids), self.chunk, embed)

    def after_step(self, model: nn.Module) -> None:
        """Keeps the temperature within bounds."""
        retrieval_of(model).temperature.clamp_()

    @torch.no_grad()
    def evaluate(self, bench: Bench, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Row]]:
        """Recall and median rank both ways over all captions of the rows; zero-shot accuracy where templates are given.

        Each distinct text is a row, with the images found for it, the best first.
        """
        bench.model.eval()
        shown = {sample.images[0].key: sample.images[0] for sample in samples}
        said = [(s.images[0].key, text) for s in samples for text in (s.references or (s.answer,))]
        found = candidates([key for key, _ in said], [text for _, text in said])
        images = self.image_embeddings(bench, [shown[str(key)] for key in found.images])
        texts = self.text_embeddings(bench, found.texts)
        scores = retrieval_scores(images, texts, found.pairs)
        if self.templates:
            classes = class_embeddings(
                lambda some: self.text_embeddings(bench, some), list(found.texts), self.templates
            )
            labels = torch.tensor([found.texts.index(s.answer.strip()) for s in samples])
            of_sample = torch.tensor([found.images.index(s.images[0].key) for s in samples])
            scores["zero_shot"] = zero_shot_scores(images[of_sample], classes, labels)
        best = (texts @ images.T).topk(min(SHOWN, len(images)), 1).indices.tolist()
        right: dict[int, list[Any]] = {}
        for image, text in found.pairs.tolist():
            right.setdefault(text, []).append(found.images[image])
        rows = [
            {"where": "retrieval", "images": [found.images[i] for i in best[number]], "question": text}
            | {"answer": "", "truth": right[number]}
            for number, text in enumerate(found.texts)
        ]
        return scores, rows

    @torch.no_grad()
    def image_embeddings(self, bench: Bench, images: Sequence[ImageRef]) -> Tensor:
        """Embeddings of images, float32 (images, dimension) on the CPU, `bench.batch_size` at a time."""
        ids = torch.from_numpy(self._image_ids(bench.encoder).astype(np.int64))[None]

        def embed(part: Sequence[ImageRef]) -> Tensor:
            return self.embed_images(bench.model, _there(bench, {"image_ids": ids, **bench.images(part)}))

        return _over(images, bench, embed)

    @torch.no_grad()
    def text_embeddings(self, bench: Bench, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, float32 (texts, dimension) on the CPU, `bench.batch_size` at a time."""
        pad = bench.encoder.tokenizer.pad_token_id

        def embed(part: Sequence[str]) -> Tensor:
            ids = [self._text_ids(bench.encoder, text, "text") for text in part]
            return self.embed_texts(bench.model, _there(bench, _texts(ids, pad)))

        return _over(texts, bench, embed)

    def _image_ids(self, encoder: Encoder) -> np.ndarray:
        turn = Turn("user", self.image_prompt, images=1)
        shown = Sample((ImageRef("any"),), (turn,), "image")
        return self._sequence(encoder, shown, "objectives.….image_prompt")

    def _text_ids(self, encoder: Encoder, text: str, where: str) -> np.ndarray:
        words = self.text_prompt.replace("{caption}", text.strip())
        return self._sequence(encoder, Sample((), (Turn("user", words),), where), where)

    def _sequence(self, encoder: Encoder, sample: Sample, where: str) -> np.ndarray:
        query_token_ids(encoder.tokenizer, self.query_tokens)  # says so if there are none
        queries = [query_token(number) for number in range(1, self.query_tokens + 1)]
        for marker in (encoder.image_token, *queries):
            if any(marker in turn.text for turn in sample.turns):
                raise DataError(f"the text holds the marker {marker!r}", where=where, fix="remove it")
        text = encoder.expand(encoder.render(sample, prompt=True)) + "".join(queries)
        ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > encoder.max_length:
            raise DataError(
                f"the sequence has {len(ids)} tokens, the limit is {encoder.max_length}",
                where=where,
                fix="shorten the text, or raise data.max_length",
            )
        return np.asarray(ids, np.int32)


def _texts(sequences: Sequence[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    return {"text_ids": ids, "text_mask": mask}


def _places(known: dict[bytes, Any], wanted: Sequence[bytes]) -> list[int]:
    numbers = {key: number for number, key in enumerate(known)}
    return [numbers[key] for key in wanted]


def _key(text: str) -> int:
    """The same on every process and in every run: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _there(bench: Bench, batch: Batch) -> Batch:
    return on_device(batch, next(bench.model.parameters()).device)


def _over(things: Sequence[Any], bench: Bench, embed: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    parts = []
    for start in range(0, len(things), bench.batch_size):
        parts.append(embed(things[start : start + bench.batch_size]).cpu())
        if bench.progress:
            bench.progress(min(start + bench.batch_size, len(things)), len(things))
    return torch.cat(parts)
