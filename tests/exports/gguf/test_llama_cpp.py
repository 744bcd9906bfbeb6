"""llama.cpp itself, on request: it converts, looks at an image, and computes what Transformers computes.

    LOCKADAPT_LLAMA_CPP=DIR pytest tests/exports/gguf/test_llama_cpp.py

DIR holds llama.cpp's sources, built into DIR/build with shared libraries; docs/gguf.md says how.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoModelForImageTextToText, AutoProcessor

from lockadapt.architectures.assemble import assemble
from lockadapt.exports.gguf import LlamaCpp, gguf_refusal, write_gguf
from tests.support.gguf import noise, random_llama, spelling_tokenizer
from tests.support.tiny import COMMON, GROUPED, VIT, tiny_llm, tiny_tower

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")
ASSETS = Path(__file__).parents[3] / "lockadapt" / "quickstart" / "assets"
NEW_TOKENS = 16
MARKER = "<__media__>"


@pytest.fixture(scope="module")
def answer(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`answer.cpp`, compiled against llama.cpp. Skips where that is not built."""
    source, libraries = llama_cpp.folder, llama_cpp.folder / "build" / "bin"
    if not list(libraries.glob("libmtmd.*")) or not shutil.which("c++"):
        pytest.skip(f"no libmtmd in {libraries}, or no C++ compiler")
    program = tmp_path_factory.mktemp("answer") / "answer"
    headers = [source / "include", source / "ggml" / "include", source / "tools" / "mtmd"]
    subprocess.run(
        [
            *("c++", "-O1", "-std=c++17", *(f"-I{folder}" for folder in headers)),
            *(str(Path(__file__).with_name("answer.cpp")), "-o", str(program)),
            *(
                f"-L{libraries}",
                "-lmtmd",
                "-lllama",
                "-lggml",
                "-lggml-base",
                f"-Wl,-rpath,{libraries.resolve()}",
            ),
        ],
        check=True,
    )
    return program


@dataclass(frozen=True)
class Seen:
    """What one of the two computes of a prompt with an image: -1 in `prompt` stands for an image token."""

    prompt: list[int]
    features: torch.Tensor
    logits: torch.Tensor
    tokens: list[int]


@torch.no_grad()
def transformers_sees(folder: Path, question: str) -> tuple[Seen, str, Any]:
    """By the stock class; also the prompt as text, without bos, and the image."""
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    image = noise(7, model.config.vision_config.image_size)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    text = text.removeprefix(processor.tokenizer.bos_token)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    length, image_id = inputs["input_ids"].shape[1], model.config.image_token_id
    seen = Seen(
        [-1 if number == image_id else number for number in inputs["input_ids"][0].tolist()],
        torch.cat([tensor.float() for tensor in features]),
        model(**inputs).logits[0, -1].float(),
        model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, length:].tolist(),
    )
    return seen, text.replace(processor.image_token, MARKER), image


