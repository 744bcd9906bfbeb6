"""The `mmproj` of classes that llama.cpp's converter takes, in the older key dialect that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lockadapt.export.gguf.llama_cpp import LlamaCpp
from lockadapt.models.quiet import quiet

FLAT, NESTED = "vision_tower.", "vision_tower.vision_model."
"""Transformers 5.6 took a level out of CLIP's and SigLIP's names; clients that are older keep it."""
IN_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")


def write_eyes(
    model: Any, processor: Any, path: Path, outtype: str, llama_cpp: LlamaCpp, room: Path
) -> dict[str, Any]:
    """Converts everything but the LLM by llama.cpp's own converter.

    Args:
        path: of the file to write.
        outtype: as the converter names it.
        room: a folder for temporary files.

    Returns:
        `{"projector": "llama.cpp's converter", "mmproj_tensors": how many it was given}`.

    Raises:
        VerificationError: the converter fails.
    """
    folder = room / "eyes"
    folder.mkdir()
    llm = {
        id(tensor)
        for part in (model.get_decoder(), model.get_output_embeddings())
        for tensor in part.parameters()
    }
    eyes = {
        nested(name): tensor.detach().contiguous()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) not in llm
    }
    save_file(eyes, folder / "model.safetensors", metadata={"format": "pt"})
    with quiet():
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    llama_cpp.convert(folder, path, outtype, mmproj=True)
    return {"projector": "llama.cpp's converter", "mmproj_tensors": len(eyes)}


def nested(name: str) -> str:
    """A tensor's name with the level that Transformers took out."""
    place = name.find(FLAT)
    if place < 0 or not name[place + len(FLAT) :].startswith(IN_TOWER):
        return name
    return name[:place] + NESTED + name[place + len(FLAT) :]
