"""Writes the stock base with the trained projector inside, for adapters that hold LoRA alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lockadapt.architectures.dual_encoder import DUAL_ENCODER
from lockadapt.console import Reporter
from lockadapt.exports.bridge import finish_bridge, write_bridge
from lockadapt.exports.peft_folder import write_lora
from lockadapt.exports.proofs.adapter_folder import prove_adapter, trained_answers
from lockadapt.exports.servers import Served, servable, tensor_names
from lockadapt.exports.targets.base import Target
from lockadapt.files import new_folder
from lockadapt.runs.run import Run


def refusal(run: Run) -> str | None:
    """Every model that answers has one."""
    return DUAL_ENCODER.clients.refused["bridge"] if run.dual else None


def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
    """The bridge; proved with the run's LoRA on it, which is not kept here. See `Target`."""
    trained = trained_answers(run)
    reporter.note("writing the bridge, and proving it in a fresh process")
    with new_folder(output, what="exporting") as folder, tempfile.TemporaryDirectory() as room:
        write_bridge(run, folder)
        adapter = Path(room) if run.lora else None
        if adapter is not None:
            write_lora(run, adapter, str(output))
        proof = prove_adapter(folder, adapter, trained)
        served = Served(run.config(), tensor_names(folder), run.record.quantization)
        result = {**proof, "servable": servable(served)}
        finish_bridge(run, folder, result, trained.quantization)
    return result


BRIDGE = Target("bridge", "stock base with the trained projector inside", refusal, write)
