"""A dual encoder's adapter on a live model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import VisionTextDualEncoderModel

import lockadapt
from lockadapt.architectures import tower_of
from lockadapt.console import Reporter
from lockadapt.exports.proofs.embeddings import embed_probe
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import load_run
from lockadapt.training.loop import train
from tests.support.live import state
from tests.support.rows import embedding_recipe

QUIET = Reporter(quiet=True)


@pytest.mark.slow
def test_dual_encoder(tiny: Path, tmp_path: Path) -> None:
    recipe = embedding_recipe(tiny, tmp_path, "llama-tied")
    recipe["objectives"].pop("vqa")
    recipe["objectives"]["itc"].pop("queries")
    recipe["training"].pop("projector_learning_rate")
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    trained = load_run(tmp_path / "run")
    samples = trained.run.probe()
    expected = embed_probe(trained.run, trained.model, trained.processor, samples)
    model = VisionTextDualEncoderModel.from_pretrained(tmp_path / "run" / "base", dtype=torch.float32).eval()
    before = state(model)
    attached = lockadapt.attach(model, tmp_path / "run")
    actual = embed_probe(trained.run, model, trained.processor, samples)
    assert actual is not None
    assert expected is not None
    assert torch.equal(actual.images, expected.images)
    assert torch.equal(actual.texts, expected.texts)
    assert tower_of(model) is model.vision_model
    attached.detach()
    assert state(model) == before
