"""Contrastive training of two locked models, beside sentence-transformers' own trainer and cached loss.

    python benchmarks/retrieval.py                # a table
    python benchmarks/retrieval.py --json --llm path/to/llm --tower path/to/tower --rows path/to/train.jsonl

Both start from the same dual encoder, written once; both train the same two projections with the same
AdamW on the same pairs in batches of the same size: here the objective `itc`, whose images and texts ran
once before; there `SentenceTransformerTrainer` with `CachedMultipleNegativesRankingLoss` (GradCache), which
runs both frozen models at every step. Each runs in a process of its own. Pairs a second are those of the
training steps; what is kept is computed before, and its seconds are in `--details`. Memory is the peak
resident memory of a process. R@1 is that of texts to images over the test rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
SIDES = ("lockadapt", "sentence-transformers")
DIMENSION, SCALE = 128, 20.0
"""Of embeddings, and the fixed factor on cosines, which is that of sentence-transformers."""


def main() -> None:
    """Measures both sides and prints the ratios."""
    arguments = _parser().parse_args()
    if arguments.side:
        print(json.dumps(_measure(arguments.side, arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        model = Path(scratch) / "model"
        _write(arguments, model)
        sides = {side: _in_process(side, arguments, model) for side in SIDES}
    if arguments.details:
        arguments.details.parent.mkdir(parents=True, exist_ok=True)
        arguments.details.write_text(json.dumps(sides, indent=1) + "\n")
    ratios = compared(sides)
    if arguments.json:
        print(json.dumps(ratios))
        return
    for side, measured in sides.items():
        print(
            f"{side:24} {measured['pairs_per_second']:10,.1f} pairs/s  {measured['peak_mib']:8,.0f} MiB  "
            f"R@1 {measured['r1']:.3f}  before the first step {measured['seconds_before']:.1f} s"
        )
    print(json.dumps(ratios))


def compared(sides: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ours over theirs, of pairs a second (more is better) and peak memory (less is); R@1: the difference."""
    ours, theirs = (sides[side] for side in SIDES)
    return {
        "pairs_per_second_ratio": round(ours["pairs_per_second"] / theirs["pairs_per_second"], 3),
        "memory_ratio": round(ours["peak_mib"] / theirs["peak_mib"], 3),
        "r1_difference": round(ours["r1"] - theirs["r1"], 4),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm", type=Path, default=REAL / "llm" / "tinystories-656k")
    parser.add_argument("--tower", type=Path, default=REAL / "tower" / "mobilenetv2-1.0-224")
    parser.add_argument("--rows", type=Path, default=REAL / "data" / "photos" / "train.jsonl")
    parser.add_argument("--test-rows", type=Path, default=REAL / "data" / "photos" / "validation.jsonl")
    parser.add_argument("--pairs", type=int, default=400, help="training pairs, one caption an image")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true", help="print the ratios alone, as JSON")
    parser.add_argument("--details", type=Path, help="write what was measured of each side as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser


def _in_process(side: str, arguments: argparse.Namespace, model: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--model", str(model)]
    for name in ("llm", "tower", "rows", "test_rows", "pairs", "batch", "steps", "learning_rate"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _samples(rows: Path, limit: int | None = None) -> list[Any]:
    from lockadapt.data.readers import Source, read_samples

    return read_samples("jsonl", Source(path=rows, kind="caption", expand=False, limit=limit))


def _write(arguments: argparse.Namespace, folder: Path) -> None:
    """The dual encoder that both start from, as a Transformers folder and for sentence-transformers."""
    from lockadapt.architectures.dual_encoder.assemble import assemble_dual
    from lockadapt.data.images import open_image
    from lockadapt.exports.embedding_model import EmbeddingModel
    from lockadapt.exports.targets import sentence_transformers

    samples = _samples(arguments.rows, min(arguments.pairs, 128))
    made = assemble_dual(
        arguments.llm,
        arguments.tower,
        folder / "stock",
        dimension=DIMENSION,
        dtype="float32",
        fitting_images=[open_image(sample.images[0], 10**8) for sample in samples],
        fitting_texts=[sample.answer for sample in samples],
        pooling="mean",
        prove=False,
    )
    (folder / "client").mkdir()
    sentence_transformers.write(EmbeddingModel(made.model, made.processor, "mean"), folder / "client")


def _measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    measure = _ours if side == SIDES[0] else _theirs
    clock = _clock()
    images, texts, samples = measure(arguments, clock)
    seconds = clock.seconds()
    return {
        "pairs_per_second": arguments.batch * arguments.steps / seconds,
        "seconds": seconds,
        "seconds_before": clock.begun - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "r1": _r1(images, texts, samples),
    }


def _r1(images: Any, texts: Any, samples: Sequence[Any]) -> float:
    from lockadapt.metrics.retrieval import candidates, retrieval_scores

    pool = candidates([s.images[0].key for s in samples], [s.answer for s in samples])
    return float(retrieval_scores(images, texts, pool.pairs)["text_to_image"]["r1"])


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """From the beginning of the first step to the end of the last."""

        begun = ended = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = self.begun or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

        def seconds(self) -> float:
            return self.ended - self.begun

    return Clock()


def _distinct(samples: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The images and texts of test rows, each once, in order."""
    images = {sample.images[0].key: sample.images[0] for sample in samples}
    return list(images.values()), list(dict.fromkeys(sample.answer for sample in samples))


def _ours(arguments: argparse.Namespace, clock: Any) -> tuple[Any, Any, list[Any]]:
    from lockadapt.architectures.dual_encoder.assemble import load_dual
    from lockadapt.data.pixels import PixelInputs
    from lockadapt.evaluation.context import PredictionContext
    from lockadapt.objectives import ImageText
    from lockadapt.training.config import GroundingConfig
    from lockadapt.training.trainer import GroundingTrainer

    model, processor = load_dual(arguments.model / "stock", "float32")
    objective = ImageText(
        mode="dual",
        dimension=DIMENSION,
        pooling="mean",
        scale=SCALE,
        learn_scale=False,
        batch_size=arguments.batch,
    )
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        trainer = GroundingTrainer(
            model,
            GroundingConfig(
                scratch,
                max_steps=arguments.steps,
                per_device_train_batch_size=arguments.batch,
                projector_learning_rate=arguments.learning_rate,
                features="memory",
                lr_scheduler_type="constant",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            ),
            {"itc": _samples(arguments.rows, arguments.pairs)},
            processing_class=processor,
            objectives={"itc": objective},
            callbacks=[clock],
        )
        trainer.train()
    samples = _samples(arguments.test_rows)
    pixels = PixelInputs(processor.image_processor, 10**8)
    context = PredictionContext(model.eval(), trainer.encoder, pixels, 32, None)
    images, texts = _distinct(samples)
    return objective.image_embeddings(context, images), objective.text_embeddings(context, texts), samples


def _theirs(arguments: argparse.Namespace, clock: Any) -> tuple[Any, Any, list[Any]]:
    from datasets import Dataset, Image
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from lockadapt.data.images import open_image

    model = SentenceTransformer(str(arguments.model / "client"), device="cpu", local_files_only=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".linear." in name)  # the two projections, as here
    # Its trainer puts frozen towers into training mode, where BatchNorm normalises by the batch: R@1 was 0.
    model[0].sub_modules["image"][0].register_forward_pre_hook(lambda module, _: module.eval() and None)
    samples = _samples(arguments.rows, arguments.pairs)
    columns = {"text": [s.answer for s in samples], "image": [str(s.images[0].path) for s in samples]}
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                scratch,
                max_steps=arguments.steps,
                per_device_train_batch_size=arguments.batch,
                learning_rate=arguments.learning_rate,
                lr_scheduler_type="constant",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                router_mapping={"text": "text", "image": "image"},
            ),
            train_dataset=Dataset.from_dict(columns).cast_column("image", Image()),
            loss=CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=64),
            callbacks=[clock],
        )
        trainer.train()
    tested = _samples(arguments.test_rows)
    images, texts = _distinct(tested)
    pictures = [open_image(image, 10**8) for image in images]
    embedded = [
        model.encode(part, convert_to_tensor=True, show_progress_bar=False) for part in (pictures, texts)
    ]
    return embedded[0].cpu(), embedded[1].cpu(), tested


if __name__ == "__main__":
    main()
