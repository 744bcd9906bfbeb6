"""Writes a run for llama.cpp: merged and proved, then a GGUF of the LLM and one of tower and projector."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from lockadapt.console import Reporter
from lockadapt.errors import SetupError
from lockadapt.exports.card import gguf_card
from lockadapt.exports.gguf import gguf_refusal, open_llama_cpp, write_gguf
from lockadapt.exports.gguf.modelfile import modelfile
from lockadapt.exports.merge import merge_run
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.stock_folder import local_folder
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.files import write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.run import Run

NAME = "gguf"


def gguf_target(sources: Path | None) -> ExportTarget:
    """The target, with the folder that llama.cpp's sources are in: its converter writes the LLM."""

    def refusal(run: Run) -> str | None:
        if run.dual:
            return "a dual encoder answers nothing"
        if sources is None:
            return "llama.cpp's own converter writes the LLM: name its sources with --llama-cpp DIR"
        try:
            return gguf_refusal(local_folder(run.base), open_llama_cpp(sources))
        except SetupError as error:
            return error.message

    def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
        assert sources is not None
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            merged = Path(scratch) / "merged"
            proof = merge_run(run, merged, reporter)
            reporter.note("writing GGUF files")

            def finish(folder: Path, result: dict[str, Any]) -> None:
                write_json(folder / SIDECAR, sidecar(run, folder))
                processor = AutoProcessor.from_pretrained(merged, local_files_only=True)
                text = modelfile(processor, result["model"], result["mmproj"])
                (folder / "Modelfile").write_text(text, encoding="utf-8")
                (folder / "README.md").write_text(gguf_card(run, proof, result), encoding="utf-8")

            result = write_gguf(merged, output, open_llama_cpp(sources), finish=finish)
        for note in result["notes"]:
            reporter.note(note)
        return {**result, "merged": {**proof, "output": None}}

    return ExportTarget(NAME, "LLM and vision part as two files for llama.cpp", refusal, write)
