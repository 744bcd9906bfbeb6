"""What trains moves, what is locked does not; runs that would be wasted stop; a resumed run is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.errors import (
    DataError,
    DiskError,
    ImageIgnoredError,
    LockError,
    NoGradientError,
    NoLabelError,
    NonFiniteLossError,
    NotMovingError,
)
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.objectives import Caption, Vqa
from lockadapt.training import checkpoint
from lockadapt.training.arguments import OPTIMIZERS
from lockadapt.training.config import GroundingConfig
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.adapters import LoraSettings, lora_config
from tests.support.rows import COLOURS, trainer, vqa_samples


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    base = unwrap_model(model)
    return {n: t.detach().clone() for n, t in [*base.named_parameters(), *base.named_buffers()]}


@pytest.mark.parametrize(("lora", "memory"), [(True, 2.0), (True, 0.0), (False, 2.0)])
def test_trained_tensors_move_and_frozen_ones_do_not(
    lora: bool, memory: float, assembled: Assembled, tmp_path: Path
) -> None:
    run = trainer(
        assembled.folder, vqa_samples(tmp_path), tmp_path / "run", lora=lora, feature_memory_gib=memory
    )
    assert isinstance(run.image_inputs["vqa"], FeatureInputs if memory else PixelInputs)
    before = snapshot(run.model)
    run.train()
    after = snapshot(run.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {n for n in before if "multi_modal_projector" in n or ".lora_" in n}
    assert moved == wanted
    assert any(".lora_B." in name for name in moved) is lora
    assert run.prove_locked() == len(before) - len(wanted)


def test_features_in_memory_give_the_same_curve(assembled: Assembled, tmp_path: Path) -> None:
    curves = []
    for memory in (2.0, 0.0):
        run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", feature_memory_gib=memory)
        run.train()
        curves.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][-1] < curves[0][0]


def test_the_loss_curve_is_pinned(assembled: Assembled, tmp_path: Path) -> None:
    """Exact to 4 digits: a change here is a change of the mathematics, and must be meant."""
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run")
    run.train()
    curve = [round(entry["loss"], 4) for entry in run.state.log_history if "loss" in entry]
    expected = {
        "LlavaForConditionalGeneration": PINNED_LLAVA,
        "FastVlmForConditionalGeneration": PINNED_FASTVLM,
    }[type(unwrap_model(run.model)).__name__]
    assert curve == pytest.approx(expected, abs=2e-3)


PINNED_LLAVA = [5.8033, 5.8140, 5.7241, 5.7007, 5.6282, 5.6310]
PINNED_FASTVLM = [5.7905, 5.8141, 5.7297, 5.7017, 5.6374, 5.6451]


def test_frozen_tensor_that_moves_fails_the_lock(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run")
    with torch.no_grad():
        unwrap_model(run.model).lm_head.weight[0, 0] += 1e-6
    with pytest.raises(LockError, match="lm_head|embed_tokens"):
        run.prove_locked()


def test_batchnorm_statistics_stay(tiny: Path, assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", feature_memory_gib=0.0)
    buffers = {n: b.clone() for n, b in unwrap_model(run.model).model.vision_tower.named_buffers()}
    run.train()
    for name, buffer in unwrap_model(run.model).model.vision_tower.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


class Broken(Vqa):
    """A VQA objective whose loss goes wrong in a chosen way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        object.__setattr__(self, "how", how)

    def loss(self, model: torch.nn.Module, batch: Any) -> Any:
        loss, report = super().loss(model, batch)
        if self.how == "nan":  # type: ignore[attr-defined]
            loss = loss * float("nan")
        elif self.how == "flat":  # type: ignore[attr-defined]
            parameters = [p for n, p in model.named_parameters() if p.requires_grad and "projector" in n]
            loss = loss.detach() + sum(p.sum() for p in parameters)
        return loss, report


def broken(how: str, assembled: Assembled, tmp_path: Path, **changes: Any) -> GroundingTrainer:
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", **changes)
    run.objectives = {"vqa": Broken(how)}
    return run


