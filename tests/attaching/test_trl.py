"""TRL's trainers on what `assemble` returns, through the examples: the loss is finite, what should move moves, nothing else."""

from __future__ import annotations

import copy
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import lockadapt
from lockadapt.architectures import tower_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.tuning.freeze_tower_mode import keep_tower_still
from lockadapt.tuning.locks import frozen_digests
from tests.support.tiny import tiny_llm

pytest.importorskip("trl")
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KINDS = ("sft", "dpo", "grpo")


def example(kind: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"trl_{kind}.py"))


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """Which kinds of parameters changed."""
    names = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    kinds = {"lora" if ".lora_" in n else "projector" if ".modules_to_save." in n else n for n in names}
    return kinds


def three_steps(kind: str, made: Assembled, output: Path) -> None:
    trainer = example(kind)["make_trainer"](copy.deepcopy(made.model), made.processor, output, 3)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    frozen = frozen_digests(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert moved(trainer.model, before) == {"lora", "projector"}
    assert frozen_digests(trainer.model) == frozen


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps(assembled: Assembled, tmp_path: Path, kind: str) -> None:
    """LLaVA, and FastVLM, whose tower has BatchNorm layers."""
    three_steps(kind, assembled, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_of_janus(drawing: Assembled, tmp_path: Path, kind: str) -> None:
    three_steps(kind, drawing, tmp_path)


def test_without_the_hook_a_cnn_tower_moves(assembled: Assembled) -> None:
    """Why the examples call `keep_tower_still`, and that it can be taken back."""
    model = copy.deepcopy(assembled.model)
    tower = tower_of(model)
    norms = [m for m in tower.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        pytest.skip("this tower has no BatchNorm")
    handle = keep_tower_still(model)
    counted = norms[0].num_batches_tracked.item()
    values = torch.randn(1, 3, 64, 64)
    tower(values)
    model.train()
    tower(values)
    assert norms[0].num_batches_tracked.item() == counted
    handle.remove()
    model.train()
    tower(values)
    assert norms[0].num_batches_tracked.item() == counted + 1


@pytest.mark.parametrize("kind", KINDS)
def test_examples_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["example", "--output", str(output), "--steps", "1"])
    runpy.run_path(str(EXAMPLES / f"trl_{kind}.py"), run_name="__main__")
    _, report = AutoModelForImageTextToText.from_pretrained(output / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("own", [False, True])
def test_messages_and_text_alone(tiny: Path, tmp_path: Path, own: bool) -> None:
    """Whole conversations; only answers learned where the template marks them, as the plain one of base LLMs does."""
    import trl
    from datasets import Dataset

    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    llm = tiny_llm("llama-tied", tmp_path / "llm", chat_template=template if own else None)
    made = assemble(llm, tiny / "clip-vision", None, dtype="float32", prove=False)
    rows = Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (30, 30), "red")] if number else [],
                "messages": [
                    {"role": "user", "content": "what color?"},
                    {"role": "assistant", "content": "red"},
                ],
            }
            for number in range(2)
        ]
    )
    for only in (False, True):
        config = trl.SFTConfig(
            str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=2,
            max_length=None,
            bf16=False,
            report_to="none",
            assistant_only_loss=only,
            save_strategy="no",
        )
        arguments = {"train_dataset": rows, "processing_class": made.processor}
        if own and only:
            with pytest.raises(ValueError, match="generation"):
                trl.SFTTrainer(made.model, config, **arguments)
            continue
        trainer = trl.SFTTrainer(made.model, config, **arguments)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
        learned = made.processor.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100])
        assert (learned == "red</s>") is only
        assert math.isfinite(trainer.train().training_loss)


def test_what_trl_trained_can_be_attached(assembled: Assembled, tmp_path: Path) -> None:
    """A PEFT folder with the projector in it, which says nothing of its base."""
    trainer = example("sft")["make_trainer"](copy.deepcopy(assembled.model), assembled.processor, tmp_path, 1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    model = copy.deepcopy(assembled.model)
    lockadapt.attach(model, tmp_path / "adapter", force_base=True)
    trained, parameters = dict(trainer.model.named_parameters()), dict(model.named_parameters())
    own = {name: p for name, p in parameters.items() if ".lora_" in name or ".modules_to_save." in name}
    assert len(own) > 10
    for name, parameter in own.items():
        assert torch.equal(parameter, trained[f"base_model.model.{name}"]), name
