"""What a finished run leaves in its folder: weights, probe, mean image, curves, record, card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lockadapt.data.mixture import by_source
from lockadapt.data.sample import Sample
from lockadapt.data.stored import few_of
from lockadapt.models.sources import resolve_dtype
from lockadapt.runs import run_folder
from lockadapt.runs.artifacts import save_artifacts
from lockadapt.runs.card import write_card
from lockadapt.runs.integrity import artifact_digests
from lockadapt.runs.origins import recipe_origins
from lockadapt.runs.record import RunRecord, write_record
from lockadapt.runs.run import open_run
from lockadapt.training.plot import plot_losses
from lockadapt.training.rows import Samples
from lockadapt.training.stage import Session, TrainedStage
from lockadapt.tuning.base_identity import BaseIdentity


@dataclasses.dataclass(frozen=True)
class Training:
    """How all stages of a run went together.

    Attributes:
        stages: in their order.
        base_identity, base_files: taken before the first step.
        steps: optimiser steps that were planned.
        seconds: that the stages took.
    """

    stages: Sequence[TrainedStage]
    base_identity: BaseIdentity
    base_files: str | None
    steps: int
    seconds: float

    @property
    def locked(self) -> int:
        """Frozen tensors that were compared, in the stage with the most of them."""
        return max((stage.record.locked for stage in self.stages), default=0)

    @property
    def reward(self) -> dict[str, Any] | None:
        """Of the last stage with a method."""
        records = [stage.record.reward for stage in self.stages if stage.record.reward is not None]
        return records[-1].model_dump() if records else None

    @property
    def samples_per_second(self) -> float:
        """Over all stages whose time is known, which older versions did not keep."""
        timed = [stage.record for stage in self.stages if stage.record.seconds]
        return sum(record.samples for record in timed) / max(self.seconds, 1e-9)


def write_run(session: Session, training: Training, samples: Samples) -> None:
    """Writes all that makes the folder of a session a finished run.

    Args:
        session: of the run.
        training: its stages' results.
        samples: of the run.

    Raises:
        DiskError: the disk is full.
        SafetyError: a tensor to write is not finite.
    """
    experiment, folder = session.experiment, session.folder
    save_artifacts(session.model, session.processor, folder, base=session.base)
    run_folder.write_probe(folder, _probe_samples(samples), experiment.data.max_pixels)
    replacement = next((i.replacement for i in session.rows.images.values() if i.replacement), None)
    if replacement is not None:
        replacement.save(folder / run_folder.MEAN_IMAGE_FILE)
    plot_losses(folder / run_folder.METRICS, folder / "loss.png")
    write_record(folder, RunRecord.model_validate_json(json.dumps(_record(session, training))))
    write_card(open_run(folder))


def _record(session: Session, training: Training) -> dict[str, Any]:
    experiment = session.experiment
    model = experiment.model
    return {
        "command": run_folder.command_line(),
        "versions": run_folder.versions(),
        "seed": experiment.training.seed,
        "base": session.base,
        "llm": model.llm,
        "tower": model.tower,
        "dtype": str(resolve_dtype(model.dtype)).removeprefix("torch."),
        "quantization": model.quantization,
        "blind": experiment.blind,
        "sources": [dataclasses.asdict(source) for source in recipe_origins(experiment.recipe)],
        "rows": {
            name: experiment.source_rows(
                name, [len(own) for own in by_source(rows, len(experiment.objectives[name].sources))]
            )
            for name, rows in session.rows.train.items()
        },
        "stages": [stage.record.model_dump(mode="json") for stage in training.stages],
        "base_identity": training.base_identity.to_dict(),
        "base_fingerprint": training.stages[-1].fingerprint,
        "base_files": training.base_files,
        "admission": [dataclasses.asdict(finding) for finding in session.admission] or None,
        "artifacts": artifact_digests(session.folder),
        "steps": training.steps,
        "seconds": round(training.seconds, 2),
        "samples_per_second": round(training.samples_per_second, 2),
        "locked": True,
        "reward": training.reward,
    }


def _probe_samples(samples: Samples) -> list[Sample]:
    """A few samples, objectives in turn, each with another image where possible; held-out ones first."""
    chosen: list[Sample] = []
    seen: set[str] = set()
    pools = [list(few_of(rows)) for part in ("validation", "train") for rows in samples[part].values()]
    for pool in pools:
        for sample in pool:
            keys = {image.key for image in sample.images}
            if keys and not keys & seen:
                seen |= keys
                chosen.append(sample)
            if len(chosen) >= run_folder.PROBE_SAMPLES:
                return chosen
    return chosen or [pools[0][0]]
