"""Writes the stock base of a run with what was trained beside LoRA baked in: LLM and tower stay as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.exports.card import bridge_card
from lockadapt.exports.sidecar import sidecar
from lockadapt.exports.stock_folder import write_stock
from lockadapt.files import write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.run import Run


def write_bridge(run: Run, folder: Path) -> None:
    """Streams weights, configs and the processor's files into an existing, empty folder; never quantized.

    Projector, what draws, and trained vocabulary rows are in the stock file; what embeds lies in `retrieval/`.

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
