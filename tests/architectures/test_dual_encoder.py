"""The dual body embeds as stock classes and sentence-transformers' poolings do, and fits its projections."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional as F

from lockadapt.architectures.dual_encoder import assemble as assembling
from lockadapt.architectures.dual_encoder.assemble import assemble_dual, load_dual
from lockadapt.architectures.dual_encoder.embeddings import (
    freeze_statistics,
    initialise_projections,
    pooled_image_features,
    project_images,
    project_texts,
    text_embedding,
)
from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.models.texts import pool
from lockadapt.objectives.retrieval import headed
from tests.support.texts import ENCODERS, encoder
from tests.support.tiny import FEATURE_MAPS, TOWERS, tiny_llm, tiny_tower

NO_POOLER = ("vit-classifier",)
"""Towers whose checkpoint lacks the pooler that the stock class would run."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT."""
    return encoder("bert", tmp_path_factory.mktemp("text") / "bert")


def make(llm: Path, tower: Path, **settings: Any) -> Any:
    """A tiny dual encoder that nothing is kept of."""
    return assemble_dual(llm, tower, None, dtype="float32", prove=False, dimension=8, **settings)


def test_embeddings_are_those_of_the_stock_forward(bert: Path, tiny: Path) -> None:
    model = make(bert, tiny / "clip-vision").model
    values, ids = torch.randn(3, 3, 32, 32), torch.randint(3, 290, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    expected = model(input_ids=ids, attention_mask=mask, pixel_values=values)
    images = headed(project_images(model, pooled_image_features(model, values)), None)
    texts = headed(project_texts(model, text_embedding(model, ids, mask, "pooler")), None)
    assert torch.allclose(images, expected.image_embeds, atol=1e-6)
    assert torch.allclose(texts, expected.text_embeds, atol=1e-6)
    assert images.shape == (3, 8)


def test_gradients_are_those_of_the_stock_forward(bert: Path, tiny: Path) -> None:
    model = make(bert, tiny / "clip-vision").model.requires_grad_(True)
    values, ids = torch.randn(3, 3, 32, 32), torch.randint(3, 290, (3, 7))
    mask = torch.ones_like(ids)
    out = model(input_ids=ids, attention_mask=mask, pixel_values=values)
    (out.text_embeds * out.image_embeds).sum().backward()
    names = ("text_projection.weight", "visual_projection.weight", "text_model.pooler.dense.weight")
    first = {name: model.get_parameter(name).grad.clone() for name in names}
    model.zero_grad()
    images = headed(project_images(model, pooled_image_features(model, values)), None)
    texts = headed(project_texts(model, text_embedding(model, ids, mask, "pooler")), None)
    (texts * images).sum().backward()
    for name, gradient in first.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, atol=1e-6), name
    assert all(p.grad is None for p in model.vision_model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind not in NO_POOLER])
def test_every_tower_pools_to_one_vector(bert: Path, tmp_path: Path, kind: str) -> None:
    made = make(bert, tiny_tower(kind, tmp_path / kind))
    model, side = made.model, made.report.image_size
    values = torch.randn(2, 3, side, side)
    pooled = pooled_image_features(model, values)
    assert pooled.shape == (2, 1, made.report.image_channels)
    if kind in FEATURE_MAPS and kind != "convnext":  # ConvNeXt normalises what it has pooled
        states = model.vision_model(values).last_hidden_state
        assert torch.allclose(pooled[:, 0], states.mean((2, 3)), atol=1e-5)


def test_a_tower_without_its_pooler_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match=r"lacks pooler\.dense"):
        make(bert, tiny_tower("vit-classifier", tmp_path / "vit"))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pooling_does_not_see_padding(lengths: list[int], left: bool) -> None:
    longest = max(lengths)
    states = torch.randn(len(lengths), longest, 3)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        kept = slice(longest - length, longest) if left else slice(0, length)
        mask[row, kept] = 1
    for row in range(len(lengths)):
        own = states[row][mask[row].bool()]
        assert torch.allclose(pool(states, mask, "mean")[row], own.mean(0), atol=1e-6)
        assert torch.equal(pool(states, mask, "last")[row], own[-1])


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [*itertools.product(["llama-tied", "gpt2", "opt", "bloom"], ["last", "mean"]), ("xlnet", "mean")],
)
def test_a_batch_of_texts_is_each_text_alone(tmp_path: Path, tiny: Path, kind: str, pooling: Any) -> None:
    make_text = encoder if kind in ENCODERS else tiny_llm
    made = make(make_text(kind, tmp_path / kind), tiny / "clip-vision")
    texts = ["a dog", "once upon a time there was a little dog", "red"]
    jointly = made.processor.tokenizer(texts, padding=True, return_tensors="pt")
    actual = text_embedding(made.model, jointly["input_ids"], jointly["attention_mask"], pooling)
    for row, text in enumerate(texts):
        alone = made.processor.tokenizer(text, return_tensors="pt")
        single = text_embedding(made.model, alone["input_ids"], alone["attention_mask"], pooling)
        assert torch.allclose(actual[row], single[0], atol=1e-5)


