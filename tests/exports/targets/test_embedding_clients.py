"""Embedding models written for their clients, loaded by the clients' own classes in a fresh process, and refused where they cannot be."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, ColPaliForRetrieval

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.dual_encoder.assemble import assemble_dual
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.exports.embedding_model import EmbeddingModel, Frames, embed_images, embed_texts
from lockadapt.exports.targets import colpali, dual, sentence_transformers
from lockadapt.exports.targets.embedding import export
from lockadapt.exports.targets.sentence_transformers import frames_template
from tests.support.texts import encoder
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower

TEXTS = ["a dog", "once upon a time there was a little dog", "red square"]
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
FRAMES = Frames("<s>USER: ", " ASSISTANT: \"'{{x}} \\n one\nword", "<s>USER: <image> say\n ASSISTANT:")
with_client = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


def two_towers(llm: Path, tower: Path, pooling: Any, **given: Any) -> EmbeddingModel:
    """A dual encoder with fresh projections."""
    made = assemble_dual(llm, tower, None, dtype="float32", prove=False, dimension=16)
    return EmbeddingModel(made.model, made.processor, pooling, **given)


def one_body(
    folder: Path, llm: str, tower: str, pooling: Any = "last", frames: Frames = FRAMES
) -> EmbeddingModel:
    """A VLM with a fresh embedding projection; with the tower `janus` a Janus."""
    if tower == "janus":
        drawn = tiny_image_tokenizer(folder / "codes")
        given: dict[str, Any] = {"tower": tiny_tower("siglip", folder / "siglip"), "image_tokenizer": drawn}
    else:
        given = {"tower": tiny_tower(tower, folder / tower)}
    made = assemble(tiny_llm(llm, folder / llm), **given, output=None, dtype="float32", prove=False)
    torch.manual_seed(0)
    frames = dataclasses.replace(frames, image=frames.image.replace("<image>", made.processor.image_token))
    return EmbeddingModel(made.model, made.processor, pooling, frames, nn.Linear(32, 16))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT."""
    return encoder("bert", tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    """A LLaVA that embeds. Tests must not change it."""
    return one_body(tmp_path_factory.mktemp("vlm"), "llama-tied", "clip-vision")


@pytest.mark.parametrize("kind", ["roberta", "clip-text"])
def test_dual_class_embeds_alike(tmp_path: Path, tiny: Path, kind: str) -> None:
    trained = two_towers(encoder(kind, tmp_path / kind), tiny / "clip-vision", "pooler", scale=20.0)
    report = export(dual.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert report["model_class"] == "VisionTextDualEncoderModel"
    assert max(report["text_difference"], report["image_difference"]) < 1e-5
    from transformers import VisionTextDualEncoderModel

    model = VisionTextDualEncoderModel.from_pretrained(tmp_path / "out")
    assert float(model.logit_scale.exp()) == pytest.approx(20.0, rel=1e-5)


@with_client
def test_heads_of_two_layers(tmp_path: Path, tiny: Path) -> None:
    heads = (nn.Linear(16, 16), nn.Linear(16, 16))
    trained = two_towers(tiny / "llama-tied", tiny / "mobilenet-v2", "mean", heads=heads)
    report = export(sentence_transformers.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert max(report["text_difference"], report["image_difference"]) < 1e-5
    assert "two layers" in str(dual.CLIENT.refusal(trained))


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_dual_class_refuses_decoders(tmp_path: Path, tiny: Path, kind: str, pooling: str) -> None:
    trained = two_towers(tiny_llm(kind, tmp_path / kind), tiny / "clip-vision", pooling)
    with pytest.raises(RecipeError, match=f"embeds the vector that a text model pools itself.*'{pooling}'"):
        export(dual.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert not (tmp_path / "out").exists()


def test_dual_class_refuses_maps_and_frames(
    tmp_path: Path, tiny: Path, bert: Path, llava: EmbeddingModel
) -> None:
    refusal = dual.CLIENT.refusal
    maps = two_towers(bert, tiny_tower("resnet", tmp_path / "resnet"), "pooler")
    assert "ResNetModel pools to (20, 1, 1)" in str(refusal(maps))
    framed = two_towers(bert, tiny / "clip-vision", "pooler", frames=Frames("a photo of "))
    assert "inside a frame" in str(refusal(framed))
    assert "through one model" in str(refusal(llava))


@pytest.mark.parametrize(
    ("llm", "tower"),
    [
        pytest.param("llama-tied", "clip-vision", marks=pytest.mark.cold),
        pytest.param("qwen2", "mobilenet-v2", marks=pytest.mark.slow),
        pytest.param("llama", "janus", marks=pytest.mark.slow),
    ],
)
def test_colpali_embeds_alike(tmp_path: Path, llm: str, tower: str) -> None:
    trained = one_body(tmp_path, llm, tower)
    report = export(colpali.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert report["model_class"] == "ColPaliForRetrieval"
    assert max(report["text_difference"], report["image_difference"]) < 1e-5
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is type(trained.processor)
    assert (processor.tokenizer.padding_side, trained.processor.tokenizer.padding_side) == ("left", "right")


def test_colpali_is_the_projected_last_state(llava: EmbeddingModel, tmp_path: Path) -> None:
    """`[:, -1]` against a plain computation: normalize(W h + b)."""
    export(colpali.CLIENT, llava, tmp_path / "out", TEXTS, IMAGES)
    model = ColPaliForRetrieval.from_pretrained(tmp_path / "out").eval()
    keys = {name.split(".")[0] for name in model.state_dict()}
    assert keys == {"vlm", "embedding_proj_layer"}
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text=["<s>USER: a dog"], add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        actual = model(**inputs).embeddings[0, -1]
        state = llava.model.model(**inputs).last_hidden_state[0, -1]
        layer: Any = llava.projection
        expected = layer.weight @ state + layer.bias
    assert torch.allclose(actual, expected / expected.square().sum().sqrt(), atol=1e-6)


def test_colpali_refusals(tmp_path: Path, tiny: Path, bert: Path, llava: EmbeddingModel) -> None:
    refusal = colpali.CLIENT.refusal
    assert "this run has two" in str(refusal(two_towers(bert, tiny / "clip-vision", "pooler")))
    assert "pools by 'mean'" in str(refusal(dataclasses.replace(llava, pooling="mean")))
    assert "a bias" in str(refusal(dataclasses.replace(llava, projection=nn.Linear(32, 16, bias=False))))
    assert refusal(llava) is None


def test_colpali_refuses_positions_from_the_left_edge(tmp_path: Path) -> None:
    gpt2 = one_body(tmp_path, "gpt2", "clip-vision")
    assert "GPT2Model counts positions from the left edge" in str(colpali.CLIENT.refusal(gpt2))


def test_a_folder_that_embeds_otherwise_is_not_kept(
    llava: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = colpali.CLIENT

    def broken(trained: EmbeddingModel, folder: Path) -> None:
        other = nn.Linear(32, 16)
        target.write(dataclasses.replace(trained, projection=other), folder)

    with pytest.raises(VerificationError, match="embeddings of texts differ"):
        export(dataclasses.replace(target, write=broken), llava, tmp_path / "out", TEXTS, IMAGES)
    assert not (tmp_path / "out").exists()


@with_client
@pytest.mark.parametrize(
    ("llm", "tower", "pooling"),
    [
        pytest.param("bert", "clip-vision", "pooler", marks=pytest.mark.cold),
        ("llama-tied", "mobilenet-v2", "mean"),
        ("xlnet", "clip-vision", "mean"),
        pytest.param("bert", "resnet", "mean", marks=pytest.mark.slow),
        pytest.param("gpt2", "siglip-vision", "last", marks=pytest.mark.slow),
    ],
)
def test_sentence_transformers_encodes_both(
    tmp_path: Path, llm: str, tower: str, pooling: str, bert: Path
) -> None:
    text = {"bert": lambda folder: bert, "xlnet": lambda folder: encoder("xlnet", folder)}.get(
        llm, lambda folder: tiny_llm(llm, folder)
    )(tmp_path / llm)
    trained = two_towers(text, tiny_tower(tower, tmp_path / tower), pooling, frames=Frames("a photo of "))
    report = export(sentence_transformers.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert max(report["text_difference"], report["image_difference"]) < 1e-4
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {
        *(".json", ".safetensors", ".txt", ".jinja"),
    }


@with_client
@pytest.mark.parametrize(
    ("llm", "tower", "pooling"),
    [
        ("llama-tied", "clip-vision", "last"),
        pytest.param("qwen2", "mobilenet-v2", "mean", marks=pytest.mark.slow),
        pytest.param("gpt2", "clip-vision", "last", marks=pytest.mark.slow),
        pytest.param("llama", "janus", "last", marks=pytest.mark.slow),
    ],
)
def test_sentence_transformers_holds_a_vlm(tmp_path: Path, llm: str, tower: str, pooling: str) -> None:
    trained = one_body(tmp_path, llm, tower, pooling)
    report = export(sentence_transformers.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert max(report["text_difference"], report["image_difference"]) < 1e-4


@with_client
def test_sentence_transformers_adds_no_bos_of_its_own(tmp_path: Path) -> None:
    """The tiny tokenizer would put `<s>` before frames that have none."""
    bare = Frames("USER: ", " ASSISTANT:", "USER: <image> ASSISTANT:")
    trained = one_body(tmp_path, "llama-tied", "clip-vision", frames=bare)
    report = export(sentence_transformers.CLIENT, trained, tmp_path / "out", TEXTS, IMAGES)
    assert max(report["text_difference"], report["image_difference"]) < 1e-4


@with_client
def test_sentence_transformers_refusals(
    tmp_path: Path, tiny: Path, bert: Path, llava: EmbeddingModel
) -> None:
    refusal = sentence_transformers.CLIENT.refusal
    behind = two_towers(bert, tiny / "clip-vision", "pooler", frames=Frames("", "!"))
    assert "behind a text" in str(refusal(behind))
    uneven = dataclasses.replace(llava, frames=Frames("<s>", "", "<image>"))
    assert "only one of the frames" in str(refusal(uneven))


def test_without_the_package_it_is_refused(llava: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(sentence_transformers.CLIENT.refusal(llava))


def test_frames_template_writes_frames() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(frames_template(FRAMES))

    def render(content: Any) -> str:
        return str(template.render(messages=[{"role": "user", "content": content}]))

    framed = FRAMES.before + "a dog" + FRAMES.after
    assert render(" a dog ") == framed
    assert render([{"type": "text", "text": "a dog"}]) == framed
    assert render([{"type": "image", "image": None}]) == FRAMES.image
    assert json.dumps(render("ä")) == json.dumps(FRAMES.before + "ä" + FRAMES.after)


def test_embeddings_have_length_one(llava: EmbeddingModel) -> None:
    for rows in (embed_texts(llava, TEXTS), embed_images(llava, IMAGES)):
        assert rows.shape == (3, 16)
        assert torch.allclose(rows.norm(dim=1), torch.ones(3))
