"""TRL's SFTTrainer on a model from `lockadapt.assemble`: LoRA in the LLM and a trained projector.

    HF_HUB_DISABLE_TELEMETRY=1 python examples/trl_sft.py --output trl-sft

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
from trl import SFTConfig, SFTTrainer

import lockadapt

ASSETS = files("lockadapt.quickstart").joinpath("assets")
COLOURS = ("red", "green", "blue", "yellow")


def rows() -> Dataset:
    """Build rows of a coloured square and a question; only the completion is learned."""
    return Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (48, 48), colour)],
                "prompt": [{"role": "user", "content": "what color is it?"}],
                "completion": [{"role": "assistant", "content": colour}],
            }
            for colour in COLOURS
        ]
    )


def make_trainer(model: Any, processor: Any, output: Path, steps: int) -> SFTTrainer:
    """Build the trainer; LoRA adapts only the LLM's layers, by full path; the projector is trained whole."""
    lockadapt.keep_tower_still(model)  # TRL trains with the tower's BatchNorm layers in training mode
    config = SFTConfig(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_length=None,  # truncation could fall inside an image
        logging_steps=1,
        save_strategy="no",
        bf16=str(model.dtype) == "torch.bfloat16",  # TRL defaults to bfloat16 even without a GPU
        report_to="none",
    )
    lora = lockadapt.lora_config(model, lockadapt.LoraSettings(rank=8), train_projector=True)
    return SFTTrainer(model, config, train_dataset=rows(), processing_class=processor, peft_config=lora)


def main() -> None:
    """Assemble, train and merge into one Transformers model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=str(ASSETS.joinpath("llm")), help="folder or Hub id")
    parser.add_argument("--tower", default=str(ASSETS.joinpath("tower")), help="folder or Hub id")
    parser.add_argument("--output", type=Path, default=Path("trl-sft"), help="a new folder")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    made = lockadapt.assemble(arguments.llm, arguments.tower, arguments.output / "base")
    trainer = make_trainer(made.model, made.processor, arguments.output / "training", arguments.steps)
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(arguments.output / "merged")
    made.processor.save_pretrained(arguments.output / "merged")


if __name__ == "__main__":
    main()
