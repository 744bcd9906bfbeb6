"""The stage `method: dpo`: TRL's own loss, an ordinary run folder, and nothing frozen moves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer

from lockadapt.architectures.assemble import Assembled
from lockadapt.console import Reporter
from lockadapt.data.images import open_image
from lockadapt.errors import RecipeError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.exports.merge import merge_run
from lockadapt.objectives import Preference
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from lockadapt.training.methods.dpo import DpoStage
from lockadapt.training.progress import read_metrics
from lockadapt.tuning.adapters import set_trainable
from lockadapt.tuning.freeze_tower_mode import keep_tower_still
from tests.support.interruption import interrupted
from tests.support.methods import logged, setup_of, tiny_pairs
from tests.support.preferences import checked, dpo_values
from tests.support.timeless import contents

QUIET = Reporter(quiet=True)


@pytest.mark.slow
def test_an_ordinary_run(tiny: Path, tmp_path: Path) -> None:
    """With a tower whose BatchNorm would move; merged and proved as any run."""
    result = train(checked(dpo_values(tiny, tmp_path, "mobilenet-v2")), tmp_path / "run", QUIET)
    record = read_record(tmp_path / "run")
    stage = record.stages[-1]
    assert (stage.name, stage.steps, stage.locked > 10) == ("reward", 4, True)
    assert stage.held_out_change.before == 0 or stage.held_out_change.n == 8
    assert stage.text_perplexity.before > 1
    assert result.to_json()["reward"] == record.reward.model_dump() == stage.reward.model_dump()
    assert record.reward.first == 0.0  # the model is the reference
    assert record.reward.last > 0
    assert record.reward.held_out > 0
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["stage"] == "reward"]
    assert lines[0]["eval_preference_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"rewards/accuracies", "rewards/margins", "preference/loss", "samples_per_second"} <= set(lines[1])
    scores = evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)
    assert 0 <= scores["preference"]["accuracy"] <= 1
    assert merge_run(tmp_path / "run", tmp_path / "merged", QUIET)["max_abs_logit_diff"] < 1e-4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["reward"]["last"] == record.reward.last


@pytest.mark.slow
def test_a_resumed_folder_is_the_uninterrupted_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dpo_values(tiny, tmp_path)
    given["training"] |= {"validate_every": 2, "log_every": 3, "batch_size": 2}
    given["stages"][1]["steps"] = 6
    recipe = checked(given)
    train(recipe, tmp_path / "whole", QUIET)
    interrupted(recipe, tmp_path / "other", 5, monkeypatch)
    train(recipe, tmp_path / "other", QUIET, resume=True)
    whole, other = contents(tmp_path / "whole"), contents(tmp_path / "other")
    assert list(whole) == list(other)
    assert [name for name in whole if whole[name] != other[name]] == []


def test_losses_are_plain_trls(assembled: Assembled, tmp_path: Path) -> None:
    """The same seeds and rows: TRL with pixels, its own tokens and a copy of the adapter for a reference."""
    model, rows = tiny_pairs(assembled, tmp_path)
    plain_model = copy.deepcopy(model)
    ours = DpoStage(setup_of(assembled, model, rows, tmp_path / "ours", Preference(), trl={"beta": 0.5}))
    ours.train()
    set_trainable(plain_model, ["lora"])
    keep_tower_still(plain_model)
    table = [
        {
            "images": [open_image(row.sample.images[0], 10**6)],
            "prompt": [{"role": "user", "content": row.sample.turns[0].text}],
            "chosen": [{"role": "assistant", "content": row.sample.answer}],
            "rejected": [{"role": "assistant", "content": row.sample.rejected}],
        }
        for row in rows
    ]
    config = DPOConfig(
        str(tmp_path / "plain"),
        **{name: getattr(ours.args, name) for name in ("max_steps", "per_device_train_batch_size", "seed")},
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        beta=0.5,
        max_length=None,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    )
    plain = DPOTrainer(
        plain_model, args=config, train_dataset=Dataset.from_list(table), processing_class=assembled.processor
    )
    plain.train()
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-4)
    assert logged(ours, "logps/chosen") == pytest.approx(logged(plain, "logps/chosen"), abs=1e-3)
    assert max(logged(ours, "loss")) - min(logged(ours, "loss")) > 0.02


def test_fields_of_trl_reach_its_config(assembled: Assembled, tmp_path: Path) -> None:
    model, rows = tiny_pairs(assembled, tmp_path)
    before = {
        name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)
    }
    stage = DpoStage(
        setup_of(
            assembled, model, rows, tmp_path / "run", Preference(), trl={"beta": 0.3, "loss_type": ["ipo"]}
        )
    )
    assert (stage.args.beta, stage.args.loss_type, stage.beta) == (0.3, ["ipo"], 0.3)
    assert set(model.peft_config) == {"default"}  # no second adapter in memory
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    stage.release()
    assert "forward" not in vars(model.get_base_model())
    assert before == {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    with pytest.raises(RecipeError, match="TRL refuses"):
        DpoStage(
            setup_of(
                assembled,
                model,
                rows,
                tmp_path / "run",
                Preference(),
                trl={"loss_type": ["sigmoid"], "loss_weights": [1, 2]},
            )
        )


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"trl": {"betta": 0.1}},
            "stages.1.trl.betta: TRL's DPOConfig has no such field. Did you mean beta?",
        ),
        ({"trl": {"learning_rate": 0.1}}, "trl.learning_rate: is set by `learning_rate` of the stage"),
        ({"trl": {"sync_ref_model": True}}, "cannot be set: the reference is the model at the start"),
        ({"objectives": ["vqa"]}, "dpo needs an objective of the kind preference"),
        ({"objectives": ["vqa", "preference"]}, "names one objective"),
        ({"rewards": {"vqa": {}}}, "rewards: are for grpo"),
        ({"method": "grpo"}, "grpo needs at least one"),
        ({"method": "grpo", "rewards": {"vqa": {}}}, "grpo needs an objective whose rows have answers"),
        ({"method": None}, "preferences are learned by a stage with `method: dpo`"),
        ({"method": None, "trl": {"beta": 0.1}}, "trl: needs `method`"),
    ],
)
def test_contradictions_name_their_key(
    tiny: Path, tmp_path: Path, stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        checked(dpo_values(tiny, tmp_path, **stage))
    assert message in error.value.message


@pytest.mark.slow
def test_a_finished_run_is_a_start(tiny: Path, tmp_path: Path) -> None:
    """Its base, adapter and projector: one step at a rate of nothing leaves them as they were."""
    given = dpo_values(tiny, tmp_path)
    supervised = {**given, "objectives": {"vqa": given["objectives"]["vqa"]}, "stages": given["stages"][:1]}
    train(checked(supervised), tmp_path / "sft", QUIET)
    rates = {"learning_rate": 1e-20, "projector_learning_rate": 1e-20, "steps": 1}
    alone = {
        "model": {"run": str(tmp_path / "sft")},
        "objectives": {"preference": given["objectives"]["preference"]},
        "training": given["training"],
        "stages": [{**given["stages"][1], **rates}],
    }
    train(checked(alone), tmp_path / "run", QUIET)
    for name in ("adapter/adapter_model.safetensors", "projector.safetensors"):
        before, after = (load_file(tmp_path / run / name) for run in ("sft", "run"))
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)
        assert any(bool(tensor.any()) for key, tensor in before.items() if "lora_A" not in key)
    assert merge_run(tmp_path / "run", tmp_path / "merged", QUIET)["max_abs_logit_diff"] < 1e-4
    with pytest.raises(RecipeError, match="model.run: is no finished run"):
        checked({**alone, "model": {"run": str(tmp_path / "none")}})
    with pytest.raises(RecipeError, match="model.llm: is that of `run`"):
        checked({**alone, "model": {"run": str(tmp_path / "sft"), "llm": "x"}})
