"""Tries a stage's largest micro-batch before its first step, and compares what was measured with the plan."""

from __future__ import annotations

from pathlib import Path

from lockadapt.architectures.blueprint import stock_blueprint
from lockadapt.building.experiment import Experiment
from lockadapt.building.model import limited
from lockadapt.console import Reporter
from lockadapt.data.pixels import PixelInputs, ProcessorInputs
from lockadapt.models.sources import resolve_dtype
from lockadapt.planning.trace import MicroBatch, traced
from lockadapt.training.batch_size_search import Measured, fit_micro_batch
from lockadapt.training.trainer import GroundingTrainer

WORTH_PLANNING = 256 * 2**20
"""Below so many bytes memory is nobody's question, and the plan's seconds are saved."""


def try_largest_batch(
    trainer: GroundingTrainer, experiment: Experiment, base: str | Path, reporter: Reporter
) -> Measured:
    """Fits the micro-batch by `fit_micro_batch`, and says what was measured.

    Args:
        trainer: ready to train.
        experiment: of the recipe.
        base: the stock folder or Hub id that the model was loaded from.
        reporter: told what was measured.

    Returns:
        What was measured.

    Raises:
        DoesNotFitError: a single sample does not fit.
    """
    measured = fit_micro_batch(trainer, reporter.note)
    line = f"{measured.text}: {measured.peak / 1e9:.2f} GB measured"
    if measured.peak >= WORTH_PLANNING:
        try:
            planned = _planned(trainer, experiment, base, measured)
            line += f", {planned / 1e9:.2f} GB planned ({measured.peak / planned - 1:+.0%})"
        except Exception as error:  # what cannot be extrapolated is no reason not to train what fits
            line += f"; it could not be planned ({type(error).__name__}: {error})"
    reporter.note(f"{line}, the optimiser's state not included")
    return measured


def _planned(trainer: GroundingTrainer, experiment: Experiment, base: str | Path, measured: Measured) -> int:
    dtype, args = resolve_dtype(experiment.model.dtype), trainer.args
    blueprint = stock_blueprint(base, dtype)
    limited(blueprint.processor, experiment.model.max_image_tokens)
    trace = traced(
        blueprint,
        experiment.model.quantization,
        dtype,
        experiment.lora,
        trainer.objectives,
        experiment.model.lock_text,
    )
    if not experiment.projector_trains:
        trace.images.keep_projected()
    step = MicroBatch(
        measured.objective,
        trainer.objectives[measured.objective],
        measured.items,
        args.train_parts or ["projector"],  # type: ignore[attr-defined]
        cached=not isinstance(trainer.image_inputs[measured.objective], (PixelInputs, ProcessorInputs)),
        checkpointing=bool(args.activation_checkpointing),
        accumulate=args.gradient_accumulation_steps > 1 or measured.objective in trainer.rows_at_once,
        max_row_tokens=trainer.packing.max_row_tokens,
    )
    return trace.peak(step)[0]
