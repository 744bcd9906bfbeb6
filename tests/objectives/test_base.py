"""What an objective gets from its base class: enough that a loss and a score make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import Batch
from lockadapt.data.sample import Sample
from lockadapt.objectives import KINDS, Objective, TextToImage
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import EvaluationContext, Report, Row
from lockadapt.objectives.image_samples import SHOWN, ImageSamples
from lockadapt.training.config import GroundingConfig
from lockadapt.training.trainer import GroundingTrainer
from tests.support.rows import vqa_samples


@dataclass(frozen=True)
class Twice(Objective):
    """The smallest objective: twice the cross-entropy of dialogues."""

    kind: ClassVar[str] = "dialogue"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """Return the loss."""
        loss, report = answer_loss(model, batch)
        return 2 * loss, report

    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Return how many samples there are."""
        return {"n": len(samples)}, []


def test_a_loss_and_a_score_make_an_objective(assembled: Assembled, tmp_path: Path) -> None:
    objective = Twice(weight=0.5)
    assert (objective.scored_as, objective.rows, objective.parts) == ("dialogue", "dialogue", ("projector",))
    assert (objective.frozen, objective.query_tokens, objective.packs) == ("tower", 0, False)
    model, processor = load_model(assembled.folder, "float32")
    config = GroundingConfig(
        str(tmp_path / "out"),
        max_steps=5,
        per_device_train_batch_size=4,
        projector_learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
    )
    rows = {"twice": vqa_samples(tmp_path)}
    run = GroundingTrainer(model, config, rows, None, processor, objectives={"twice": objective})
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    run.prove_locked()


def test_an_objective_without_a_loss_is_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]


def test_every_kind_is_an_objective_and_calls_back_only_where_it_says() -> None:
    assert all(
        issubclass(objective, Objective) and objective.kind == kind for kind, objective in KINDS.items()
    )
    calling = {kind: objective().callbacks(Path("samples"), None, []) for kind, objective in KINDS.items()}
    assert [kind for kind, callbacks in calling.items() if callbacks] == ["t2i"]
    (samples,) = TextToImage(guidance_scale=2.0).callbacks(Path("samples"), None, [])
    assert isinstance(samples, ImageSamples)
    assert (samples.folder, samples.settings.guidance_scale, samples.settings.batch_size) == (
        Path("samples"),
        2.0,
        SHOWN,
    )
