"""Writes the stock base with the trained projector inside, for adapters that hold LoRA alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lockadapt.export.adapter_proof import prove_adapter, trained_answers
from lockadapt.export.bridge import finish_bridge, write_bridge
from lockadapt.export.finished import FinishedRun
from lockadapt.export.peft_folder import write_lora
from lockadapt.export.servers import Served, servable, tensor_names
from lockadapt.export.targets.base import Target
from lockadapt.files import new_folder
from lockadapt.training.progress import Reporter


def refusal(run: FinishedRun) -> str | None:
    """Every model that answers has one."""
    if run.dual:
        return "a dual encoder has no projector between a tower and an LLM (--to dual or --to sentence-transformers)"
    return None


def write(run: FinishedRun, output: Path, reporter: Reporter) -> dict[str, Any]:
    """The bridge; proved with the run's LoRA on it, which is not kept here. See `Target`."""
    trained = trained_answers(run)
    reporter.note("writing the bridge, and proving it in a fresh process")
    with new_folder(output, what="exporting") as folder, tempfile.TemporaryDirectory() as room:
        write_bridge(run, folder)
        adapter = Path(room) if run.lora else None
        if adapter is not None:
            write_lora(run, adapter, str(output))
        proof = prove_adapter(folder, adapter, trained)
        served = Served(run.config(), tensor_names(folder), run.facts["quantization"])
        result = {**proof, "servable": servable(served)}
        finish_bridge(run, folder, result, trained.quantization)
    return result


BRIDGE = Target("bridge", "stock base with the trained projector inside", refusal, write)
