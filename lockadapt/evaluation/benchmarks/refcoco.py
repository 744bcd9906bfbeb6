"""RefCOCO, RefCOCO+ and RefCOCOg (arXiv 1608.00272): the box of what a phrase means, right at IoU 0.5."""

from __future__ import annotations

from lockadapt.data.boxes import BoxRules
from lockadapt.data.readers import refcoco
from lockadapt.data.readers.source import GROUNDING_PROMPT, Source
from lockadapt.data.sample import Sample
from lockadapt.errors import SafetyError
from lockadapt.evaluation.benchmarks.base import Benchmark, BenchmarkFiles


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `refs(…).json`, `instances.json` and `train2014/`.

    Args:
        files: of the benchmark.

    Returns:
        A sample a sentence.

    Raises:
        DataError: as the reader.
        SafetyError: there are only the pickled refs of the official archive.
    """
    pickled = sorted(files.folder.glob("refs*.p"))
    if pickled and not list(files.folder.glob("refs*.json")):
        raise SafetyError(
            "the refs are pickled, and reading pickle can run any code",
            where=str(pickled[0]),
            fix='if you trust the file, write it as JSON once: python -c "import json, pickle, sys; '
            "json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))\" REFS.p REFS.json",
        )
    return list(
        refcoco.read(
            Source(
                files.path("refs*.json"),
                "grounding",
                images=files.path("train2014", "images/train2014", "images/mscoco/images/train2014"),
                annotations=files.path("instances.json"),
                split=files.split,
                prompt=files.prompt,
                boxes=BoxRules(coordinates="xywh"),
            )
        )
    )


BENCHMARK = Benchmark("grounding", ("val", "testA", "testB", "test"), GROUNDING_PROMPT, read)
