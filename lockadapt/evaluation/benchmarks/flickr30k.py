"""Flickr30k retrieval (Young et al. 2014): 1,000 photographs and five captions each, either by the other."""

from __future__ import annotations

from lockadapt.data.readers.source import CAPTION_PROMPT
from lockadapt.data.sample import Sample
from lockadapt.evaluation.benchmarks.base import Benchmark, BenchmarkFiles, karpathy


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `dataset_flickr30k.json` and `flickr30k-images/`; several problems in one `DataError`."""
    images = files.path("flickr30k-images", "flickr30k_images", "images")
    return karpathy(files, "dataset_flickr30k.json", images, by_folder=False)


BENCHMARK = Benchmark("itc", ("test", "val"), CAPTION_PROMPT, read)
