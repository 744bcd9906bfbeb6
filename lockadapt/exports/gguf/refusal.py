"""Why llama.cpp cannot take a stock folder: found from config, processor, tokenizer before any weight."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lockadapt.architectures import class_name, find_architecture
from lockadapt.architectures.load import load_processor
from lockadapt.errors import AssemblyError
from lockadapt.exports.gguf.key_layout import vision_class
from lockadapt.exports.gguf.llama_cpp import LlamaCpp
from lockadapt.exports.gguf.text import text_class, write_vocabulary
from lockadapt.exports.gguf.tower import CLIP, Colours, measure_colours, tower_refusal
from lockadapt.models.sources import find, loading


def gguf_refusal(folder: str | Path, llama_cpp: LlamaCpp) -> str | None:
    """Why this llama.cpp cannot take a merged stock folder, or None.

    Takes some seconds: its converter is asked.

    Args:
        folder: a merged stock folder, or a Hub id.
        llama_cpp: whose converter is asked.

    Returns:
        The reason, or None.

    Raises:
        SetupError: the folder cannot be read, or the converter does not start.
    """
    source = find(folder, "VLM")
    with loading(source, "VLM"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    if reason := class_refusal(config):
        return reason
    processor = load_processor(folder)
    return _picture_refusal(config, processor, llama_cpp) or _llm_refusal(config, processor, llama_cpp)


def class_refusal(config: PreTrainedConfig) -> str | None:
    """Why no llama.cpp takes this class, or None; from the config alone."""
    architecture = find_architecture(config)
    if architecture is not None and (reason := architecture.clients.refused.get("gguf")):
        return reason
    return tower_refusal(config) if has_llava_graph(config) else None


def has_llava_graph(config: PreTrainedConfig) -> bool:
    """Whether tower and projector are those of llama.cpp's LLaVA graph, which lockadapt writes itself."""
    architecture = find_architecture(config)
    return architecture is not None and architecture.clients.llava_graph


def colours_of(config: Any, processor: Any) -> Colours | str:
    """The colours that the tower is shown, or why llama.cpp cannot show the same."""
    return measure_colours(processor.image_processor, config.vision_config.image_size)


def _picture_refusal(config: Any, processor: Any, llama_cpp: LlamaCpp) -> str | None:
    vision: Any = getattr(config, "vision_config", None)
    if not has_llava_graph(config):
        if vision_class(config) in llama_cpp.classes[1]:
            return None
        return f"llama.cpp's converter has no class for tower and projector of {class_name(config)}"
    if isinstance(colours := colours_of(config, processor), str):
        return colours
    if vision.model_type == CLIP and llama_cpp.misplaces_class_token:
        return (
            f"the llama.cpp at {llama_cpp.folder} takes CLIP's class token for a patch in LLaVA "
            "(https://github.com/ggml-org/llama.cpp/issues/25814), so it would see other images than "
            "were trained on; "
            "use one with pull request 25844 in it, or a SigLIP tower"
        )
    return None


def _llm_refusal(config: Any, processor: Any, llama_cpp: LlamaCpp) -> str | None:
    """Tokenizer and config go through the converter as they will later, only without weights."""
    if text_class(config, llama_cpp.classes[0]) is None:
        return (
            f"llama.cpp's converter has no class for the LLM of {class_name(config)}, and Transformers none "
            f"that holds {config.get_text_config().model_type} alone"
        )
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        folder = Path(scratch) / "text"
        folder.mkdir()
        try:
            write_vocabulary(config, processor, folder)
        except AssemblyError as error:
            return error.message
        reason = llama_cpp.refusal(folder, Path(scratch) / "vocabulary.gguf")
    return reason and f"llama.cpp's converter does not take this LLM: {reason}"
