"""Writes LoRA alone as a PEFT folder beside its bridge, as PEFT, Transformers and servers load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.exports.peft_folder import finish_adapter, read_config, write_lora
from lockadapt.exports.proofs.adapter_folder import prove_adapter, trained_answers
from lockadapt.exports.stock_folder import local_folder
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.exports.targets.bridge import finish_bridge, write_bridge
from lockadapt.exports.targets.bridge import refusal as no_bridge
from lockadapt.exports.targets.servers import Served, rank_of, servable, serve_command, tensor_names
from lockadapt.files import new_folder
from lockadapt.models.settled_folder import unsettled
from lockadapt.runs.run import Run

ADAPTER_FOLDER, BRIDGE_FOLDER = "adapter", "bridge"


def refusal(run: Run) -> str | None:
    """There must be LoRA."""
    if not run.lora:
        return no_bridge(run) or "the run trained no LoRA: --to bridge holds all that it trained"
    return no_bridge(run)


def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
    """`adapter/`, and `bridge/` unless the run trained nothing but LoRA on a stock VLM.

    See `ExportTarget`.
    """
    trained = trained_answers(run)
    reporter.note("writing the adapter and what it belongs on, and proving both in a fresh process")
    with new_folder(output, what="exporting") as folder:
        if needs_bridge(run):
            base, base_folder = str(output.resolve() / BRIDGE_FOLDER), folder / BRIDGE_FOLDER
            base_folder.mkdir()
            write_bridge(run, base_folder)
        else:
            base, base_folder = run.base, local_folder(run.base)
        adapter = folder / ADAPTER_FOLDER
        adapter.mkdir()
        write_lora(run, adapter, base)
        proof = prove_adapter(base_folder, adapter, trained)
        config = read_config(adapter)
        served = Served(
            run.config(), tensor_names(base_folder), run.record.quantization, config, tensor_names(adapter)
        )
        answers = servable(served)
        target = str(output.resolve() / ADAPTER_FOLDER)
        command = serve_command(base, target, run.folder.name, rank_of(config))
        serve = command if answers["vllm"] is True else None
        result = {**proof, "bridge": base, "adapter": target, "servable": answers, "serve": serve}
        if needs_bridge(run):
            finish_bridge(run, base_folder, result, trained.quantization)
        finish_adapter(run, adapter, result, trained.quantization)
    if serve is not None:
        reporter.note(serve)
    return result


def needs_bridge(run: Run) -> bool:
    """Whether the adapter cannot be put on the model that the run started from, as it stands."""
    started = run.recipe.model
    as_it_stands = run.only_lora and run.base == str(started.vlm) and started.max_image_tokens is None
    return not as_it_stands or bool(unsettled(run.base))


ADAPTER = ExportTarget("adapter", "LoRA as a PEFT folder, and the bridge that it belongs on", refusal, write)
