"""Writes PEFT folders of a run: LoRA alone for a bridge, or all that was trained for the untrained base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import load_file

from lockadapt.evaluation.target import BESIDE
from lockadapt.exports.card import adapter_card
from lockadapt.exports.sidecar import sidecar
from lockadapt.files import write_json, write_tensors
from lockadapt.models.origins import SIDECAR
from lockadapt.runs.artifacts import ADAPTER, PART_FILES
from lockadapt.runs.run import Run

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""Before every stock name in a PEFT file."""

STOCK_PARTS = ("projector", "generation")
"""Trained parts that lie in the stock class itself."""


def write_lora(run: Run, folder: Path, base: str) -> None:
    """Writes LoRA alone: no `modules_to_save`, no vocabulary rows, which servers refuse.

    Args:
        run: a finished run with LoRA.
        folder: exists.
        base: what `base_model_name_or_path` says.
    """
    tensors = {name: tensor for name, tensor in _adapter(run).items() if not is_vocabulary(name)}
    config = _config(run, base)
    config.trainable_token_indices = None
    _write(folder, config, tensors)


def write_full(run: Run, folder: Path, base: str) -> None:
    """LoRA, vocabulary rows, and the other trained parts as `modules_to_save`, keys as PEFT writes them.

    See `write_lora`.
    """
    tensors, modules = _adapter(run), []
    for part in STOCK_PARTS:
        file = run.folder / PART_FILES[part]
        if file.is_file():
            saved = load_file(file)
            tensors |= {PREFIX + name: tensor for name, tensor in saved.items()}
            modules += _modules(saved)
    config = _config(run, base)
    config.modules_to_save = modules
    _write(folder, config, tensors)
    embeds = run.folder / BESIDE.name
    if embeds.is_file():
        (folder / BESIDE).parent.mkdir()
        shutil.copyfile(embeds, folder / BESIDE)


def finish_adapter(
    run: Run, folder: Path, result: Mapping[str, Any], quantization: Mapping[str, Any] | None
) -> None:
    """Writes sidecar and model card into a proved PEFT folder."""
    write_json(folder / SIDECAR, sidecar(run, folder))
    (folder / "README.md").write_text(adapter_card(run, result, quantization), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a PEFT folder."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def vocabulary_rows(run: Run) -> tuple[list[int], torch.Tensor] | None:
    """Ids of the vocabulary rows that the run trained, and the rows (n, hidden); None if it trained none."""
    if run.adapter is None:
        return None
    indices = run.adapter.get("trainable_token_indices") or run.adapter.get("token_indices")
    if not indices:
        return None
    ids = next(iter(indices.values())) if isinstance(indices, Mapping) else indices
    (rows,) = [tensor for name, tensor in _adapter(run).items() if is_vocabulary(name)]
    return list(ids), rows


def is_vocabulary(name: str) -> bool:
    """Whether a tensor of a PEFT file is rows of the embedding table, by PEFT's own name for them."""
    return name.rsplit(".", 1)[-1] == "trainable_tokens_delta"


def _adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / ADAPTER / WEIGHTS)


def _config(run: Run, base: str) -> Any:
    config: Any = PeftConfig.from_pretrained(str(run.folder / ADAPTER))
    config.base_model_name_or_path, config.revision, config.inference_mode = base, None, True
    return config


def _modules(names: Mapping[str, torch.Tensor]) -> list[str]:
    """Full paths of the modules, two levels deep, that tensors belong to: PEFT matches by path endings."""
    return sorted({".".join(name.split(".")[:2]) for name in names})


def _write(folder: Path, config: Any, tensors: dict[str, torch.Tensor]) -> None:
    config.save_pretrained(str(folder))
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
