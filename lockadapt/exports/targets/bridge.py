"""Writes the base model with the trained projector, for adapters that hold LoRA alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.architectures.dual_encoder import DUAL_ENCODER
from lockadapt.console import Reporter
from lockadapt.exports.card import bridge_card
from lockadapt.exports.peft_folder import write_lora
from lockadapt.exports.proofs.adapter_folder import prove_adapter, trained_answers
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.stock_folder import write_stock
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.exports.targets.servers import Served, servable, tensor_names
from lockadapt.files import new_folder, write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.run import Run


def write_bridge(run: Run, folder: Path) -> None:
    """Streams weights, configs and the processor's files into an existing, empty folder; never quantized.

    Projector, image-generation parts, and trained vocabulary rows are in the stock file; what embeds lies in
    `retrieval/`.

    Args:
        run: a finished run.
        folder: an existing, empty one.

    Raises:
        SetupError: the base is gone.
        VerificationError: what was trained does not fit it.
    """
    write_stock(run, folder, base="original", lora=False)


def finish_bridge(
    run: Run, folder: Path, result: Mapping[str, Any], quantization: Mapping[str, Any] | None
) -> None:
    """Writes sidecar and model card into a proved bridge."""
    write_json(folder / SIDECAR, sidecar(run, folder))
    (folder / "README.md").write_text(bridge_card(run, result, quantization), encoding="utf-8")


def refusal(run: Run) -> str | None:
    """Every model that answers has one."""
    return DUAL_ENCODER.clients.refused["bridge"] if run.dual else None


def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
    """The bridge; proved with the run's LoRA on it, which is not kept here. See `ExportTarget`."""
    trained = trained_answers(run)
    reporter.note("writing the bridge, and proving it in a fresh process")
    with new_folder(output, what="exporting") as folder, tempfile.TemporaryDirectory() as scratch:
        write_bridge(run, folder)
        adapter = Path(scratch) if run.lora else None
        if adapter is not None:
            write_lora(run, adapter, str(output))
        proof = prove_adapter(folder, adapter, trained)
        served = Served(run.config(), tensor_names(folder), run.record.quantization)
        result = {**proof, "servable": servable(served)}
        finish_bridge(run, folder, result, trained.quantization)
    return result


BRIDGE = ExportTarget("bridge", "base model with the trained projector", refusal, write)
