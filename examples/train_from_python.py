"""Train from Python, offline: join an LLM and a tower, train on images, evaluate, save a folder.

    python examples/train_from_python.py --output from-python

It uses the tiny models of the package and generates its own images. For your own, give `--llm` and
`--tower` (folders or Hub ids) and `--data`: a folder with `train.jsonl` and `test.jsonl` (rows of image,
question, answer) and the images.
"""

from __future__ import annotations

import argparse
import random
from importlib.resources import files
from pathlib import Path

from PIL import Image

import lockadapt
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.readers import Source, read_samples
from lockadapt.evaluation.predict import Predictor
from lockadapt.objectives import Vqa
from lockadapt.quickstart.scenes import make_dataset
from lockadapt.tuning.adapters import LoraSettings, lora_config

ASSETS = files("lockadapt.quickstart").joinpath("assets")


def main() -> None:
    """Create or read data, assemble, train, evaluate and save."""
    arguments = _arguments()
    data = arguments.data or arguments.output / "data"
    if arguments.data is None:
        make_dataset(data, train=1000, test=100)
    train = read_samples("jsonl", Source(path=data / "train.jsonl", kind="vqa"))
    test = read_samples("jsonl", Source(path=data / "test.jsonl", kind="vqa"))

    # The projector starts calibrated on some of the training images. `images` are file names; none is opened
    # before.
    paths = sorted({image.path for sample in train for image in sample.images if image.path})
    chosen = random.Random(0).sample(paths, min(128, len(paths)))
    assembled = lockadapt.assemble(
        arguments.llm,
        arguments.tower,
        arguments.output / "base",
        calibration_images=[Image.open(path).convert("RGB") for path in chosen],
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
    objective = Vqa(answers=tuple(sorted({sample.answer for sample in train})))
    trainer = lockadapt.GroundingTrainer(
        model,
        config,
        train_dataset=train,
        processing_class=processor,
        peft_config=lora_config(model, LoraSettings(rank=16)),
        objectives={"vqa": objective},
    )
    trainer.train()
    print(f"{trainer.prove_locked():,} frozen tensors are what they were")

    images = PixelInputs(processor.image_processor, max_pixels=50_000_000)
    predictor = Predictor(trainer.model, trainer.encoder, images)
    answers = predictor.rank(test, objective.answers or ())
    scores = objective.score(test, answers)
    print(f"accuracy on {scores['n']} test questions: {scores['accuracy']:.3f}")
    for sample, answer in list(zip(test, answers, strict=True))[:5]:
        print(f"  {sample.turns[0].text} {answer} (truth: {sample.answer})")

    # Parts: adapter/ (PEFT), projector.safetensors, processor/. Merged: one folder for plain Transformers.
    trainer.save_model(str(arguments.output / "parts"))
    merged = trainer.model.cpu().float().merge_and_unload()
    merged.save_pretrained(arguments.output / "merged")
    processor.save_pretrained(arguments.output / "merged")
    print(f"python examples/use_merged_model.py {arguments.output / 'merged'} PICTURE QUESTION")


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
