"""Writes a run as one stock folder: the base's shards streamed, what was trained in place, and configs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from lockadapt.architectures import find_architecture
from lockadapt.architectures.base import RETRIEVAL
from lockadapt.architectures.blocks import quantizable_linears
from lockadapt.architectures.generic.limits import limit_image_tokens, write_limits
from lockadapt.architectures.load import load_processor
from lockadapt.evaluation.target import BESIDE
from lockadapt.exports.weights.changes import LowRank, WeightUpdate
from lockadapt.exports.weights.key_layouts import client_keys
from lockadapt.exports.weights.merge_weights import Weighted, WeightsReport, all_changes, write_changes
from lockadapt.exports.weights.names import Names, meta_model, read_names
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from lockadapt.exports.weights.shards import Layout, read_layout
from lockadapt.files import ordinary_permissions, write_json
from lockadapt.models.llms import name_text_class
from lockadapt.models.settled_folder import settle_folder
from lockadapt.models.sources import find, loading
from lockadapt.runs.artifacts import ADAPTER, PART_FILES
from lockadapt.runs.run import Run

BaseMode = Literal["dequantized", "original"]
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""What a stock folder has beside weights and card."""


def write_stock(
    run: Run, folder: Path, *, base: BaseMode = "dequantized", lora: bool = True
) -> WeightsReport:
    """Puts weights, configs and the processor's files into an existing, empty folder.

    What only a contrastive run has lies below it.

    Args:
        run: a finished run.
        folder: an existing, empty one.
        base: of a quantized run: the matrices that its layers multiplied with (what was trained), or those
            that they were quantized from.
        lora: fold its sums in; without them the folder is the bridge that LoRA is loaded onto. Trained
            vocabulary rows are in it either way.

    Returns:
        How many tensors were computed and copied, and all bytes.

    Raises:
        LockadaptError: as `merge_weights`.
    """
    plan = plan_merge(run, base=base)
    source, changes = plan.layout.folder, plan.changes
    if not lora:
        changes = {name: kept for name, updates in changes.items() if (kept := _without_sums(updates))}
    report = write_changes(
        source,
        folder,
        changes,
        requantized=plan.requantized,
        rename=client_keys(plan.model, plan.names),
    )
    copy_configs(source, folder)
    settle_folder(folder)
    if (limit := run.recipe.model.max_image_tokens) is not None:
        write_limits(folder, limit_image_tokens(load_processor(folder), limit))
    _name_text_class(folder)
    if (run.folder / PART_FILES[RETRIEVAL]).is_file():
        (folder / BESIDE).parent.mkdir()
        shutil.copyfile(run.folder / PART_FILES[RETRIEVAL], folder / BESIDE)
    ordinary_permissions(folder)
    return report


@dataclass(frozen=True)
class MergePlan:
    """What merging a run does to each tensor of its base.

    Attributes:
        layout: where the base's tensors lie.
        model: the base's Transformers class on the meta device.
        names: of the base's tensors.
        changes: by stock name, what the run adds, or puts in a tensor's place.
        requantized: by stock name, matrices that were trained on in quantized form.
    """

    layout: Layout
    model: Any
    names: Names
    changes: Mapping[str, Sequence[WeightUpdate]]
    requantized: Mapping[str, QuantizationRoundTrip]


def plan_merge(run: Run, *, base: BaseMode = "dequantized") -> MergePlan:
    """Plans a merge; nothing is written.

    Args:
        run: a finished run.
        base: of a quantized run, see `write_stock`.

    Returns:
        What becomes of each tensor.

    Raises:
        LockadaptError: as `merge_weights`.
    """
    source = local_folder(run.base)
    layout, model = read_layout(source), meta_model(source)
    names = read_names(model, layout.by_key(), str(source))
    adapters = [Weighted(run.folder / ADAPTER)] if run.adapter is not None else []
    changes = all_changes(source, adapters, {**trained_parts(run), **_unit_rows(model, names, source)})
    requantized: dict[str, QuantizationRoundTrip] = {}
    quantization = run.record.quantization
    if quantization != "none" and base == "dequantized":
        on_cpu = run.record.versions.get("device", "cpu") == "cpu"
        requantized = {
            f"{name}.weight": QuantizationRoundTrip(
                quantization, run.dtype, on_cpu, transposed=isinstance(layer, Conv1D)
            )
            for name, layer in quantizable_linears(model).items()
        }
    return MergePlan(layout, model, names, changes, requantized)


def trained_parts(run: Run) -> dict[str, Tensor]:
    """What training put in the place of the base's tensors, by stock name."""
    tensors: dict[str, Tensor] = {}
    for part, file in PART_FILES.items():
        if part != RETRIEVAL and (run.folder / file).is_file():
            tensors |= load_file(run.folder / file)
    return tensors


def copy_configs(source: Path, folder: Path) -> None:
    """Copies all of a stock folder but weights, their indexes, its card and lockadapt's record of origin."""
    for pattern in CONFIGS:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json") and file.name not in OWN:
                shutil.copyfile(file, folder / file.name)


OWN = ("lockadapt.json", "merge.json", "adapter_config.json")


def local_folder(source: str) -> Path:
    """Gives a stock folder on this disk: itself, or the Hub's files in its cache, downloaded if need be.

    Args:
        source: a folder or a Hub id.

    Returns:
        The folder.

    Raises:
        SetupError: it is neither here nor on the Hub.
    """
    origin = find(source, "base")
    if origin.local:
        return Path(origin.name)
    from huggingface_hub import snapshot_download

    with loading(origin, "base"):
        offline = origin.arguments["local_files_only"]
        patterns = [*CONFIGS, "*.safetensors"]
        return Path(snapshot_download(origin.name, allow_patterns=patterns, local_files_only=offline))


def _without_sums(changes: Sequence[WeightUpdate]) -> list[WeightUpdate]:
    return [change for change in changes if not isinstance(change, LowRank)]


def _name_text_class(folder: Path) -> None:
    """Older checkpoints do not say which class their LLM is, and converters take it for a Llama then."""
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    name_text_class(config)
    text = settings.get("text_config")
    if isinstance(text, dict) and not text.get("architectures"):
        text["architectures"] = config.get_text_config().architectures
        write_json(file, settings)


def _unit_rows(model: Any, names: Names, source: Path) -> Mapping[str, Tensor]:
    """Matrices that the folder does not keep with rows of length 1, as `load_model` trained with them."""
    from safetensors import safe_open

    unit_rows = {}
    architecture = find_architecture(model.config)
    for name in architecture.unit_rows if architecture is not None else ():
        if not (keys := names.keys_of(name)):
            continue
        shard, stored = read_layout(source).by_key()[keys[0]]
        with safe_open(shard.path, "pt") as file:
            table = file.get_tensor(stored.key)
        rows = F.normalize(table.double(), dim=-1).to(table.dtype)
        if not torch.equal(rows, table):
            unit_rows[name] = rows
    return unit_rows
