"""Objectives with parts of their own in one run: each trains its parts, and the checks wait for the rarest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import NoGradientError
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.objectives import ImageText, Vqa
from lockadapt.training.config import GroundingConfig
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.adapters import LoraSettings, attach_adapters
from tests.support.rows import pictures, vqa_samples


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "base"
    assemble(tiny / "llama-tied", tiny / "clip-vision", folder, dtype="float32", prove=False, query_tokens=1)
    return folder


def captions(folder: Path) -> list[Sample]:
    return [
        question_answer("Describe it.", f"a {name} one", [ImageRef(path.name, path=path)], f"rows:{name}")
        for name, path in pictures(folder).items()
    ]


def trainer(base: Path, folder: Path, itc: ImageText, **changes: Any) -> GroundingTrainer:
    model, processor = load_model(base, "float32")
    torch.manual_seed(0)
    model = attach_adapters(model, LoraSettings(rank=2), query_token_ids(processor.tokenizer, 1))
    settings = {
        "max_steps": 14,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "projector_learning_rate": 1e-2,
        "logging_steps": 1,
        "check_steps": 2,
        "use_cpu": True,
    }
    return GroundingTrainer(
        model,
        GroundingConfig(str(folder), **{**settings, **changes}),
        {"vqa": vqa_samples(folder), "itc": captions(folder)},
        None,
        processor,
        objectives={"vqa": Vqa(sampling_weight=5.0), "itc": itc},
    )


def test_each_objective_trains_its_parts(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, ImageText(batch_size=3, dimension=8))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    run.prove_locked()
    for name, parameter in run.model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name
    moved = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    for kind in (
        "lora_A",
        "trainable_tokens_delta",
        "retrieval.embedding_proj_layer",
        "logit_scale",
        "projector",
    ):
        assert any(kind in name for name in moved), kind
    last = [entry for entry in run.state.log_history if "vqa/samples" in entry][-1]
    assert 0 < last["itc/samples"] < last["vqa/samples"]
    assert last["itc/samples"] % 3 == 0
    seen = [entry for entry in run.state.log_history if "itc/grad_norm" in entry]
    assert seen
    assert any("cosine/itc-vqa" in entry for entry in run.state.log_history)


def test_a_part_without_gradient_is_found_though_it_is_drawn_late(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ImageText.loss
    monkeypatch.setattr(ImageText, "loss", lambda *given: (honest(*given)[0] * 0, honest(*given)[1]))
    run = trainer(base, tmp_path, ImageText(batch_size=3, dimension=8))
    run.args.blind = True  # the check of image sensitivity would say first that nothing changes the loss
    with pytest.raises(NoGradientError, match="retrieval"):
        run.train()
