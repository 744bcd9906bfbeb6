"""A tower whose outputs are all cached stays on the disk: its stand-in, and how it is still proved locked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import nn

from lockadapt.architectures import ARCHITECTURES, layout_of
from lockadapt.architectures.base import Architecture, unwrap_model
from lockadapt.errors import VerificationError
from lockadapt.files import sha256_of


@dataclass(frozen=True)
class TowerRecord:
    """What is known of a tower from the time when it was loaded.

    Attributes:
        folder: the stock folder whose files hold it.
        files: `files_digest` of that folder then.
        dtype: that it was loaded in, e.g. `float32`.
        parameters: how many it has.
        tensors: full name -> SHA-256 of every parameter and buffer, as the lock proof has them.
        identity: its part of `feature_identity`.
        base: its part of `base_identity`; None in records of older versions.
    """

    folder: str
    files: str
    dtype: str
    parameters: int
    tensors: dict[str, str]
    identity: dict[str, Any]
    base: dict[str, Any] | None = None


class AbsentTower(nn.Module):
    """Stands where the tower would be.

    It has no weights, so it cannot be run; features must come from the cache.
    """

    def __init__(self, config: Any, record: TowerRecord, where: str) -> None:
        super().__init__()
        self.config, self.record, self.where = config, record, where

    def digests(self) -> dict[str, str]:
        """The tensors' digests if the files are still those that they were read from, else no true ones."""
        same = files_digest(Path(self.record.folder), self.record.dtype) == self.record.files
        return self.record.tensors if same else dict.fromkeys(self.record.tensors, "the file changed")

    def forward(self, *_: Any, **__: Any) -> Any:
        """Raises VerificationError."""
        raise VerificationError(
            "the tower is needed but was not loaded, as all images were in the feature cache",
            where=self.where,
            fix="use data.features: memory or none",
        )


def absent_tower(model: nn.Module) -> AbsentTower | None:
    """The stand-in, if the tower is not loaded."""
    tower = unwrap_model(model).get_submodule(layout_of(model).tower)
    return tower if isinstance(tower, AbsentTower) else None


def files_digest(folder: Path, dtype: str) -> str:
    """Digests all that decides which tower is loaded: its files' bytes, the config's, dtype, Transformers.

    Args:
        folder: the stock folder.
        dtype: that it is loaded in.

    Returns:
        SHA-256, hex.

    Raises:
        OSError: a file cannot be read.
    """
    lines = [f"transformers {transformers.__version__}", f"dtype {dtype}"]
    for file in [folder / "config.json", *_tower_files(folder)]:
        lines.append(f"{file.name} {sha256_of(file)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def towerless_class(architecture: Architecture) -> type[Any]:
    """The stock class of an architecture, loading everything but the tower's weights."""
    kind: Any = architecture.model_class
    path = architecture.layout.tower

    class Towerless(kind):  # type: ignore[misc]
        # The one door that Transformers has for weights that are there and not wanted.
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [rf"^(model\.)?{_leaf(path)}\."]

        def __init__(self, config: Any) -> None:
            # Built on the meta device, as everything in from_pretrained, so this costs nothing.
            super().__init__(config)
            self.set_submodule(path, nn.Module())

    # Transformers looks up by name how keys in older files are renamed. If it ever did so otherwise, keys
    # would be missing, which load_model does not let pass.
    Towerless.__name__, Towerless.__module__ = kind.__name__, kind.__module__
    return Towerless


def put_absent_tower(model: Any, record: TowerRecord) -> None:
    """Finishes what `towerless_class` loaded: the stand-in in the tower's place, and the stock class."""
    path = layout_of(model).tower
    model.set_submodule(
        path, AbsentTower(getattr(model.config, "vision_config", None) or model.config.encoder, record, path)
    )
    # It differs from its parent only in how it is loaded, and what asks for its class means the stock one.
    model.__class__ = type(model).__bases__[0]


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _tower_files(folder: Path) -> list[Path]:
    from safetensors import safe_open

    names = {_leaf(architecture.layout.tower) for architecture in ARCHITECTURES}
    files = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if any(f"{tower}." in name for tower in names for name in tensors.keys()):  # noqa: SIM118 (no mapping)
                files.append(file)
    return files
