"""An LLM in a GGUF file becomes an ordinary folder, as Transformers dequantizes it; made once, reused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockadapt.errors import SetupError
from lockadapt.files import new_folder, sha256_of

GGUF_CACHE = Path("~/.cache/lockadapt/gguf")
"""Where the folders are, each under the SHA-256 of its file."""

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@lru_cache
def _digest(file: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file in a state; a command asks for its LLM several times, and files have gigabytes."""
    return sha256_of(file)


def gguf_folder(file: Path) -> Path:
    """Gives the folder that a GGUF file was made into; makes it if it is not there yet.

    Weights are dequantized to float32, which holds the blocks' values without rounding; tokenizer and chat
    template are those in the file.

    Args:
        file: a causal language model, of an architecture that Transformers reads from GGUF.

    Returns:
        A folder in Hugging Face format.

    Raises:
        SetupError: the package `gguf` is not installed, or the file is damaged.
        DiskError: the disk is full, or the cache cannot be written.
    """
    state = file.stat()
    digest = _digest(file.absolute(), state.st_size, state.st_mtime_ns)
    made_before = made_folder(digest)
    if made_before is not None:
        return made_before
    require_gguf(str(file))
    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it says "gguf", and Transformers then refuses to save
    config.name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    folder = _folder(digest)
    with new_folder(folder, what="dequantizing") as made:
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return folder


def made_folder(digest: str) -> Path | None:
    """The folder that the GGUF file of this SHA-256 was made into, or None where it was not yet."""
    folder = _folder(digest)
    return folder if (folder / "config.json").is_file() else None


def require_gguf(where: str) -> None:
    """Refuse a GGUF file unless the package that reads it is installed.

    Args:
        where: names the file.

    Raises:
        SetupError: it is not.
    """
    try:
        import gguf  # noqa: F401  # Transformers asks for it in words of its own
    except ImportError as error:
        raise SetupError(
            "GGUF files need the package gguf, which is not installed",
            where=where,
            fix='pip install "lockadapt[gguf]"',
        ) from error


def _folder(digest: str) -> Path:
    return GGUF_CACHE.expanduser() / digest
