"""The stage `method: grpo`: TRL's own loss, rewards by name, an ordinary run folder, nothing frozen moves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from lockadapt.architectures.assemble import Assembled
from lockadapt.console import Reporter
from lockadapt.data.images import open_image
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.sample import Sample
from lockadapt.errors import RewardCollapseError
from lockadapt.exports.merge import merge_run
from lockadapt.objectives import Vqa
from lockadapt.report.write import write_report
from lockadapt.rewards import Reward
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from lockadapt.training.methods.grpo import GrpoStage
from lockadapt.training.progress import read_metrics
from lockadapt.tuning.adapters import set_trainable
from lockadapt.tuning.freeze_tower_mode import keep_tower_still
from tests.support.interruption import interrupted
from tests.support.methods import RATE, adapted, logged, setup_of, tiny_questions
from tests.support.preferences import checked, grpo_values
from tests.support.timeless import contents

QUIET = Reporter(quiet=True)


@pytest.mark.slow
def test_an_ordinary_run(tiny: Path, tmp_path: Path) -> None:
    given = grpo_values(tiny, tmp_path)
    given["model"]["tower"] = str(tiny / "mobilenet-v2")
    result = train(checked(given), tmp_path / "run", QUIET)
    record = read_record(tmp_path / "run")
    stage = record.stages[-1]
    assert (stage.name, stage.steps, stage.locked > 10) == ("reward", 4, True)
    assert result.to_json()["reward"] == stage.reward.model_dump()
    assert stage.reward.held_out is not None
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["stage"] == "reward"]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 4
    for line in trained:
        parts = line["rewards/vqa/mean"] + 0.5 * line["rewards/format/mean"]
        assert line["reward"] == pytest.approx(parts, abs=1e-5)
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-6)  # the model is the reference
    assert trained[-1]["kl"] > 1e-6
    held_out = [line for line in lines if "eval_reward" in line]
    assert [line["step"] for line in held_out] == [0, 4]
    assert merge_run(tmp_path / "run", tmp_path / "merged", QUIET)["max_abs_logit_diff"] < 1e-4
    page = (tmp_path / "run" / "report.html").read_text() if write_report([tmp_path / "run"]) else ""
    for shown in (
        "Rewards, of training and validation rows",
        "KL from the start of the stage",
        "change (95 %)",
    ):
        assert shown in page


def questions_stage(
    assembled: Assembled, folder: Path, rewards: dict[str, Reward] | None = None, **method: Any
) -> GrpoStage:
    model, rows = tiny_questions(assembled, folder)
    trl = {"num_generations": 4, "max_completion_length": 6, "beta": 0.1, **method.pop("trl", {})}
    rates = {name: method.pop(name) for name in ("optim", "learning_rate") if name in method}
    setup = setup_of(assembled, model, rows, folder / "ours", Vqa(), name="grpo", trl=trl, **method)
    setup = replace(setup, config=replace(setup.config, **rates))
    encoder = model_encoder(model, assembled.processor, None)
    return GrpoStage(setup, {"length": Length()} if rewards is None else rewards, encoder)


class Length(Reward):
    """Tells answers of a random model apart."""

    name = "length"

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        return [len(set(answer)) / 10 for answer in answers]


class Fixed(Length):
    """Tells nothing apart."""

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        return [1.0] * len(answers)


def test_losses_are_plain_trls(assembled: Assembled, tmp_path: Path) -> None:
    """The same answers, rewards and seeds: TRL's loss, KL and gradients with pixels and a copy of the adapter."""
    # Adam's first step is the sign of gradients, also of those that are no more than rounding.
    ours = questions_stage(assembled, tmp_path, optim="sgd", learning_rate=1.0)
    plain_model = copy.deepcopy(adapted(assembled))
    rollouts: list[list[list[int]]] = []
    rollout = ours.rollout

    def recorded(*given: Any) -> list[list[int]]:
        rollouts.append(rollout(*given))
        return rollouts[-1]

    ours.rollout = recorded  # type: ignore[assignment]
    ours.train()
    set_trainable(plain_model, ["lora"])
    keep_tower_still(plain_model)
    table = [
        {
            "images": [open_image(row.sample.images[0], 10**6)],
            "prompt": [{"role": "user", "content": row.sample.turns[0].text}],
        }
        for row in ours.setup.train
    ]
    same = ("max_steps", "per_device_train_batch_size", "seed", "optim", "learning_rate")
    config = GRPOConfig(
        str(tmp_path / "plain"),
        **{**RATE, **{name: getattr(ours.args, name) for name in same}},
        weight_decay=0.0,
        num_generations=4,
        max_completion_length=6,
        beta=0.1,
        bf16=False,
        save_strategy="no",
        report_to="none",
    )

    def score(completions: Any, **_: Any) -> list[float]:
        return Length().score([], [completion[0]["content"].strip() for completion in completions])

    plain = Told(plain_model, score, config, Dataset.from_list(table), processing_class=assembled.processor)
    plain.rollouts = [list(step) for step in rollouts]
    plain.train()
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-4)
    assert logged(ours, "kl") == pytest.approx(logged(plain, "kl"), abs=1e-4)
    assert logged(ours, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), rel=1e-2)
    assert logged(ours, "reward") == pytest.approx(logged(plain, "reward"), abs=1e-6)
    assert logged(ours, "kl")[-1] > 1e-4


