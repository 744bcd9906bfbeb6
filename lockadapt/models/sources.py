"""Where models come from: folders and Hub ids, loaded without remote code, pickle or surprises."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lockadapt.errors import AssemblyError, DataError, LockadaptError, SafetyError, SetupError, memory_ran_out
from lockadapt.models.gguf_file import gguf_folder, is_gguf
from lockadapt.models.hub import hub_is_reachable
from lockadapt.models.model_folder import check_model_folder
from lockadapt.models.quiet import quiet
from lockadapt.models.safetensors_file import read_shard

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """A model's folder or Hub id. `local` forbids the network."""

    name: str
    local: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` is called with: no remote code, and no network for a folder."""
        offline = self.local or not hub_is_reachable()
        return {"local_files_only": offline, "trust_remote_code": False}


def find(source: str | Path, what: str) -> Source:
    """Finds a folder if there is one of that name, else takes a Hub id if it reads like `org/name`.

    An LLM may be a GGUF file, which becomes a folder (`gguf_folder`).

    Args:
        source: folder, Hub id, or GGUF file of an LLM.
        what: names it in messages ("LLM", "tower" …).

    Returns:
        Where it is.

    Raises:
        SetupError: it is neither, or what it says of itself cannot be.
        SafetyError: its files name others outside of it, or code.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SetupError(
                f"the {what} folder has no config.json",
                where=str(path),
                fix="name a folder in Hugging Face format (config.json and *.safetensors)",
            )
        check_model_folder(path, what)
        return Source(str(path), local=True)
    if path.is_file():
        if what == "LLM" and is_gguf(path):
            with loading(Source(str(path), local=True), what):
                return Source(str(gguf_folder(path)), local=True)
        raise SetupError(
            f"the {what} is a file, not a folder",
            where=str(path),
            fix="name the folder that holds config.json" + (", or a GGUF file" if what == "LLM" else ""),
        )
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return Source(source, local=False)
    raise SetupError(
        f"the {what} does not exist",
        where=str(source),
        fix="check the path, or give a Hub id such as org/name",
    )


@contextmanager
def loading(source: Source, what: str) -> Iterator[None]:
    """Opens a quiet block in which whatever a library raises becomes an error that names the source.

    Args:
        source: what is loaded.
        what: names it in messages.

    Yields:
        Nothing.

    Raises:
        SafetyError: the checkpoint wants its own code to be run.
        SetupError: anything else that keeps it from loading.
    """
    try:
        with quiet():
            yield
    except LockadaptError:
        raise
    except ImportError as error:
        package = _package(error)
        raise SetupError(
            f"the {what} needs a package that is not installed: {package}",
            where=source.name,
            fix=f"pip install {package}",
        ) from error
    except Exception as error:
        if memory_ran_out(error):
            raise
        if source.local and isinstance(error, SafetensorError):
            _name_damaged_shard(Path(source.name), what)
        message = f"the {what} cannot be loaded: {_reason(error)}"
        if "trust_remote_code" in str(error):
            raise SafetyError(
                f"the {what} wants code from its own repository to be run",
                where=source.name,
                fix="use a checkpoint whose architecture Transformers itself has",
            ) from error
        if not source.local and not hub_is_reachable():
            raise SetupError(
                f"the {what} is no folder, not in the cache, and the Hub cannot be reached",
                where=source.name,
                fix="check the path, or connect and try again",
            ) from error
        fix = "check that the folder is complete and holds *.safetensors (pickled .bin/.pt files are refused)"
        if not source.local:
            fix = (
                "check the id, the connection and access rights; only *.safetensors are read, never .bin "
                "or .pt"
            )
        raise SetupError(message, where=source.name, fix=fix) from error


def _reason(error: Exception) -> str:
    """What an exception says in one line, which may end in a colon where its second line says what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("ignore_mismatched_sizes" in line for line in lines):
        return "its tensors have other shapes than its config.json describes"
    told = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {told}"


def _name_damaged_shard(folder: Path, what: str) -> None:
    """Raises an error that names the file, which the library that met the damage does not."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            read_shard(file)
        except DataError as damage:
            raise SetupError(
                f"the {what} cannot be loaded: {damage.message}", where=damage.where, fix=damage.fix
            ) from damage


def _package(error: ImportError) -> str:
    """What is missing: Transformers writes how to install it, Python names the module.

    Transformers names timm also where timm is installed and torchvision, which it imports, is not.
    """
    told = re.search(r"pip install (?:-\S+ )*([\w.-]+)", str(error))
    needs = re.search(r"requires the (\w+) library", str(error))
    package = needs[1].lower() if needs else told[1].strip(".") if told else str(error.name or error)
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as inner:
            return str(inner.name or package)
        except (ImportError, RuntimeError, OSError):
            return package
    return package


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Resolves a dtype: `"auto"` is bfloat16 where the GPU computes with it, else float32.

    Args:
        dtype: `"auto"`, a name of torch's, or the dtype itself.

    Returns:
        A floating-point dtype.

    Raises:
        SetupError: no floating-point dtype of that name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return (
            torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
        )
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise SetupError(f"unknown dtype {dtype!r}", fix=f"use auto, {', '.join(names)}")
    return names[dtype]


def tolerance(dtype: torch.dtype, reference: torch.Tensor) -> float:
    """How far computations of `reference` in `dtype` may lie apart: 1e-4 (fp32) or 3e-2 of its largest value.

    Matrix products of another shape are summed in another order, which is all that this allows for.
    """
    size = float(reference.abs().max()) if reference.numel() else 0.0
    return size * (1e-4 if dtype in (torch.float32, torch.float64) else 3e-2)


def check_unexpected(model: Any, keys: Any, what: str, source: Source) -> tuple[str, ...]:
    """Checks that checkpoint keys without a place belong to heads or other modalities, not to the body.

    A key belongs to the body if its first part is a child of the model or of its base model, and it does not
    lie below what the base model itself calls its classifier (timm).

    Args:
        model: that was loaded.
        keys: without a place in it.
        what: names it in messages.
        source: where it was loaded from.

    Returns:
        The keys, sorted.

    Raises:
        AssemblyError: the body of the checkpoint holds more than the model: it would compute something else.
    """
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    children = {name for name, _ in model.base_model.named_children()}
    heads = tuple(f"{path}." for path in _classifiers(model.base_model))
    lost = [
        key
        for key in sorted(keys)
        if (name := key.removeprefix(prefix)).split(".")[0] in children
        and name.endswith((".weight", ".bias"))
        and not name.startswith(heads)
    ]
    if lost:
        raise AssemblyError(
            f"the {what}'s checkpoint holds weights that {type(model).__name__} has no place for: "
            f"{some(lost)}",
            where=source.name,
            fix="use a checkpoint that matches its config.json",
        )
    return tuple(sorted(keys))


def some(names: Any) -> str:
    """The first five names, and how many more."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _classifiers(model: Any) -> list[str]:
    """Paths of what a model says is its classifier, also where it was built without one."""
    if not hasattr(model, "get_classifier"):
        return []
    head = model.get_classifier()
    heads = head if isinstance(head, tuple) else (head,)
    return [path for path, module in model.named_modules() if any(module is head for head in heads)]
