"""Writes preferences of a finished run's own making: the answers of its training rows, and its wrong ones.

    python scripts/make_preferences.py runs/supervised data/quickstart-rewards/own.jsonl

A stage with `method: dpo` that begins from the run (`model.run`) learns from them; see
docs/preference-and-reward.md. Rows that the run answers rightly each time are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from lockadapt.console import Reporter, emit
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.errors import LockadaptError, RecipeError
from lockadapt.evaluation.own_preferences import AnswerDraws, own_preferences, write_preferences
from lockadapt.objectives import Vqa
from lockadapt.runs.run import Run, open_run


def main(
    folder: Path = typer.Argument(metavar="RUN", help="folder of a finished run that answers questions"),
    file: Path = typer.Argument(help="JSONL file to write, in a folder above the images"),
    objective: str = typer.Option(None, help="of the kind vqa; default: the run's first"),
    answers: int = typer.Option(8, min=1, help="to each row"),
    temperature: float = typer.Option(1.0, min=0, help="of sampling; 0: one greedy answer"),
    pairs: int = typer.Option(1, min=1, help="preferences of a row at most, its likeliest wrong answers"),
    seed: int = typer.Option(0, help="of sampling"),
) -> None:
    """Answer the training rows of a run, and write those that it answered wrongly as preferences."""
    try:
        run = open_run(folder)
        name, asked = _asked(run, objective)
        loaded, data = run.load(), run.experiment.data
        encoder = model_encoder(loaded.model, loaded.processor, data.max_length, data.allow_special_tokens)
        images = pixel_inputs(loaded.processor, data.max_pixels)
        samples = run.experiment.samples("train", [name])[name]
        # Greedy answers to a row are all the same.
        count = answers if temperature else 1
        draws = AnswerDraws(count, temperature, pairs, asked.max_new_tokens, seed=seed)
        progress = Reporter().counted("rows")
        preferences = own_preferences(loaded.model, encoder, images, samples, draws, progress)
        write_preferences(file, preferences)
    except LockadaptError as error:
        emit(str(error), error=True)
        sys.exit(error.exit_code)
    wrong = len({preference.where for preference in preferences})
    emit(json.dumps({"rows": len(samples), "answered_wrongly": wrong, "preferences": len(preferences)}))


def _asked(run: Run, name: str | None) -> tuple[str, Vqa]:
    """The objective whose rows are answered, and its name."""
    known = {key: value for key, value in run.objectives.items() if isinstance(value, Vqa)}
    chosen = name or next(iter(known), "vqa")
    if chosen not in known:
        raise RecipeError(
            f"the run has no objective {chosen} of the kind vqa",
            where="--objective",
            fix=f"name one of: {', '.join(known)}" if known else "name a run that answers questions",
        )
    return chosen, known[chosen]


if __name__ == "__main__":
    typer.run(main)
