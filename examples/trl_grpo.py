"""TRL's GRPOTrainer on a model from `lockadapt.assemble`: answers about images are sampled and rewarded.

    HF_HUB_DISABLE_TELEMETRY=1 python examples/trl_grpo.py --output trl-grpo

TRL tells Hugging Face that it is used unless that variable is set. It uses the tiny models that come with the
package; for your own, give `--llm` and `--tower` (folders or Hub ids).
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

import lockadapt

ASSETS = files("lockadapt.quickstart").joinpath("assets")
COLOURS = ("red", "green", "blue", "yellow")


def rows() -> Dataset:
    """Build rows of a coloured square and a question; the reward function receives the column `answer`."""
    return Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (48, 48), colour)],
                "prompt": [{"role": "user", "content": "what color is it?"}],
                "answer": colour,
            }
            for colour in COLOURS
        ]
    )


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Return 1 for naming the colour, with partial credit for its letters."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        float(right in text) + 0.1 * len(set(right) & set(text))
        for text, right in zip(texts, answer, strict=True)
    ]


def make_trainer(model: Any, processor: Any, output: Path, steps: int) -> GRPOTrainer:
    """Build the trainer; LoRA adapts only the LLM's layers, by full path; the projector is trained whole."""
    lockadapt.keep_tower_still(model)  # TRL trains with the tower's BatchNorm layers in training mode
    config = GRPOConfig(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        bf16=str(model.dtype) == "torch.bfloat16",  # TRL defaults to bfloat16 even without a GPU
        report_to="none",
    )
    lora = lockadapt.lora_config(model, lockadapt.LoraSettings(rank=8), train_projector=True)
    return GRPOTrainer(model, reward, config, rows(), processing_class=processor, peft_config=lora)


def main() -> None:
    """Assemble, train and merge into one Transformers model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=str(ASSETS.joinpath("llm")), help="folder or Hub id")
    parser.add_argument("--tower", default=str(ASSETS.joinpath("tower")), help="folder or Hub id")
    parser.add_argument("--output", type=Path, default=Path("trl-grpo"), help="a new folder")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    made = lockadapt.assemble(arguments.llm, arguments.tower, arguments.output / "base")
    trainer = make_trainer(made.model, made.processor, arguments.output / "training", arguments.steps)
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(arguments.output / "merged")
    made.processor.save_pretrained(arguments.output / "merged")


if __name__ == "__main__":
    main()
