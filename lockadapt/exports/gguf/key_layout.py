"""The `mmproj` of classes that llama.cpp's converter takes, in the dialect of names that it reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lockadapt.architectures import class_name
from lockadapt.errors import VerificationError
from lockadapt.exports.gguf.accounted import Accounted, account
from lockadapt.exports.gguf.llama_cpp import LlamaCpp
from lockadapt.exports.gguf.text import llm_tensors
from lockadapt.files import write_tensors
from lockadapt.models.quiet import quiet

FLAT, NESTED = "vision_tower.", "vision_tower.vision_model."
"""Transformers 5.6 took a level out of CLIP's and SigLIP's names; clients that are older keep it."""
POOLING = ".vision_model.head."
"""A head that pools patches, which no VLM uses and the converter leaves out."""
IN_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")


BODY = "model."
VISION_CLASSES = {
    "InternVLForConditionalGeneration": "InternVisionModel",
    "LightOnOcrForConditionalGeneration": "LightOnOCRForConditionalGeneration",
    "PaddleOCRVLForConditionalGeneration": "PaddleOCRVisionModel",
}
"""What the converter calls tower and projector where it does not use the name of the class."""


def vision_class(config: Any) -> str:
    """Under which name llama.cpp's converter would take tower and projector of a class."""
    name = class_name(config)
    return VISION_CLASSES.get(name, name)


def write_eyes(
    model: Any, processor: Any, path: Path, outtype: str, llama_cpp: LlamaCpp, scratch: Path
) -> tuple[dict[str, Any], Accounted]:
    """Converts everything but the LLM by llama.cpp's own converter.

    Some of its classes want `model.` in front of every name, and some want none, so that the names are tried
    as Transformers writes them, and then in the other way.

    Args:
        model: the merged Transformers model.
        processor: the model's.
        path: of the file to write.
        outtype: as the converter names it.
        llama_cpp: whose converter is run.
        scratch: a folder for temporary files.

    Returns:
        `{"projector": "llama.cpp's converter", "mmproj_tensors": how many it was given}`, and what became of
        them.

    Raises:
        VerificationError: the converter fails, or leaves a tensor out.
    """
    folder, saved = scratch / "eyes", scratch / "saved"
    folder.mkdir()
    llm = {id(tensor) for tensor in llm_tensors(model).values()}
    eyes = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in llm
    }
    config = copy.deepcopy(model.config)
    with quiet():
        # Names on the disk are not those in memory; only Transformers knows both.
        model.save_pretrained(saved, state_dict=eyes)
        config.vision_config.architectures = [vision_class(config)]
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    failure, partial = None, []
    for rename in (nested, with_body, without_body):
        _renamed(saved, folder, rename)
        try:
            llama_cpp.convert(folder, path, outtype, mmproj=True)
        except VerificationError as error:
            failure = failure or error
            continue
        accounted = account(path, folder, left_out=(POOLING,))
        if not accounted.lacking:
            numbers = {"projector": "llama.cpp's converter", "mmproj_tensors": accounted.tensors}
            return numbers, accounted
        partial.append(accounted)
    best = min(partial, key=lambda accounted: len(accounted.lacking), default=None)
    if best is not None and (best.compared or failure is None):
        best.require_all(path)
    assert failure is not None
    raise failure


def _renamed(saved: Path, folder: Path, rename: Callable[[str], str]) -> None:
    """Writes tensors into another folder under other names."""
    for file in saved.glob("*.safetensors"):
        tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
        write_tensors(folder / file.name, tensors, {"format": "pt"})


def with_body(name: str) -> str:
    """A tensor's name with `model.` in front."""
    return name if name.startswith(BODY) else BODY + name


def without_body(name: str) -> str:
    """A tensor's name without `model.` in front, and with the level that Transformers took out."""
    return nested(name.removeprefix(BODY))


def nested(name: str) -> str:
    """A tensor's name with the level that Transformers took out."""
    begin = name.find(FLAT)
    if begin < 0 or not name[begin + len(FLAT) :].startswith(IN_TOWER):
        return name
    return name[:begin] + NESTED + name[begin + len(FLAT) :]