def test_nan_stops_the_run(assembled: Assembled, tmp_path: Path) -> None:
    run = broken("nan", assembled, tmp_path)
    run.image_sensitivity = {"vqa": 1.0}
    with pytest.raises(NonFiniteLossError, match="nan") as error:
        run.train()
    assert error.value.exit_code == 6
    assert error.value.where == "step 1"


def test_no_gradient_stops_the_run(assembled: Assembled, tmp_path: Path) -> None:
    with pytest.raises(NoGradientError, match="lora"):
        broken("flat", assembled, tmp_path).train()


def test_no_movement_stops_the_run(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(
        assembled.folder,
        vqa_samples(tmp_path),
        tmp_path / "run",
        learning_rate=0.0,
        projector_learning_rate=0.0,
    )
    with pytest.raises(NotMovingError, match="have not moved"):
        run.train()


def test_blind_model_is_refused(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run")
    with torch.no_grad():
        for parameter in unwrap_model(run.model).model.multi_modal_projector.parameters():
            parameter.zero_()
    with pytest.raises(ImageIgnoredError, match="with the images and with others"):
        run.train()


def test_blind_run_is_allowed_when_asked_for(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", blind=True)
    run.train()
    assert run.image_sensitivity == {}
    features = [
        run.image_inputs["vqa"]([row.images[0]])["image_features"]
        for row in run.train_dataset.rows["vqa"][:3]
    ]
    assert torch.equal(features[0], features[1])


def test_empty_answer_is_refused(assembled: Assembled, tmp_path: Path) -> None:
    model, processor = load_model(assembled.folder, "float32")
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<image>ask{% endif %}{% endfor %}"
    )
    with pytest.raises((NoLabelError, DataError)):
        GroundingTrainer(
            model, GroundingConfig(str(tmp_path), use_cpu=True), vqa_samples(tmp_path), None, processor
        )


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_resumed_run_is_the_same_run(optimizer: str, assembled: Assembled, tmp_path: Path) -> None:
    rows = vqa_samples(tmp_path, repeat=3)
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "optim": OPTIMIZERS[optimizer]}
    whole = trainer(assembled.folder, rows, tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer(assembled.folder, rows, tmp_path / "other", **settings)
    torch.manual_seed(12345)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 8
    for (name, first), (_, second) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(first, second), name
    moments = [checkpoint_tensors(tmp_path / name / "checkpoint-8") for name in ("whole", "other")]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moment, moments[1][key]) for key, moment in moments[0].items())
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{checkpoint.OPTIMIZER}.safetensors")


def test_checkpoints_hold_no_pickle_and_are_sealed(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(
        assembled.folder,
        vqa_samples(tmp_path),
        tmp_path / "run",
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    run.train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    assert checkpoint.latest(tmp_path / "run") == folder
    weights = folder / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    assert checkpoint.latest(tmp_path / "run") is None


def test_an_old_checkpoint_goes_only_once_the_new_one_is_sealed(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: it went first, and a run that was killed between the two began anew."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    run = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", **settings)
    seal = checkpoint.seal

    def full(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise DiskError("the disk is full")
        seal(folder)

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(DiskError):
        run.train()
    assert run.args.save_total_limit == 1
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    monkeypatch.setattr(checkpoint, "seal", seal)
    again = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, {2, 4, 10, 12}),
        (0, None, {2, 4, 10, 12}),
        (1, None, {12}),
        (3, None, {4, 10, 12}),
        (1, 4, {4, 12}),
        (2, 4, {4, 12}),
        (3, 4, {4, 10, 12}),
        (2, 12, {10, 12}),
        (9, 2, {2, 4, 10, 12}),
    ],
)
def test_which_checkpoints_stay(limit: int | None, best: int | None, kept: set[int], tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoint.remove_old(tmp_path, limit, f"elsewhere/checkpoint-{best}" if best else None)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in kept}


