"""GRPO by a stage of lockadapt beside TRL's GRPOTrainer by itself: speed of answers and of steps, memory.

    python benchmarks/reward.py [--steps 8] [--image-size 192] [--json]

The quickstart's LLM and tower, drawn scenes, LoRA and projector trained by both, 16 prompts of 8 answers a
step. Each side has a process of its own with one thread; CPU seconds are counted, so that other work on the
machine matters little. Memory is the process's peak: of the GPU where there is one, else resident.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROMPTS, ANSWERS, TOKENS, BETA = 16, 8, 8, 0.04
SIDES = ("ours", "plain")


@dataclass(frozen=True)
class Ratios:
    """What `--json` prints.

    Attributes:
        generation_speedup: sampled answers a CPU second, over plain TRL's; image processing is included.
        step_speedup: of whole optimiser steps.
        memory_ratio: peak memory, over plain TRL's.
        reward_difference: mean reward of all sampled answers, minus plain TRL's.
    """

    generation_speedup: float
    step_speedup: float
    memory_ratio: float
    reward_difference: float


def measured(side: str, steps: int, image_size: int | None, folder: Path) -> dict[str, float]:
    """Trains one side; CPU seconds of answers and of steps after the first, peak memory, mean reward."""
    import torch

    torch.set_num_threads(1)
    trainer = _trainer(side, steps + 1, image_size, folder)
    spent, generate = [0.0], trainer._generate

    def timed(prompts: Any) -> Any:
        begin = time.process_time()
        made = generate(prompts)
        spent.append(time.process_time() - begin)
        return made

    trainer._generate = timed
    ends: list[float] = []
    _noting(trainer, ends)
    trainer.train()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    if torch.cuda.is_available():
        memory = float(torch.cuda.max_memory_allocated())
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    return {
        "generation": sum(spent[2:]),
        "steps": ends[-1] - ends[0],
        "memory": memory,
        "reward": sum(rewards) / len(rewards),
    }


def _trainer(side: str, steps: int, image_size: int | None, folder: Path) -> Any:
    """A trainer of one side, on the same scenes, model and arguments."""
    from datasets import Dataset
    from PIL import Image
    from trl import GRPOConfig, GRPOTrainer

    import lockadapt
    from lockadapt.building.stages import MethodSettings
    from lockadapt.data.encode import distinct_images
    from lockadapt.data.model_encoder import model_encoder
    from lockadapt.data.pixels import pixel_inputs
    from lockadapt.data.readers import Source, read_samples
    from lockadapt.features.inputs import memory_features
    from lockadapt.objectives import Vqa
    from lockadapt.quickstart.scenes import make_dataset
    from lockadapt.quickstart.tour import ASSETS
    from lockadapt.rewards import RewardAccess, make_rewards
    from lockadapt.training.config import GroundingConfig
    from lockadapt.training.methods.grpo import GrpoStage
    from lockadapt.training.methods.locked import MethodSetup
    from lockadapt.tuning.adapters import LoraSettings, attach_adapters, lora_config

    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    make_dataset(folder, train=128, test=4)
    samples = read_samples("jsonl", Source(folder / "train.jsonl", "vqa"))
    made = lockadapt.assemble(
        ASSETS / "llm",
        ASSETS / "tower",
        folder / "model",
        image_size=image_size,
        feature_layer=-1,
        dtype="float32",
    )
    rewards = make_rewards({"vqa": {}}, samples, RewardAccess())
    shared = {
        "output_dir": str(folder / side),
        "max_steps": steps,
        "per_device_train_batch_size": PROMPTS * ANSWERS,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    trl = {"num_generations": ANSWERS, "max_completion_length": TOKENS, "beta": BETA}
    if side == "ours":
        model = attach_adapters(made.model, LoraSettings(rank=16))
        encoder = model_encoder(model, made.processor, None)
        rows = encoder.encode(samples).encoded
        images = memory_features(model, pixel_inputs(made.processor, 10**7))
        images.fill(distinct_images(rows).values())
        config = GroundingConfig(**shared, train_parts=["projector", "lora"], projector_learning_rate=1e-4)
        method = MethodSettings("grpo", trl, {"vqa": {}}, 10**6, 1e9)
        setup = MethodSetup("vqa", Vqa(), model, made.processor, rows, [], images, config, method, [])
        return GrpoStage(setup, rewards, encoder)

    def score(completions: list[Any], row: list[int], **_: Any) -> list[float]:
        texts = [completion[0]["content"].strip() for completion in completions]
        return rewards["vqa"].score([samples[number] for number in row], texts)

    rows = Dataset.from_list(
        [
            {
                "images": [Image.open(sample.images[0].path)],
                "prompt": [{"role": "user", "content": sample.turns[0].text}],
                "row": number,
            }
            for number, sample in enumerate(samples)
        ]
    )
    lockadapt.keep_tower_still(made.model)
    lora = lora_config(made.model, LoraSettings(rank=16), train_projector=True)
    config = GRPOConfig(**shared, **trl, bf16=False, gradient_checkpointing=False)
    return GRPOTrainer(made.model, score, config, rows, processing_class=made.processor, peft_config=lora)


def _noting(trainer: Any, ends: list[float]) -> None:
    """Has a trainer note the CPU seconds at the end of each step."""
    from transformers import TrainerCallback

    class NoteEnds(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            ends.append(time.process_time())

    trainer.add_callback(NoteEnds())


def main() -> None:
    """Measure both sides, each in a process of its own."""
    parser = argparse.ArgumentParser(description="GRPO beside plain TRL.")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after one that is not")
    parser.add_argument("--image-size", type=int, help="pixels of a side (default: the tower's own)")
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        with tempfile.TemporaryDirectory() as folder:
            values = measured(arguments.side, arguments.steps, arguments.image_size, Path(folder))
            print("measured " + json.dumps(values))
        return
    sides = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--steps", str(arguments.steps)]
        command += ["--image-size", str(arguments.image_size)] if arguments.image_size else []
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("measured ")]
        if not lines:
            sys.exit(done.stderr[-2000:])
        sides[side] = json.loads(lines[-1].removeprefix("measured "))
    ours, plain = (sides[side] for side in SIDES)
    ratios = Ratios(
        plain["generation"] / ours["generation"],
        plain["steps"] / ours["steps"],
        ours["memory"] / plain["memory"],
        ours["reward"] - plain["reward"],
    )
    if arguments.json:
        print(json.dumps(asdict(ratios)))
        return
    for name, value in asdict(ratios).items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
