"""Writes the two files that llama.cpp wants: the LLM by llama.cpp's converter, the eyes by it or by ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lockadapt.architectures.load import load_processor
from lockadapt.errors import AssemblyError, RecipeError, VerificationError
from lockadapt.exports.gguf.accounted import Accounted, account
from lockadapt.exports.gguf.key_layout import write_eyes
from lockadapt.exports.gguf.llama_cpp import LlamaCpp
from lockadapt.exports.gguf.mmproj import DTYPES, write_mmproj
from lockadapt.exports.gguf.refusal import colours_of, gguf_refusal, has_llava_graph
from lockadapt.exports.gguf.text import text_class, write_llm
from lockadapt.files import new_folder, require_new
from lockadapt.models.sources import find, loading, some

AUTO = "auto"
OUTTYPES = (AUTO, *DTYPES)


def write_gguf(
    folder: str | Path,
    output: str | Path,
    llama_cpp: LlamaCpp,
    *,
    outtype: str = AUTO,
    finish: Callable[[Path, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Writes a folder with `model-TYPE.gguf` and `mmproj-model-TYPE.gguf`.

    Args:
        folder: a merged stock folder.
        output: must not exist or be empty; written whole or not at all.
        llama_cpp: from `open_llama_cpp`.
        outtype: of `OUTTYPES`; `auto` keeps the folder's own dtype, so nothing is rounded.
        finish: given the written folder, still at its temporary place, and what is returned.

    Returns:
        `{"output", "model", "mmproj", "outtype", "llm_class", "projector", …, "tensors", "compared",
        "notes"}`; `model` and `mmproj` are file names, `tensors` how many the converter was given, `compared`
        how many of them have all their values in the files, `notes` what the user must know.

    Raises:
        RecipeError: `output` is not empty, no such outtype, or llama.cpp cannot take this model, and why.
        SetupError: the folder or llama.cpp cannot be read.
        AssemblyError: a tensor has no place in llama.cpp's graph.
        VerificationError: the converter failed, or a file is not as it was written. Nothing is left at
            `output`.
    """
    require_new(output, what="exporting")
    if outtype not in OUTTYPES:
        raise RecipeError(
            f"there is no outtype {outtype!r}", where="--outtype", fix=f"there are: {', '.join(OUTTYPES)}"
        )
    if reason := gguf_refusal(folder, llama_cpp):
        raise RecipeError(f"no export to gguf: {reason}", where="--to", fix="choose another target")
    model, processor = _load(folder)
    kept = _kept(model.dtype) if outtype == AUTO else outtype
    names = {"model": f"model-{kept}.gguf", "mmproj": f"mmproj-model-{kept}.gguf"}
    with (
        new_folder(output, what="exporting") as destination,
        tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch,
    ):
        eyes, eyes_accounted = _write_mmproj(
            model, processor, destination / names["mmproj"], kept, llama_cpp, Path(scratch)
        )
        text = Path(scratch) / "text"
        text.mkdir()
        llm_class = text_class(model.config, llama_cpp.classes[0])
        notes = write_llm(model, processor, text)
        del model  # its weights are on the disk, and the converter runs in a process of its own
        llama_cpp.convert(text, destination / names["model"], kept)
        accounted = (account(destination / names["model"], text), *eyes_accounted)
        accounted[0].require_all(destination / names["model"])
        result = {
            "output": str(output),
            **names,
            "outtype": kept,
            "llm_class": llm_class,
            **eyes,
            "tensors": sum(part.tensors for part in accounted),
            "compared": sum(part.compared for part in accounted),
            "notes": [*notes, *_differences(accounted, rounding=outtype == AUTO)],
        }
        if finish is not None:
            finish(destination, result)
    return result


def _load(folder: str | Path) -> tuple[Any, Any]:
    """The model in the dtype of its weights, on the CPU, and its processor."""
    source = find(folder, "VLM")
    with loading(source, "VLM"):
        dtype = AutoConfig.from_pretrained(source.name, **source.arguments).dtype or torch.float32
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            raise VerificationError(f"{kind.replace('_', ' ')}: {some(info[kind])}", where=str(folder))
    return model.eval(), load_processor(folder)


def _kept(dtype: torch.dtype) -> str:
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise AssemblyError(f"weights in {dtype}", fix=f"merge to one of {', '.join(map(str, DTYPES.values()))}")


def _write_mmproj(
    model: Any, processor: Any, path: Path, outtype: str, llama_cpp: LlamaCpp, scratch: Path
) -> tuple[dict[str, Any], tuple[Accounted, ...]]:
    if not has_llava_graph(model.config):
        written, accounted = write_eyes(model, processor, path, outtype, llama_cpp, scratch)
        return written, (accounted,)
    colours = colours_of(model.config, processor)
    if isinstance(colours, str):
        raise AssemblyError(colours)
    return write_mmproj(model, colours, path, outtype), ()


def _differences(parts: tuple[Accounted, ...], *, rounding: bool) -> list[str]:
    """What the files do not hold as the folder does; rounding only where nobody asked for it."""
    notes = []
    if changed := [name for part in parts for name in part.changed]:
        notes.append(f"the converter computes other values from {some(changed)}, which were not compared")
    if rounding and (rounded := [name for part in parts for name in part.rounded]):
        notes.append(f"the converter rounds {some(rounded)}, whatever the outtype")
    return notes