def test_best_model_is_kept(assembled: Assembled, tmp_path: Path) -> None:
    rows = vqa_samples(tmp_path)
    run = trainer(
        assembled.folder,
        [row for row in rows if row.answer == "red"],
        tmp_path / "run",
        # Learning that all is red, the model gets worse at the other colours.
        validation=[row for row in rows if row.answer in COLOURS and row.answer != "red"],
        max_steps=14,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        learning_rate=0.05,
        projector_learning_rate=0.05,
        lr_scheduler_type="constant",
    )
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert min(losses) < losses[-1]


def test_objectives_are_mixed_by_ratio_and_weight(assembled: Assembled, tmp_path: Path) -> None:
    model, processor = load_model(assembled.folder, "float32")
    rows = vqa_samples(tmp_path)
    run = GroundingTrainer(
        model,
        GroundingConfig(
            str(tmp_path / "run"),
            max_steps=8,
            per_device_train_batch_size=2,
            logging_steps=1,
            use_cpu=True,
            train_parts=["projector"],
            gradient_accumulation_steps=1,
        ),
        {"vqa": rows, "caption": rows},
        {"vqa": rows[:2], "caption": rows[:2]},
        processor,
        objectives={"vqa": Vqa(sampling_weight=3.0), "caption": Caption(weight=0.5)},
    )
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    drawn = ["vqa" if "vqa/loss" in entry else "caption" for entry in logs]
    assert drawn.count("vqa") == 6
    for entry, name in zip(logs, drawn, strict=True):
        weight = {"vqa": 1.0, "caption": 0.5}[name]
        assert entry["loss"] == pytest.approx(weight * entry[f"{name}/loss"], abs=1e-4)
    metrics = run.evaluate()
    both = (metrics["eval_vqa_loss"] + 0.5 * metrics["eval_caption_loss"]) / 1.5
    assert metrics["eval_loss"] == pytest.approx(both)


def test_accumulation_is_a_larger_batch(assembled: Assembled, tmp_path: Path) -> None:
    """Answers of different lengths: the mean of a step is over its tokens, not over its micro-batches."""
    rows = vqa_samples(tmp_path)
    ends = []
    for size, accumulation in ((4, 1), (2, 2)):
        run = trainer(
            assembled.folder,
            rows,
            tmp_path / "run",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
        )
        run.train()
        ends.append(run.evaluate(rows)["eval_loss"])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_learning_rates_by_part(assembled: Assembled, tmp_path: Path) -> None:
    run = trainer(
        assembled.folder,
        vqa_samples(tmp_path),
        tmp_path / "run",
        learning_rate=1e-3,
        projector_learning_rate=2e-4,
        lora_plus_ratio=8.0,
    )
    groups = {group["group"]: group for group in run.create_optimizer().param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "lora_A": 1e-3,
        "lora_B": 8e-3,
        "projector": 2e-4,
    }
    names = {id(p): n for n, p in run.model.named_parameters()}
    assert all(".lora_B." in names[id(p)] for p in groups["lora_B"]["params"])
    assert all("multi_modal_projector" in names[id(p)] for p in groups["projector"]["params"])


@pytest.mark.parametrize("shape", ["messages", "prompt-completion"])
def test_trl_data_sets(shape: str, assembled: Assembled, tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), "red")
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    rows = (
        {"messages": [[asked, answer]] * 4, "images": [[image]] * 4}
        if shape == "messages"
        else {"prompt": [[asked]] * 4, "completion": [[answer]] * 4, "images": [[image]] * 4}
    )
    model, processor = load_model(assembled.folder, "float32")
    run = GroundingTrainer(
        model,
        GroundingConfig(str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, use_cpu=True),
        Dataset.from_dict(rows),
        None,
        processor,
        lora_config(model, LoraSettings(rank=2)),
    )
    run.train()
    assert len(run.train_dataset) == 4
    assert isinstance(run.encoder, Encoder)
    run.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())["r"] == 2
    assert (tmp_path / "saved" / "projector.safetensors").is_file()
    assert (tmp_path / "saved" / "processor" / "tokenizer.json").is_file()
