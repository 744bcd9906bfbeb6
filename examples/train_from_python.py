"""Train from Python, offline: join an LLM and a tower, train on images, evaluate, save a folder.

    python examples/train_from_python.py --output from-python

It uses the tiny models of the package and generates its own images. For your own, give `--llm` and
`--tower` (folders or Hub ids) and `--data`: a folder with `train.jsonl` and `test.jsonl` (rows of image,
question, answer) and the images.
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

import lockadapt

ASSETS = files("lockadapt.quickstart").joinpath("assets")


def main() -> None:
    """Create or read data, assemble, train, evaluate and save."""
    arguments = _arguments()
    data = arguments.data or arguments.output / "data"
    if arguments.data is None:
        # The built-in example's scenes: the only private name here, and not needed for your own data.
        from lockadapt.quickstart.scenes import make_dataset

        make_dataset(data, train=1000, test=100)
    train, test = read_rows(data / "train.jsonl"), read_rows(data / "test.jsonl")

    # The projector starts calibrated on some of the training images.
    names = sorted({row["image"] for row in train})
    chosen = random.Random(0).sample(names, min(128, len(names)))
    assembled = lockadapt.assemble(
        arguments.llm,
        arguments.tower,
        arguments.output / "base",
        calibration_images=[Image.open(data / name).convert("RGB") for name in chosen],
    )
    model, processor = assembled.model, assembled.processor
    print(f"{assembled.report.model_class}, {assembled.report.tower_facts.tokens} tokens an image")

    # All of transformers.TrainingArguments is allowed here. A new projector needs a higher learning rate than
    # the default.
    config = lockadapt.GroundingConfig(
        output_dir=str(arguments.output / "training"),
        max_steps=arguments.steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        projector_learning_rate=2e-3,
        logging_steps=max(1, arguments.steps // 10),
    )
    trainer = lockadapt.GroundingTrainer(
        model,
        config,
        train_dataset=[conversation(row, data) for row in train],
        processing_class=processor,
        peft_config=lockadapt.lora_config(model, lockadapt.LoraSettings(rank=16)),
    )
    trainer.train()
    print(f"{trainer.prove_locked():,} frozen tensors are what they were")

    predictor = lockadapt.Predictor.of_model(trainer.model, processor)
    answers = predictor.answers(
        [data / row["image"] for row in test],
        [row["question"] for row in test],
        choices=sorted({row["answer"] for row in train}),
    )
    right = sum(answer == row["answer"] for answer, row in zip(answers, test, strict=True))
    print(f"accuracy on {len(test)} test questions: {right / len(test):.3f}")
    for row, answer in list(zip(test, answers, strict=True))[:5]:
        print(f"  {row['question']} {answer} (truth: {row['answer']})")

    # Parts: adapter/ (PEFT), projector.safetensors, processor/. Merged: one folder for plain Transformers.
    trainer.save_model(str(arguments.output / "parts"))
    merged = trainer.model.cpu().float().merge_and_unload()
    merged.save_pretrained(arguments.output / "merged")
    processor.save_pretrained(arguments.output / "merged")
    print(f"python examples/use_merged_model.py {arguments.output / 'merged'} PICTURE QUESTION")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read rows of `image`, `question` and `answer`, one JSON object per line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def conversation(row: dict[str, Any], data: Path) -> dict[str, Any]:
    """Make a row as for TRL: only the completion is learned."""
    return {
        "images": [Image.open(data / row["image"]).convert("RGB")],  # and the file is closed
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=str(ASSETS.joinpath("llm")), help="folder or Hub id")
    parser.add_argument("--tower", default=str(ASSETS.joinpath("tower")), help="folder or Hub id")
    parser.add_argument(
        "--data", type=Path, help="folder with train.jsonl and test.jsonl; default: drawn scenes"
    )
    parser.add_argument("--output", type=Path, default=Path("from-python"), help="a new folder")
    parser.add_argument("--steps", type=int, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
