"""Writes a run as one stock folder: the base's shards streamed, trained parts and adapter in place, configs beside them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

from lockadapt.evaluation.target import BESIDE
from lockadapt.export.streaming import merge_weights
from lockadapt.export.streaming.dialects import client_keys
from lockadapt.export.streaming.merge_weights import Weighted, WeightsReport
from lockadapt.export.streaming.names import meta_model, read_names
from lockadapt.export.streaming.requantized import Requantized
from lockadapt.export.streaming.shards import read_layout
from lockadapt.files import ordinary_permissions
from lockadapt.models.parts import RETRIEVAL, block_linears
from lockadapt.models.sources import find, loading
from lockadapt.training import run_folder
from lockadapt.training.artifacts import ADAPTER, PART_FILES

BaseMode = Literal["dequantized", "original"]
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""What a stock folder has beside weights and card."""
CODEBOOK = "model.vqmodel.quantize.embedding.weight"


def write_stock(
    run: Path, folder: Path, *, base: BaseMode = "dequantized", lora: bool = True
) -> WeightsReport:
    """Puts weights, configs and the processor's files into an existing, empty folder; what only a contrastive run has lies below it.

    Args:
        run: a finished run folder.
        base: of a quantized run: the matrices that its layers multiplied with (what was trained), or those that they
            were quantized from.
        lora: fold the adapter in; without it the folder is the bridge that an adapter is loaded onto.

    Raises:
        As `merge_weights`.
    """
    facts = run_folder.read_facts(run)
    source = local_folder(run_folder.base_of(run, facts))
    model = meta_model(source)
    names = read_names(model, read_layout(source).places(), str(source))
    adapters = [Weighted(run / ADAPTER)] if lora and (run / ADAPTER).is_dir() else []
    requantized: dict[str, Requantized] = {}
    if facts["quantization"] != "none" and base == "dequantized":
        how = Requantized(facts["quantization"], getattr(torch, facts["dtype"]))
        requantized = {f"{name}.weight": how for name in block_linears(model)}
    report = merge_weights(
        source,
        folder,
        adapters,
        {**trained_parts(run), **_unit_codebook(model, names.keys_of(CODEBOOK), source)},
        requantized=requantized,
        rename=client_keys(model, names),
    )
    copy_configs(source, folder)
    if (run / PART_FILES[RETRIEVAL]).is_file():
        (folder / BESIDE).parent.mkdir()
        shutil.copyfile(run / PART_FILES[RETRIEVAL], folder / BESIDE)
    ordinary_permissions(folder)
    return report


def trained_parts(run: Path) -> dict[str, Tensor]:
    """What training put in the place of the base's tensors, by stock name: projector and what draws."""
    tensors: dict[str, Tensor] = {}
    for part, file in PART_FILES.items():
        if part != RETRIEVAL and (run / file).is_file():
            tensors |= load_file(run / file)
    return tensors


def copy_configs(source: Path, folder: Path) -> None:
    """Copies everything of a stock folder but weights, their indexes, its card and what lockadapt wrote of its origin."""
    for pattern in CONFIGS:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json") and file.name not in OWN:
                shutil.copyfile(file, folder / file.name)


OWN = ("lockadapt.json", "merge.json", "adapter_config.json")


def local_folder(source: str) -> Path:
    """A stock folder on this disk: itself, or the Hub's files in its cache, downloaded if they are not there yet.

    Raises:
        EnvironmentProblem: it is neither here nor on the Hub.
    """
    found = find(source, "base")
    if found.local:
        return Path(found.name)
    from huggingface_hub import snapshot_download

    with loading(found, "base"):
        return Path(snapshot_download(found.name, allow_patterns=[*CONFIGS, "*.safetensors"]))


def _unit_codebook(model: Any, keys: list[str], source: Path) -> Mapping[str, Tensor]:
    """Of a Janus that does not keep its codes at length 1: as `load_model` trained with them."""
    if not isinstance(model, JanusForConditionalGeneration) or not keys:
        return {}
    from safetensors import safe_open

    shard, place = read_layout(source).places()[keys[0]]
    with safe_open(shard.path, "pt") as file:
        table = file.get_tensor(place.key)
    rows = F.normalize(table.double(), dim=-1).to(table.dtype)
    return {} if torch.equal(rows, table) else {CODEBOOK: rows}
