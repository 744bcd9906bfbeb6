"""Whether a text finds its image among others, as a finished contrastive run embeds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError, SetupError
from lockadapt.metrics.retrieval import ranks
from lockadapt.rewards.base import Embeds, Reward, RewardAccess, require


@dataclass(frozen=True)
class RetrievalReward(Reward):
    """The reciprocal rank of a row's image among those of the training rows; in 0..1, 1 is R@1.

    Attributes:
        run: folder of the run that embeds.
        pool: how many training images an answer is compared with at most, beside those of its batch.
        embedder: that run.
        others: embeddings of the pool, float32 (images, dimension), by key.
    """

    name: ClassVar[str] = "retrieval"

    run: str = ""
    pool: int = 256
    embedder: Embeds | None = None
    others: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Opens the run, and embeds the images of the first rows."""
        require(cls.name, samples, lambda sample: len(sample.images) == 1, "one image")
        if access.embedder is None:
            raise SetupError(
                "nothing opens the run that embeds",
                where="rewards.retrieval.run",
                fix="train with `lockadapt train` or `lockadapt.train`",
            )
        reward = cls(**settings, embedder=access.embedder(settings["run"]))
        images = {sample.images[0].key: sample.images[0] for sample in samples}
        chosen = dict(list(images.items())[: reward.pool])
        if len(chosen) < 2:
            raise DataError(
                "the rows show a single image, which every text finds",
                where="rewards.retrieval",
                fix="give rows about more images, or choose another reward",
            )
        return cls(**settings, embedder=reward.embedder, others=reward.embedded(chosen))

    def embedded(self, images: Mapping[str, ImageRef]) -> dict[str, torch.Tensor]:
        """Embeds images by key."""
        assert self.embedder is not None
        return dict(zip(images, self.embedder.images(list(images.values())), strict=True)) if images else {}

    @torch.no_grad()
    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """1 over the rank that `ranks` gives the own image; an empty text scores 0."""
        assert self.embedder is not None
        assert self.others is not None
        shown = {sample.images[0].key: sample.images[0] for sample in samples}
        known = {**self.others, **self.embedded({key: shown[key] for key in shown if key not in self.others})}
        number = {key: column for column, key in enumerate(known)}
        # No text embeds nothing: some tokenizers make no token of it.
        texts = self.embedder.texts([answer.strip() or "-" for answer in answers])
        pairs = torch.tensor([[row, number[sample.images[0].key]] for row, sample in enumerate(samples)])
        own = ranks(texts, torch.stack(list(known.values())), pairs)
        spoken = torch.tensor([bool(answer.strip()) for answer in answers])
        return (spoken / own).tolist()
