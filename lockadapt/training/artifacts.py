"""What training leaves as plain files: a PEFT adapter of LoRA alone, the projector by its stock names, the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lockadapt.errors import VerificationError
from lockadapt.files import ordinary_permissions
from lockadapt.models.adapters import adapted_paths
from lockadapt.models.parts import PROJECTOR, stock

ADAPTER, PROJECTOR_FILE, PROCESSOR = "adapter", "projector.safetensors", "processor"


def save_artifacts(model: nn.Module, processor: Any, folder: Path, base: str | None = None) -> None:
    """Writes `adapter/` (if there is LoRA), `projector.safetensors` and `processor/` below a folder.

    Args:
        base: what `base_model_name_or_path` of the adapter says; default: where the model was loaded from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if adapted_paths(model):
        config = model.peft_config["default"]  # type: ignore[union-attr, index]
        if base is not None:
            config.base_model_name_or_path = base  # type: ignore[union-attr]
        model.save_pretrained(str(folder / ADAPTER))  # type: ignore[operator]
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)
    projector = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in stock(model).state_dict().items()
        if name.startswith(PROJECTOR + ".")
    }
    save_file(projector, folder / PROJECTOR_FILE, metadata={"format": "pt"})
    processor.save_pretrained(folder / PROCESSOR)
    ordinary_permissions(folder)


@torch.no_grad()
def load_projector(model: nn.Module, file: Path) -> None:
    """Reads the trained projector into a stock model; every tensor must be there and nothing else.

    Raises:
        VerificationError: names the tensors that are missing, unexpected or of another shape.
    """
    saved = load_file(file)
    own = {n: p for n, p in stock(model).named_parameters() if n.startswith(PROJECTOR + ".")}
    wrong = sorted(set(saved) ^ set(own)) + [n for n in saved if n in own and saved[n].shape != own[n].shape]
    if wrong:
        raise VerificationError(f"tensors do not match the model: {', '.join(wrong[:4])}", where=str(file))
    for name, parameter in own.items():
        parameter.copy_(saved[name])