class Told(GRPOTrainer):
    """Plain TRL that is told what the model says, as no two ways of generating draw the same numbers."""

    rollouts: list[list[list[int]]]

    def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
        return self.rollouts.pop(0), None


def test_greedy_answers_are_plain_trls(assembled: Assembled, tmp_path: Path) -> None:
    stage = questions_stage(assembled, tmp_path, trl={"generation_kwargs": '{"do_sample": false}'})
    stage._numbers = [n for n in range(4) for _ in range(4)]
    made, _ = stage._generate_single_turn([], None, {}, 4)
    assert stage.rollout.shares, stage.rollout.problem
    rows = [stage.prompts["train"][number] for number in stage._numbers]
    pixels = assembled.processor.image_processor(
        [open_image(row.images[0], 10**6) for row in rows], return_tensors="pt"
    )
    ids = [row.input_ids.tolist() for row in rows]
    expected, _ = GRPOTrainer._generate_single_turn(stage, ids, None, dict(pixels), 4)
    assert made == expected
    stage.release()


def test_sampled_answers_have_the_models_distribution(assembled: Assembled, tmp_path: Path) -> None:
    """Chi-square of 6,000 first tokens against the probabilities of the model's own forward, and TRL's draws too."""
    stage = questions_stage(assembled, tmp_path, trl={"max_completion_length": 1, "temperature": 0.7})
    prompts, count = stage.prompts["train"][:2], 3000
    torch.manual_seed(0)
    made = torch.tensor(stage.rollout(prompts, count, stage.generation_config)).view(2, count)
    with torch.no_grad():
        inputs = stage.rollout._whole(prompts)
        del inputs["prompt_length"]
        logits = stage.setup.model(**inputs).logits[:, -1].double()
    logits[:, stage.setup.model.config.image_token_id] = -torch.inf
    for tokens, probabilities in zip(made, (logits / 0.7).softmax(-1), strict=True):
        seen = torch.bincount(tokens, minlength=len(probabilities)).double()
        common = probabilities * count > 5
        expected = probabilities[common] * count
        freedom = int(common.sum())
        statistic = float(((seen[common] - expected) ** 2 / expected).sum())
        assert int(seen[probabilities == 0].sum()) == 0
        assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5, (statistic, freedom)
    stage.release()


@pytest.mark.parametrize(
    ("rewards", "method", "message"),
    [
        ({"fixed": Fixed()}, {"guard_steps": 2}, "for 2 steps all rewards of every prompt were equal"),
        ({"length": Length()}, {"max_kl": 1e-9}, "KL from the start of the stage is"),
        (
            {"length": Length()},
            {"guard_steps": 2, "trl": {"max_completion_length": 2}},
            "no answer ended before",
        ),
    ],
)
def test_a_collapse_stops_the_stage(
    rewards: dict[str, Reward], method: dict[str, Any], message: str, assembled: Assembled, tmp_path: Path
) -> None:
    stage = questions_stage(assembled, tmp_path, rewards, **method)
    with pytest.raises(RewardCollapseError, match=message) as error:
        stage.train()
    assert error.value.exit_code == 6
    assert "forward" not in vars(stage.setup.model.get_base_model())


def test_answers_that_become_equally_long_stop_the_stage(assembled: Assembled, tmp_path: Path) -> None:
    stage = questions_stage(assembled, tmp_path, guard_steps=2)
    numbers = stage._metrics["train"]
    lengths = {"completions/clipped_ratio": [0.0], "frac_reward_zero_std": [0.0]}
    for step, (shortest, longest) in enumerate([(2, 5), (3, 3), (3, 3)]):
        numbers.update(lengths | {"completions/min_length": [shortest], "completions/max_length": [longest]})
        if step < 2:
            stage.guard.on_step_end(stage.args, stage.state, stage.control)
    with pytest.raises(RewardCollapseError, match="all answers had 3 tokens"):
        stage.guard.on_step_end(stage.args, stage.state, stage.control)
    stage.release()


@pytest.mark.slow
def test_a_resumed_folder_is_the_uninterrupted_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = grpo_values(tiny, tmp_path, steps=6)
    given["training"] |= {"validate_every": 2, "log_every": 3}
    recipe = checked(given)
    train(recipe, tmp_path / "whole", QUIET)
    interrupted(recipe, tmp_path / "other", 5, monkeypatch)
    train(recipe, tmp_path / "other", QUIET, resume=True)
    whole, other = contents(tmp_path / "whole"), contents(tmp_path / "other")
    assert list(whole) == list(other)
    assert {name: (whole[name], other[name]) for name in whole if whole[name] != other[name]} == {}
