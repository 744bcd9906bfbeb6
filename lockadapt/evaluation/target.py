"""Opens what is evaluated, searched and talked to: a run folder, or a stock folder with a merge's files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import RETRIEVAL, unwrap_model
from lockadapt.architectures.load import load_model
from lockadapt.building.experiment import Experiment, recorded_experiment
from lockadapt.errors import RecipeError
from lockadapt.models.origins import SIDECAR
from lockadapt.models.sources import resolve_dtype
from lockadapt.objectives import Objective
from lockadapt.runs.artifacts import PART_FILES, load_part
from lockadapt.runs.run import LoadedRun, Run, open_run
from lockadapt.runs.run_folder import is_run

BESIDE = Path(RETRIEVAL) / PART_FILES[RETRIEVAL]
"""Where a merged folder keeps what no stock class holds: below it, as loaders read every *.safetensors on
top."""


@dataclass(frozen=True)
class Target:
    """A model in eval mode, and the experiment that it was trained in, if that is known.

    Attributes:
        folder: where it was opened.
        run: the run that it is; None: a stock folder.
        mean: the mean image of a blind run.
    """

    model: Any
    processor: Any
    experiment: Experiment | None
    run: Run | None
    mean: Image.Image | None
    folder: Path


def open_target(source: str | Path | Run | LoadedRun) -> Target:
    """Opens a run folder, a stock folder of a class that lockadapt trains, or a run that is open already.

    Args:
        source: a folder or a run; the model of one that is loaded is not loaded again.

    Returns:
        Its model, in eval mode.

    Raises:
        RecipeError: the run is not finished.
        VerificationError: the run is damaged.
    """
    if isinstance(source, (Run, LoadedRun)):
        return target_of(source)
    folder = Path(source)
    if is_run(folder):
        return target_of(open_run(folder))
    model, processor = load_model(folder, resolve_dtype("auto"))
    if torch.cuda.is_available():
        model = model.to("cuda")
    sidecar = folder / SIDECAR
    experiment = None
    if sidecar.is_file():
        recorded = json.loads(sidecar.read_text(encoding="utf-8"))
        # A folder that was only put together has sources, but no recipe.
        experiment = recorded_experiment(recorded["recipe"]) if "recipe" in recorded else None
    return Target(model, processor, experiment, None, None, folder)


def target_of(run: Run | LoadedRun) -> Target:
    """A run that is open already; its model is loaded, if it is not."""
    loaded = run if isinstance(run, LoadedRun) else run.load()
    run = loaded.run
    return Target(loaded.model, loaded.processor, run.experiment, run, run.mean_image(), run.folder)


def make_ready(target: Target, objective: Objective) -> None:
    """Gives the target's model what this objective needs beside the stock class; a second call does nothing.

    Args:
        target: what is evaluated.
        objective: what it is evaluated for.

    Raises:
        RecipeError: the objective embeds, and neither the model nor its folder has what that takes.
        VerificationError: what lies beside a merged model does not fit the objective.
    """
    model = target.model
    # A dual encoder's stock class holds all that embeds.
    held = architecture_of(model).embeds_apart or hasattr(unwrap_model(model), RETRIEVAL)
    if RETRIEVAL in objective.parts and not held:
        add_from_folder(model, objective, target.folder)
    objective.prepare(model)


def add_from_folder(model: nn.Module, objective: Objective, folder: Path) -> None:
    """Reads what embeds images and texts from beside a merged model; errors as `make_ready`."""
    file = folder / BESIDE
    if not file.is_file():
        raise RecipeError(
            f"the model cannot embed images and texts: {BESIDE} is missing",
            where=str(folder),
            fix="name a run with an objective of the kind itc, or a folder that `lockadapt merge` made of "
            "one",
        )
    objective.prepare(model)
    load_part(model, RETRIEVAL, file)