def llama_cpp_sees(answer: Path, folder: Path, prompt: str, image: Any, scratch: Path) -> Seen:
    (scratch / "rgb").write_bytes(image.tobytes())
    files = [str(next(folder.glob(name))) for name in ("model-*.gguf", "mmproj-*.gguf")]
    picture = [str(scratch / "rgb"), str(image.width), str(image.height)]
    done = subprocess.run(
        [str(answer), *files, *picture, prompt, str(NEW_TOKENS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    logits = torch.tensor(result["logits"])
    features = torch.tensor(result["features"]).view(result["prompt"].count(-1), -1)
    return Seen(result["prompt"], features, logits, result["tokens"])


def compare(first: Seen, second: Seen, within: tuple[float, float]) -> None:
    """Prompts, projected images and logits; `within` is relative, for the last two."""
    assert first.prompt == second.prompt
    assert first.features.shape == second.features.shape
    pairs = (first.features, second.features), (first.logits[: len(second.logits)], second.logits)
    for (ours, other), allowed in zip(pairs, within, strict=True):
        difference, size = float((ours - other).abs().max()), float(ours.abs().max())
        print(f"largest difference {difference:.3g} of {size:.3g}")
        assert difference <= allowed * size
    print("Transformers", first.tokens)
    print("llama.cpp   ", second.tokens)


def agree(
    llama_cpp: LlamaCpp,
    answer: Path,
    merged: Path,
    scratch: Path,
    outtype: str = "auto",
    within: tuple[float, float] = (2e-3, 1e-2),
) -> tuple[list[int], list[int]]:
    """Exports, compares, and returns both answers. llama.cpp takes GELU by tanh from a table of 16-bit floats."""
    write_gguf(merged, scratch / "gguf", llama_cpp, outtype=outtype)
    first, prompt, image = transformers_sees(merged, "what color is the shape?")
    second = llama_cpp_sees(answer, scratch / "gguf", prompt, image, scratch)
    compare(first, second, within)
    return first.tokens, second.tokens


@pytest.mark.real
@pytest.mark.parametrize("llm", ["tinystories-656k", "stories260k"])
def test_real_llm_and_siglip(llm: str, real: Path, llama_cpp: LlamaCpp, answer: Path, tmp_path: Path) -> None:
    assemble(real / "llm" / llm, ASSETS / "tower", tmp_path / "merged", dtype="float32", prove=False)
    first, second = agree(llama_cpp, answer, tmp_path / "merged", tmp_path, within=(2e-3, 2e-3))
    assert first == second


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_siglip_at_any_layer(layer: int, llama_cpp: LlamaCpp, answer: Path, tmp_path: Path) -> None:
    llm, tower = random_llama(tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    assemble(llm, tower, tmp_path / "merged", dtype="float32", feature_layer=layer, prove=False)
    agree(llama_cpp, answer, tmp_path / "merged", tmp_path)


@pytest.mark.parametrize("outtype", ["f16", "bf16"])
def test_rounded(outtype: str, llama_cpp: LlamaCpp, answer: Path, tmp_path: Path) -> None:
    llm, tower = random_llama(tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    assemble(llm, tower, tmp_path / "merged", dtype="float32", prove=False)
    agree(llama_cpp, answer, tmp_path / "merged", tmp_path, outtype=outtype, within=(0.02, 0.1))


def test_feed_forward_as_wide_as_the_tower(llama_cpp: LlamaCpp, answer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf.SiglipVisionModel(hf.SiglipVisionConfig(**{**VIT, "intermediate_size": 24})).save_pretrained(
        tmp_path / "tower"
    )
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "tower")
    assemble(
        random_llama(tmp_path / "llm"), tmp_path / "tower", tmp_path / "merged", dtype="float32", prove=False
    )
    agree(llama_cpp, answer, tmp_path / "merged", tmp_path)


def test_clip_agrees_or_is_refused(llama_cpp: LlamaCpp, answer: Path, tmp_path: Path) -> None:
    llm, tower = random_llama(tmp_path / "llm"), tiny_tower("clip-vision", tmp_path / "tower")
    assemble(llm, tower, tmp_path / "merged", dtype="float32", prove=False)
    if llama_cpp.misplaces_class_token:
        assert "issues/25814" in str(gguf_refusal(tmp_path / "merged", llama_cpp))
        return
    agree(llama_cpp, answer, tmp_path / "merged", tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("qwen2", "pre-tokenizer was not recognized"), ("opt", "OPTForCausalLM is not supported")],
)
def test_what_the_converter_does_not_know(
    kind: str, reason: str, llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    llm, tower = tiny_llm(kind, tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    assemble(llm, tower, tmp_path / "merged", dtype="float32", prove=False)
    assert reason in str(gguf_refusal(tmp_path / "merged", llama_cpp))


def test_idefics3_by_the_converter(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = spelling_tokenizer()
    tokens = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    size = {"longest_edge": 32}
    images = hf.Idefics3ImageProcessorPil(size=size, max_image_size=size)
    text = {
        **COMMON,
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(
            vision_config={**VIT, "model_type": "idefics3_vision"},
            text_config=text,
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(tmp_path / "merged")
    hf.Idefics3Processor(images, tokenizer, image_seq_len=4).save_pretrained(tmp_path / "merged")
    report = write_gguf(tmp_path / "merged", tmp_path / "gguf", llama_cpp, outtype="f32")
    tensors = {
        tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "gguf" / report["mmproj"]).tensors
    }
    assert report["projector"] == "llama.cpp's converter"
    assert len(tensors) == report["mmproj_tensors"]
    source = model.model.connector.modality_projection.proj.weight.detach()
    torch.testing.assert_close(torch.tensor(tensors["mm.model.fc.weight"]), source, rtol=0, atol=0)


def test_gemma3_by_the_converter_in_the_older_dialect(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = spelling_tokenizer()
    names = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens=names,
    )
    text = {
        **GROUPED,
        "model_type": "gemma3_text",
        "vocab_size": len(tokenizer),
        "head_dim": 8,
        "sliding_window": 16,
    }
    model = hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            vision_config={**VIT, "model_type": "siglip_vision_model", "vision_use_head": False},
            text_config=text,
            mm_tokens_per_image=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        )
    )
    model.save_pretrained(tmp_path / "merged")
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    hf.Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(tmp_path / "merged")
    report = write_gguf(tmp_path / "merged", tmp_path / "gguf", llama_cpp, outtype="f32")
    tensors = {
        tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "gguf" / report["mmproj"]).tensors
    }
    assert len(tensors) == report["mmproj_tensors"]
    source = model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.detach()
    torch.testing.assert_close(torch.tensor(tensors["v.blk.0.ffn_up.weight"]), source, rtol=0, atol=0)
