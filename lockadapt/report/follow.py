"""Follows the same samples through training: predicted at every validation, shown in the run's report."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt import processes
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.images import open_image
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.sample import Sample
from lockadapt.errors import LockadaptError
from lockadapt.evaluation.context import PredictionContext
from lockadapt.objectives.answer_tokens import AnswerObjective
from lockadapt.objectives.base import prediction_row
from lockadapt.report.numbers import EXACT, is_right
from lockadapt.report.pictures import small
from lockadapt.report.tokens import write_tokens
from lockadapt.report.trackers import TrackedRow, send
from lockadapt.report.write import write_report
from lockadapt.runs.run_folder import FOLLOWED
from lockadapt.training.stage import Session
from lockadapt.tuning.sharding import is_sharded

SAMPLES = 24
SECONDS, SHARE, FIRST = 60.0, 0.0075, 0.5
"""While a run trains, its report is refreshed at most so often, and in at most that share of the time.

The first page is taken to need half a second."""
TRACKED_SIDE = 224
"""Longer side, in pixels, of the pictures that trackers get."""


def follow(session: Session, stage: str, objectives: Mapping[str, Any]) -> list[TrainerCallback]:
    """Gives the callback that follows a stage; see `lockadapt.training.loop.train`."""
    data = session.experiment.data
    encoder = model_encoder(session.model, session.processor, data.max_length, data.allow_special_tokens)
    if processes.is_first():
        answering = [name for name, each in objectives.items() if isinstance(each, AnswerObjective)]
        write_tokens(session.folder, encoder, {name: session.rows.train[name] for name in answering})
    followed = {
        name: (objective, _chosen(session.rows.validation.get(name, ()), len(objectives)))
        for name, objective in objectives.items()
        if isinstance(objective, AnswerObjective)
    }
    if not any(rows for _, rows in followed.values()):
        return []
    return [FollowedSamples(session, stage, encoder, followed)]


def _chosen(rows: Sequence[Encoded], objectives: int) -> list[Encoded]:
    number = min(len(rows), max(1, SAMPLES // objectives))
    return random.Random(0).sample(list(rows), number)


class FollowedSamples(TrainerCallback):
    """Appends predictions of a few validation samples to `followed.jsonl`, and refreshes the report.

    Args:
        session: of the run.
        stage: its name.
        encoder: of the run.
        followed: objective and samples, by the objective's name.
    """

    def __init__(
        self,
        session: Session,
        stage: str,
        encoder: Encoder,
        followed: Mapping[str, tuple[AnswerObjective, Sequence[Encoded]]],
    ) -> None:
        self.session, self.stage, self.encoder, self.followed = session, stage, encoder, followed
        self.trackers = session.experiment.training.report_to
        self._pictures: dict[str, Image.Image | None] = {}
        self._began = self._last = time.monotonic()
        self._cost, self._spent = FIRST, 0.0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Predicts; random numbers of training stay as they are."""
        first = state.is_world_process_zero
        if not (first or is_sharded(self.session.model)):  # all processes call a model that they share
            return
        rows: list[dict[str, Any]] = []
        tables: dict[str, list[TrackedRow]] = {}
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda):
            for name, (objective, items) in self.followed.items():
                samples = [item.sample for item in items]
                answers = self._context(name).answers(samples, objective.answers, objective.max_new_tokens)
                predicted = [prediction_row(*pair) for pair in zip(samples, answers, strict=True)]
                head = {"stage": self.stage, "step": state.global_step, "objective": name}
                rows += [{**head, **row} for row in predicted]
                if self.trackers and first:
                    exact = objective.kind in EXACT
                    tables[f"followed/{self.stage}/{name}"] = [
                        self._tracked(sample, row, exact)
                        for sample, row in zip(samples, predicted, strict=True)
                    ]
        if not first:
            return
        with open(self.session.folder / FOLLOWED, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        send(self.trackers, tables, state.global_step, Path(args.output_dir or ".") / "runs" / "followed")
        now = time.monotonic()
        affordable = self._spent + self._cost <= SHARE * (now - self._began)
        if affordable and now >= self._last + SECONDS:
            write_report([self.session.folder])
            self._last = time.monotonic()
            self._cost = self._last - now
            self._spent += self._cost

    def _tracked(self, sample: Sample, row: dict[str, Any], exact: bool) -> TrackedRow:
        image = sample.images[0] if sample.images else None
        if image is not None and image.key not in self._pictures:
            try:
                picture = small(open_image(image, self.session.experiment.data.max_pixels), TRACKED_SIDE)
            except (LockadaptError, OSError):
                picture = None
            self._pictures[image.key] = picture
        picture = self._pictures[image.key] if image is not None else None
        verdict = is_right(row) if exact else None
        return TrackedRow(picture, row["question"], row["truth"], row["answer"], verdict)

    def _context(self, name: str) -> PredictionContext:
        session, data = self.session, self.session.experiment.data
        return PredictionContext(
            session.model,
            self.encoder,
            session.rows.images[name],
            session.experiment.evaluation.batch_size,
            None,
            session.experiment.evaluation.method,
            None if data.packing == "none" else data.max_row_tokens,
        )