def test_running_statistics_stay(bert: Path, tiny: Path) -> None:
    model = make(bert, tiny / "mobilenet-v2").model
    before = {name: buffer.clone() for name, buffer in model.vision_model.named_buffers()}
    model.train()
    freeze_statistics(model)
    pooled_image_features(model, torch.randn(4, 3, 64, 64))
    assert model.text_model.training
    assert all(torch.equal(before[name], buffer) for name, buffer in model.vision_model.named_buffers())


def test_fitted_projections_see_no_mean_and_no_scale(bert: Path, tiny: Path) -> None:
    model = make(bert, tiny / "clip-vision").model
    scales = torch.logspace(-1, 1, 24)
    features = (torch.randn(400, 24) * scales + 5 * scales)[:, None]
    initialise_projections(model, torch.Generator().manual_seed(0), features)
    weight = model.visual_projection.weight
    mean = features[:, 0].mean(0)
    assert float(F.cosine_similarity(weight, mean[None], dim=1).abs().max()) < 1e-2
    projected = features[:, 0] @ weight.T
    assert float(projected.mean(0).abs().max()) < 1e-3
    # Every channel counts alike, whatever its scale was.
    parts = (weight * features[:, 0].std(0)).norm(dim=0)
    assert float(parts.max() / parts.min()) < 5
    states = torch.randn(400, 32) * torch.logspace(-1, 1, 32) + 7
    initialise_projections(model, torch.Generator().manual_seed(0), None, states)
    assert float((states @ model.text_projection.weight.T).mean(0).abs().max()) < 1e-3


def test_assembling_is_reproducible_and_fits_given_images(tiny: Path) -> None:
    from PIL import Image

    images = [Image.effect_noise((40, 40), 60 + 5 * n).convert("RGB") for n in range(5)]
    llm, tower = tiny / "llama-tied", tiny / "mobilenet-v2"
    first, second = (make(llm, tower, seed=3, fitting_images=images) for _ in range(2))
    plain = make(llm, tower, seed=3)
    weights = [encoder.model.visual_projection.weight for encoder in (first, second, plain)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (first.report.fitted_on, plain.report.fitted_on) == (5, 0)


@pytest.mark.cold
def test_a_folder_is_proved_in_a_fresh_process(tiny: Path, tmp_path: Path) -> None:
    made = assemble_dual(tiny / "llama-tied", tiny / "mobilenet-v2", tmp_path / "dual", dtype="float32")
    assert (made.report.text_difference, made.report.image_difference) == (0.0, 0.0)
    assert not made.report.stock_forward
    model, processor = load_dual(tmp_path / "dual")
    assert model.text_projection.bias is None
    assert model.visual_projection.weight.dtype == torch.float32
    assert processor.tokenizer.padding_side == "right"
    assert not list((tmp_path / "dual").glob("*.bin"))
    assert str(tmp_path) not in (tmp_path / "dual" / "config.json").read_text(encoding="utf-8")


def test_a_folder_that_came_back_otherwise_is_not_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(folder: Path, dtype: Any) -> Any:
        model, processor = load_dual(folder, dtype)
        model.text_model.norm.weight.add_(0.01)
        return model, processor

    monkeypatch.setattr(assembling, "load_dual", changed)
    with pytest.raises(VerificationError, match="texts differ"):
        assemble_dual(
            tiny / "llama-tied", tiny / "clip-vision", tmp_path / "dual", dtype="float32", prove=False
        )
    assert not (tmp_path / "dual").exists()
