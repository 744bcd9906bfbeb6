"""The `mmproj` of classes that llama.cpp's converter takes, in the older key dialect that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lockadapt.errors import VerificationError
from lockadapt.exports.gguf.llama_cpp import LlamaCpp
from lockadapt.files import write_tensors
from lockadapt.models.quiet import quiet

FLAT, NESTED = "vision_tower.", "vision_tower.vision_model."
"""Transformers 5.6 took a level out of CLIP's and SigLIP's names; clients that are older keep it."""
POOLING = ".vision_model.head."
"""A head that pools patches, which no VLM uses and the converter leaves out."""
IN_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")


def write_eyes(
    model: Any, processor: Any, path: Path, outtype: str, llama_cpp: LlamaCpp, scratch: Path
) -> dict[str, Any]:
    """Converts everything but the LLM by llama.cpp's own converter.

    Args:
        model: the merged Transformers model.
        processor: the model's.
        path: of the file to write.
        outtype: as the converter names it.
        llama_cpp: whose converter is run.
        scratch: a folder for temporary files.

    Returns:
        `{"projector": "llama.cpp's converter", "mmproj_tensors": how many it was given}`.

    Raises:
        VerificationError: the converter fails, or leaves a tensor out.
    """
    folder = scratch / "eyes"
    folder.mkdir()
    llm = {
        id(parameter)
        for part in (model.get_decoder(), model.get_output_embeddings())
        for parameter in part.parameters()
    }
    eyes = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in llm
    }
    with quiet():
        # Names on the disk are not those in memory; only Transformers knows both.
        model.save_pretrained(folder, state_dict=eyes)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {nested(name): tensor for name, tensor in load_file(file).items()}
    write_tensors(file, tensors, {"format": "pt"})
    llama_cpp.convert(folder, path, outtype, mmproj=True)
    given = sum(POOLING not in name for name in tensors)
    _require_all(path, given)
    return {"projector": "llama.cpp's converter", "mmproj_tensors": given}


def _require_all(path: Path, given: int) -> None:
    """The converter is silent about names that it does not know."""
    from gguf import GGUFReader

    taken = len(GGUFReader(path).tensors)
    if taken != given:
        raise VerificationError(
            f"llama.cpp's converter took {taken} of {given} tensors of tower and projector",
            where=path.name,
            fix="try a newer llama.cpp; if that fails too, please report this",
        )


def nested(name: str) -> str:
    """A tensor's name with the level that Transformers took out."""
    begin = name.find(FLAT)
    if begin < 0 or not name[begin + len(FLAT) :].startswith(IN_TOWER):
        return name
    return name[:begin] + NESTED + name[begin + len(FLAT) :]
