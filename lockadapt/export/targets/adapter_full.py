"""Writes everything that a run trained as one small PEFT folder, for the untrained base: the projector in `modules_to_save`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.export.adapter_proof import prove_adapter, trained_answers
from lockadapt.export.finished import FinishedRun
from lockadapt.export.peft_folder import finish_adapter, read_config, write_full
from lockadapt.export.servers import Served, servable, tensor_names
from lockadapt.export.stock_folder import local_folder
from lockadapt.export.targets.adapter import refusal
from lockadapt.export.targets.base import Target
from lockadapt.files import new_folder
from lockadapt.training.progress import Reporter


def write(run: FinishedRun, output: Path, reporter: Reporter) -> dict[str, Any]:
    """A PEFT folder that points at the run's own base. See `Target`."""
    trained = trained_answers(run)
    base = str(Path(run.base).resolve()) if Path(run.base).is_dir() else run.base
    reporter.note("writing the adapter, and proving it in a fresh process")
    with new_folder(output, what="exporting") as folder:
        write_full(run, folder, base)
        place = local_folder(run.base)
        proof = prove_adapter(place, folder, trained)
        config, quantization = read_config(folder), run.facts["quantization"]
        served = Served(run.config(), tensor_names(place), quantization, config, tensor_names(folder))
        result = {**proof, "base": base, "servable": servable(served)}
        finish_adapter(run, folder, result, trained.quantization)
    return result


ADAPTER_FULL = Target(
    "adapter-full", "all that was trained as a PEFT folder, for the untrained base", refusal, write
)
