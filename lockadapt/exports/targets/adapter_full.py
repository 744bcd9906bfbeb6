"""Writes all that a run trained as one PEFT folder for the untrained base: projector in `modules_to_save`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from lockadapt.architectures import find_architecture
from lockadapt.console import Reporter
from lockadapt.exports.peft_folder import finish_adapter, read_config, write_full
from lockadapt.exports.proofs.adapter_folder import prove_adapter, trained_answers
from lockadapt.exports.stock_folder import local_folder
from lockadapt.exports.targets.adapter import refusal
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.exports.targets.servers import Served, servable, tensor_names
from lockadapt.files import new_folder
from lockadapt.runs.artifacts import PART_FILES
from lockadapt.runs.run import Run


def no_full_adapter(run: Run) -> str | None:
    """There must be LoRA, and beside it only whole modules, which is what PEFT saves."""
    if reason := refusal(run):
        return reason
    architecture, file = find_architecture(run.config()), run.folder / PART_FILES["projector"]
    if architecture is None or not file.is_file():
        return None
    if refused := architecture.clients.refused.get("adapter-full"):
        return refused
    with safe_open(file, "pt") as saved:
        bare = [path for path in architecture.layout.projector if path in set(saved.keys())]
    if not bare:
        return None
    return f"PEFT's modules_to_save holds modules, and {bare[0]} is a parameter (use --to adapter)"


def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
    """A PEFT folder that points at the run's own base. See `ExportTarget`."""
    trained = trained_answers(run)
    base = str(Path(run.base).resolve()) if Path(run.base).is_dir() else run.base
    reporter.note("writing the adapter, and proving it in a fresh process")
    with new_folder(output, what="exporting") as folder:
        write_full(run, folder, base)
        base_folder = local_folder(run.base)
        proof = prove_adapter(base_folder, folder, trained)
        config, quantization = read_config(folder), run.record.quantization
        served = Served(run.config(), tensor_names(base_folder), quantization, config, tensor_names(folder))
        result = {**proof, "base": base, "servable": servable(served)}
        finish_adapter(run, folder, result, trained.quantization)
    return result


ADAPTER_FULL = ExportTarget(
    "adapter-full", "all that was trained as a PEFT folder, for the untrained base", no_full_adapter, write
)
