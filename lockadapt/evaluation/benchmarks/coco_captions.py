"""COCO captions (arXiv 1504.00325): one sentence an image, scored against five."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.data.readers import coco
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.evaluation.benchmarks.base import Benchmark, BenchmarkFiles, karpathy
from lockadapt.metrics.captions import score_captions


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `annotations/captions_SPLIT.json`, for the split test Karpathy's `dataset_coco.json`; and images.

    Args:
        files: of the benchmark.

    Returns:
        One sample an image.

    Raises:
        DataError, SafetyError: as the readers.
    """
    if files.split == "test":
        return karpathy(files, "dataset_coco.json", files.path("val2014").parent, by_folder=True)
    name = f"captions_{files.split}.json"
    path, images = files.path(f"annotations/{name}", name), files.path(files.split)
    return list(coco.read(Source(path, "caption", images, expand=False, prompt=files.prompt)))


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """CIDEr-D, BLEU-4 and ROUGE-L, see `score_captions`."""
    return score_captions(answers, [sample.references for sample in samples])


PROMPT = "Provide a one-sentence caption for the provided image."
BENCHMARK = Benchmark("caption", ("test", "val2014", "val2017"), PROMPT, read, score, max_new_tokens=32)
