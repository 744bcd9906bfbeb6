"""A Janus made of a user's LLM, a SigLIP tower and an image tokenizer: each is still itself, and stock classes agree."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, JanusForConditionalGeneration

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.features import image_arguments, projector_input
from lockadapt.architectures.janus import fusion_of
from lockadapt.architectures.janus.image_tokenizer import load_image_tokenizer
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.errors import AssemblyError
from lockadapt.models.embeddings import image_token_id
from tests.support.tiny import LLMS, tiny_image_tokenizer, tiny_llm, tiny_tower

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "llm": tiny_llm("llama", folder / "llm"),
        "tower": tiny_tower("siglip", folder / "tower"),
        "image_tokenizer": tiny_image_tokenizer(folder / "codes"),
    }


@pytest.mark.cold
def test_proved_in_a_fresh_process(sources: dict[str, Path], tmp_path: Path) -> None:
    made = assemble(**sources, output=tmp_path / "model", dtype="float32")
    assert made.report.model_class == "JanusForConditionalGeneration"
    assert made.report.proof.fresh_process
    assert made.report.proof.feature_difference <= 1e-6
    assert made.report.proof.logit_difference <= 1e-6


@pytest.mark.parametrize("kind", sorted(LLMS))
def test_every_llm(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """Assembled, reloaded and compared with its sources in this process; then it draws with its own settings."""
    llm = tiny_llm(kind, tmp_path / "llm")
    made = assemble(
        llm, sources["tower"], None, image_tokenizer=sources["image_tokenizer"], dtype="float32", prove=False
    )
    assert made.model.generation_config.generation_kwargs[
        "boi_token_id"
    ] == made.processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")


def test_fresh_parts(drawing: Assembled) -> None:
    body = drawing.model.model
    codebook = body.vqmodel.quantize.embedding.weight
    assert torch.equal(body.generation_embeddings.weight, codebook)
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(len(codebook)))
    with torch.no_grad():
        size = body.generation_aligner(codebook).square().mean().sqrt()
    # The table has gained rows since, so the sizes are only nearly the same.
    assert float(size) == pytest.approx(embedding_rms(drawing.model), rel=0.1)


def test_seeds(sources: dict[str, Path]) -> None:
    def fresh(seed: int) -> Any:
        made = assemble(**sources, output=None, dtype="float32", prove=False, seed=seed)
        return made.model.model.generation_head.proj_out.weight, made.model.model.aligner.fc1.weight

    first, again, other = fresh(0), fresh(0), fresh(1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize(("fusion", "layers"), [("mlp", 2), ("linear", 1)])
def test_projector(fusion: str, layers: int, sources: dict[str, Path]) -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue")]
    made = assemble(
        **sources, output=None, fusion_name=fusion, dtype="float32", prove=False, calibration_images=images
    )
    aligner = made.model.model.aligner
    assert len([m for m in aligner.modules() if isinstance(m, torch.nn.Linear)]) == layers
    assert fusion_of(made.model.config).name == fusion
    values = made.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    projected = aligner(projector_input(made.model, values))
    assert float(projected.square().mean().sqrt()) == pytest.approx(embedding_rms(made.model), rel=0.05)


def test_remembered_features_are_what_pixels_give(drawing: Assembled) -> None:
    inputs = drawing.processor(text="<image>yes", images=[PICTURE], return_tensors="pt")
    with torch.no_grad():
        expected = drawing.model(**inputs).logits
        features = projector_input(drawing.model, inputs.pop("pixel_values"))
        actual = drawing.model(**inputs, **image_arguments(drawing.model, features)).logits
    torch.testing.assert_close(actual, expected)


def test_encoder_frames_images_as_the_processor_does(drawing: Assembled) -> None:
    sample = question_answer("what color?", "red", [ImageRef("i", picture=PICTURE)], "row")
    encoder = Encoder(drawing.processor, 128)
    item = encoder.encode([sample]).encoded[0]
    text = encoder.render(sample)
    expected = drawing.processor(text=text, images=[PICTURE], add_special_tokens=False)["input_ids"][0]
    assert item.input_ids.tolist() == list(expected)
    tokens = drawing.processor.tokenizer.convert_ids_to_tokens(item.input_ids.tolist())
    start = tokens.index("<begin_of_image>")
    assert tokens[start + 1 : start + 18] == ["<image>"] * 16 + ["<end_of_image>"]
    learned = item.input_ids[item.labels != IGNORED]
    assert drawing.processor.decode(learned) == "red</s>"


def test_a_codebook_is_brought_to_unit_rows(drawing: Assembled, tmp_path: Path) -> None:
    model = copy.deepcopy(drawing.model)
    table = model.model.vqmodel.quantize.embedding.weight
    table.data.mul_(torch.linspace(0.5, 2.0, len(table))[:, None])
    model.save_pretrained(tmp_path)
    drawing.processor.save_pretrained(tmp_path)
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path)
    assert float(plain.model.vqmodel.quantize.embedding.weight.norm(dim=1).max()) > 1.5
    again, _ = load_model(tmp_path, "float32")
    torch.testing.assert_close(
        again.model.vqmodel.quantize.embedding.weight, drawing.model.model.vqmodel.quantize.embedding.weight
    )


def test_saved_and_loaded_by_plain_transformers(drawing: Assembled) -> None:
    assert drawing.folder is not None
    model, info = AutoModelForImageTextToText.from_pretrained(drawing.folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(drawing.folder)
    assert type(model).__name__ == "JanusForConditionalGeneration"
    assert not info["missing_keys"]
    assert processor.num_image_tokens == 16
    assert processor.image_start_token == "<begin_of_image>"
    assert image_token_id(processor.tokenizer) == model.config.image_token_id


def test_blueprint_has_the_same_shapes(sources: dict[str, Path]) -> None:
    made = assemble(**sources, output=None, dtype="float32", prove=False).model.state_dict()
    planned = assembled_blueprint(
        sources["llm"], sources["tower"], torch.float32, image_tokenizer=sources["image_tokenizer"]
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


def test_other_grids_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    codes = tiny_image_tokenizer(tmp_path / "codes", grid=8)
    with pytest.raises(AssemblyError, match=r"8 x 8 image tokens.*4 x 4 patches"):
        assemble(sources["llm"], sources["tower"], tmp_path / "model", image_tokenizer=codes, dtype="float32")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["clip-vision", "mobilenet-v2"])
def test_other_towers_are_refused(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    tower = tiny_tower(kind, tmp_path / "tower")
    with pytest.raises(AssemblyError, match="Janus"):
        assemble(sources["llm"], tower, None, image_tokenizer=sources["image_tokenizer"], dtype="float32")


def test_other_pixel_scales_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    codes = tiny_image_tokenizer(tmp_path / "codes")
    processor = load_image_tokenizer(codes).image_processor
    processor.image_mean = [0.4, 0.5, 0.6]
    processor.save_pretrained(codes)
    with pytest.raises(AssemblyError, match="image_mean"):
        assemble(sources["llm"], sources["tower"], None, image_tokenizer=codes, dtype="float32")


def test_no_image_tokenizer(sources: dict[str, Path]) -> None:
    with pytest.raises(AssemblyError, match="no image tokenizer"):
        load_image_tokenizer(sources["tower"])
