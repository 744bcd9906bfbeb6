"""The field's benchmarks: official files in, official scores out; one file each."""

from __future__ import annotations

from lockadapt.evaluation.benchmarks import (
    coco_captions,
    flickr30k,
    gqa,
    mme,
    mmstar,
    pope,
    refcoco,
    textvqa,
    vqa_v2,
)
from lockadapt.evaluation.benchmarks.base import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "vqa-v2": vqa_v2.BENCHMARK,
    "gqa": gqa.BENCHMARK,
    "textvqa": textvqa.BENCHMARK,
    "pope": pope.BENCHMARK,
    "mmstar": mmstar.BENCHMARK,
    "mme": mme.BENCHMARK,
    "coco-captions": coco_captions.BENCHMARK,
    "flickr30k": flickr30k.BENCHMARK,
    "refcoco": refcoco.BENCHMARK,
}
