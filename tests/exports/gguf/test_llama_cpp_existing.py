"""llama.cpp's own converter, on request, takes existing VLMs whole: every value of the folder is in one of the two files.

    LOCKADAPT_LLAMA_CPP=DIR pytest tests/exports/gguf/test_llama_cpp_existing.py

DIR holds llama.cpp's sources, which need not be built. The files are read back, and not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lockadapt.architectures.assemble import assemble
from lockadapt.exports.gguf import LlamaCpp, write_gguf
from tests.support.gguf import random_llama, spelling_tokenizer
from tests.support.tiny import tiny_tower
from tests.support.zoo import base, entry_of

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")
BLOCKS = 4
"""The converter knows the layers of a projector, `mlp.3`, only as long as the tower has as many blocks."""


@pytest.fixture
def known_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's tokenizer is byte-level, and not in the converter's list: one like SentencePiece's takes its place."""
    tokenizer = spelling_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(base, "TOKENIZER", tmp_path / "tokenizer")


def deep(name: str, folder: Path) -> Path:
    """A tiny model of the zoo, with a tower of `BLOCKS` blocks."""
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    made = entry.make()
    vision: Any = made.config.vision_config
    setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", BLOCKS)
    if getattr(vision, "fullatt_block_indexes", None):
        vision.fullatt_block_indexes = [1, 3]
    if (
        name == "gemma4"
    ):  # where heads of both kinds of layers are equal, Transformers writes no size that is read
        text = made.config.text_config.to_dict()
        del text["per_layer_config"]
        made.config.text_config = type(made.config.text_config)(**text, global_head_dim=32)
    dataclasses.replace(entry, make=lambda: made).write(folder)
    return folder


@pytest.mark.usefixtures("known_tokenizer")
@pytest.mark.parametrize(
    ("name", "llm", "projector"),
    [
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2vl_merger"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "qwen2.5vl_merger"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3vl_merger"),
        ("gemma3", "Gemma3ForCausalLM", "gemma3"),
        ("gemma4", "Gemma4ForCausalLM", "gemma4v"),
        ("idefics3", "LlamaForCausalLM", "idefics3"),
        ("smolvlm", "LlamaForCausalLM", "idefics3"),
        ("internvl", "Qwen2ForCausalLM", "internvl"),
        ("mistral3", "MistralForCausalLM", "pixtral"),
        ("lighton_ocr", "Qwen3ForCausalLM", "lightonocr"),
    ],
)
def test_every_value_arrives(
    name: str, llm: str, projector: str, llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    vlm = deep(name, tmp_path / "vlm")
    report = write_gguf(vlm, tmp_path / "gguf", llama_cpp)
    assert report["llm_class"] == llm
    given = load_file(vlm / "model.safetensors")
    assert report["tensors"] == report["compared"] == len(given)
    text, eyes = (gguf.GGUFReader(tmp_path / "gguf" / report[kind]) for kind in ("model", "mmproj"))
    # The name for files that could hold a tower of another kind too, as Gemma 4's for sounds.
    field = eyes.get_field("clip.projector_type") or eyes.get_field("clip.vision.projector_type")
    assert field.contents() == projector
    written = {tensor.name: np.array(tensor.data) for file in (text, eyes) for tensor in file.tensors}
    assert_same_values(given, written)


@pytest.mark.usefixtures("known_tokenizer")
def test_idefics3_of_our_own(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    """The class that llama.cpp converts by itself, assembled from an LLM and a SigLIP tower."""
    sources = random_llama(tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    assemble(*sources, tmp_path / "merged", dtype="float32", fusion_name="pixel-shuffle-linear", prove=False)
    report = write_gguf(tmp_path / "merged", tmp_path / "gguf", llama_cpp)
    assert report["projector"] == "llama.cpp's converter"
    given = load_file(tmp_path / "merged" / "model.safetensors")
    assert report["tensors"] == report["compared"] == len(given) == 75
    eyes = gguf.GGUFReader(tmp_path / "gguf" / report["mmproj"])
    connector = next(tensor for tensor in eyes.tensors if tensor.name == "mm.model.fc.weight")
    np.testing.assert_array_equal(
        connector.data, given["model.connector.modality_projection.proj.weight"].numpy()
    )


def assert_same_values(given: dict[str, Any], written: dict[str, np.ndarray]) -> None:
    """Compares all values of a folder and of both files, in order of size.

    Those of Gemma's norms lie 1 higher, and its projection is float16 whatever is asked for.
    """
    written.pop("rope_freqs.weight", None)  # Gemma 4's, which the converter computes
    moved = {name for name in written if name.endswith("norm.weight")}
    ours, theirs = numbers(given.values()), numbers(written.values())
    if len(ours) == len(theirs) and np.array_equal(ours, theirs):
        return
    shifted = [tensor - 1 if name in moved else tensor for name, tensor in written.items()]
    assert written["mm.input_projection.weight"].dtype == np.float16
    np.testing.assert_allclose(numbers(shifted), ours, rtol=0, atol=1e-3)


def numbers(tensors: Any) -> np.ndarray:
    """All values, in order of size."""
    flat: Iterator[np.ndarray] = (np.asarray(tensor, np.float32).reshape(-1) for tensor in tensors)
    return np.sort(np.concatenate(list(flat)))
