"""Existing VLMs go through llama.cpp's converter whole, or are refused with what it lacks. The converter is a stand-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from lockadapt.errors import RecipeError, VerificationError
from lockadapt.exports.gguf import gguf_refusal, write_gguf
from lockadapt.exports.gguf.key_layout import vision_class, with_body, without_body
from tests.support.existing_vlm import written
from tests.support.stand_in import arguments_of, stand_in
from tests.support.zoo import entry_of

gguf = pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")
LLAMA, IDEFICS3 = "LlamaForCausalLM", "Idefics3ForConditionalGeneration"
QWEN = "Qwen2_5_VLForConditionalGeneration"
DROPPED = 'tensors = {name: tensors[name] for name in tensors if "modality" not in name}'
FAILS = 'if mmproj: sys.exit("ValueError: Can not map tensor")'


@pytest.fixture(scope="module")
def idefics3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("idefics3", tmp_path_factory.mktemp("idefics3") / "vlm")


def values(*tensors: torch.Tensor) -> np.ndarray:
    """All values of tensors, in order of size."""
    return np.sort(np.concatenate([tensor.float().flatten().numpy() for tensor in tensors]))


def stored(folder: Path, *names: str) -> np.ndarray:
    """All values of GGUF files, in order of size."""
    files = [gguf.GGUFReader(folder / name) for name in names]
    return values(*(torch.tensor(tensor.data) for file in files for tensor in file.tensors))


def test_every_value_is_in_one_of_the_two_files(idefics3: Path, tmp_path: Path) -> None:
    report = write_gguf(idefics3, tmp_path / "gguf", stand_in(tmp_path / "llama.cpp"))
    assert report["llm_class"] == LLAMA
    assert report["projector"] == "llama.cpp's converter"
    tensors = load_file(idefics3 / "model.safetensors")
    assert report["tensors"] == report["compared"] == len(tensors)
    both = stored(tmp_path / "gguf", report["model"], report["mmproj"])
    np.testing.assert_array_equal(both, values(*tensors.values()))


def test_an_llm_without_a_class_of_its_own_goes_under_the_whole_class(tmp_path: Path) -> None:
    vlm = written("qwen2_5_vl", tmp_path / "vlm")
    llama_cpp = stand_in(tmp_path / "llama.cpp", text=(QWEN,), mmproj=(QWEN,))
    report = write_gguf(vlm, tmp_path / "gguf", llama_cpp)
    assert report["llm_class"] == QWEN
    tensors = load_file(vlm / "model.safetensors")
    llm = [tensor for name, tensor in tensors.items() if not name.startswith("visual.")]
    np.testing.assert_array_equal(stored(tmp_path / "gguf", report["model"]), values(*llm))
    both = stored(tmp_path / "gguf", report["model"], report["mmproj"])
    np.testing.assert_array_equal(both, values(*tensors.values()))
    unknown = stand_in(tmp_path / "llama.cpp", mmproj=(QWEN,))
    assert str(gguf_refusal(vlm, unknown)) == (
        f"llama.cpp's converter has no class for the LLM of {QWEN}, and Transformers none that holds "
        "qwen2_5_vl_text alone"
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (DROPPED, r"took 37 of 38 tensors; its file lacks model\.connector\.modality_projection"),
        (FAILS, "converter failed: ValueError: Can not map tensor"),
    ],
)
def test_what_the_converter_drops_is_named(
    weights: str, message: str, idefics3: Path, tmp_path: Path
) -> None:
    llama_cpp = stand_in(tmp_path / "llama.cpp", weights=weights)
    with pytest.raises(VerificationError, match=message):
        write_gguf(idefics3, tmp_path / "gguf", llama_cpp)
    assert not (tmp_path / "gguf").exists()


def test_names_are_tried_in_the_other_way(tmp_path: Path) -> None:
    """Transformers saves Gemma 3 without `model.`; this converter, as that of InternVL, wants it."""
    vlm = written("gemma3", tmp_path / "vlm")
    known = ("Gemma3ForConditionalGeneration",)
    wants = 'tensors = tensors if not mmproj or min(tensors).startswith("model.") else {}'
    llama_cpp = stand_in(tmp_path / "llama.cpp", weights=wants, text=("Gemma3ForCausalLM",), mmproj=known)
    report = write_gguf(vlm, tmp_path / "gguf", llama_cpp)
    assert report["mmproj_tensors"] == 39
    assert report["compared"] == report["tensors"] == 67


def test_layers_that_draft_are_asked_of_nobody(idefics3: Path, tmp_path: Path) -> None:
    """No Transformers class holds them, though configs of checkpoints count them. llama.cpp's wants --no-mtp then."""
    vlm = Path(shutil.copytree(idefics3, tmp_path / "vlm"))
    config = json.loads((vlm / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (vlm / "config.json").write_text(json.dumps(config))
    counted = 'json.loads((folder / "config.json").read_text())["mtp_num_hidden_layers"]'
    asks = f'assert mmproj or {counted} != 0 or "--no-mtp" in arguments'
    once = f"assert mmproj or {counted} == 0"
    vocabulary = asks.replace("mmproj or ", "")
    llama_cpp = stand_in(tmp_path / "llama.cpp", vocabulary, f"{asks}\n{once}")
    report = write_gguf(vlm, tmp_path / "gguf", llama_cpp)
    assert report["tensors"] == report["compared"]
    assert "--no-mtp" in arguments_of(tmp_path / "gguf" / report["model"])


def test_names_of_both_ways() -> None:
    assert with_body("vision_tower.embeddings.cls_token") == "model.vision_tower.embeddings.cls_token"
    assert with_body("model.visual.x") == "model.visual.x"
    assert without_body("model.visual.x") == without_body("visual.x") == "visual.x"


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics2", "deepseek_vl", "paligemma"])
def test_a_class_that_the_converter_lacks_is_refused_by_name(name: str, tmp_path: Path) -> None:
    vlm = written(name, tmp_path / "vlm")
    llama_cpp = stand_in(tmp_path / "llama.cpp", weights='raise AssertionError("asked")')
    with pytest.raises(RecipeError) as caught:
        write_gguf(vlm, tmp_path / "gguf", llama_cpp)
    reason = f"llama.cpp's converter has no class for tower and projector of {entry_of(name).architecture}"
    assert caught.value.message == f"no export to gguf: {reason}"
    assert caught.value.exit_code == 2


def test_what_the_converter_calls_otherwise() -> None:
    ocr = hf.LightOnOcrConfig(architectures=["LightOnOcrForConditionalGeneration"])
    assert vision_class(ocr) == "LightOnOCRForConditionalGeneration"
    config = hf.InternVLConfig(architectures=["InternVLForConditionalGeneration"])
    assert vision_class(config) == "InternVisionModel"
    assert vision_class(hf.Idefics3Config(architectures=[IDEFICS3])) == IDEFICS3
