"""VQA v2 (arXiv 1612.00837): open questions about COCO 2014 with ten human answers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.data.readers import vqa_v2
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, BenchmarkFiles
from lockadapt.metrics.vqa import score_answers


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read the official questions and annotations, and `val2014/` or `train2014/`; errors as the reader's."""
    path = files.path(f"v2_OpenEnded_mscoco_{files.split}_questions.json*")
    return list(
        vqa_v2.read(
            Source(
                path,
                "vqa",
                images=files.path(files.split, f"images/{files.split}"),
                annotations=files.path(f"v2_mscoco_{files.split}_annotations.json*"),
                split=files.split,
                prompt=files.prompt,
            )
        )
    )


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """The official accuracy, in total and by answer type."""
    return score_answers(answers, [s.references for s in samples], [s.answer_type for s in samples])


BENCHMARK = Benchmark("vqa", ("val2014", "train2014"), SHORT_ANSWER, read, score)
