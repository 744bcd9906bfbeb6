"""What training leaves as plain files: a PEFT adapter (LoRA, query tokens), other parts, the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.errors import VerificationError
from lockadapt.files import disk_errors, ordinary_permissions, write_tensors
from lockadapt.tuning.adapter_config import CONFIG, WEIGHTS

ADAPTER, PROCESSOR = "adapter", "processor"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = CONFIG, WEIGHTS
PART_FILES = {part: f"{part}.safetensors" for part in ("projector", "retrieval", "generation")}
"""Where the tensors of each part are kept, by their stock names."""


def save_artifacts(model: nn.Module, processor: Any, folder: Path, base: str | None = None) -> None:
    """Writes `adapter/` (if there is one), a file for each other part, and `processor/` below a folder.

    Args:
        model: trained, possibly wrapped by PEFT.
        processor: the model's.
        folder: of the run.
        base: what `base_model_name_or_path` of the adapter says; default: where the model was loaded from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        config = model.peft_config["default"]  # type: ignore[union-attr, index]
        if isinstance(config.target_modules, set):  # type: ignore[union-attr]
            config.target_modules = sorted(config.target_modules)  # type: ignore[union-attr]
        if base is not None:
            config.base_model_name_or_path = base  # type: ignore[union-attr]
        with disk_errors(folder / ADAPTER):
            model.save_pretrained(str(folder / ADAPTER))  # type: ignore[operator]
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)
    for part, file in PART_FILES.items():
        save_part(model, part, folder / file)
    processor.save_pretrained(folder / PROCESSOR)
    ordinary_permissions(folder)


def save_part(model: nn.Module, part: str, file: Path) -> None:
    """Writes the tensors of a part by their stock names; nothing if the model has none."""
    tensors = {n: t.detach().cpu().contiguous() for n, t in part_tensors(model, part).items()}
    if tensors:
        write_tensors(file, tensors, {"format": "pt"})


def part_tensors(model: nn.Module, part: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of a part by their stock names; query tokens not among them, which the adapter holds."""
    layout = layout_of(model)
    return {
        name: parameter
        for name, parameter in unwrap_model(model).named_parameters()
        if component_of(name, layout) == part and ".trainable_tokens_" not in name
    }


def load_parts(model: nn.Module, folder: Path) -> None:
    """Reads every trained part into a Transformers model; every tensor must be there and nothing else.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        folder: of the run.

    Raises:
        VerificationError: names the tensors that are missing, unexpected or of another shape.
    """
    for part, name in PART_FILES.items():
        own = part_tensors(model, part)
        if own or (folder / name).is_file():
            load_part(model, part, folder / name)


@torch.no_grad()
def load_part(model: nn.Module, part: str, file: Path) -> None:
    """Reads one part into a Transformers model; errors as `load_parts`."""
    own = part_tensors(model, part)
    if not file.is_file():
        raise VerificationError("the file is missing", where=str(file), fix="train again")
    saved = load_file(file)
    wrong = sorted(set(saved) ^ set(own)) + [n for n in saved if n in own and saved[n].shape != own[n].shape]
    if wrong:
        raise VerificationError(f"tensors do not match the model: {', '.join(wrong[:4])}", where=str(file))
    for name, parameter in own.items():
        parameter.copy_(saved[name])
