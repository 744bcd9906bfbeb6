"""The run folder: what is in it, how it is written, and how a trained model is loaded from it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.building.objectives import build_objectives
from lockadapt.data.images import open_image
from lockadapt.data.readers import read_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError, SetupError, VerificationError
from lockadapt.files import write_json, write_text
from lockadapt.models.device import choose_device, held_bytes
from lockadapt.recipe.explain import as_yaml
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.artifacts import ADAPTER, PROCESSOR, load_parts
from lockadapt.tuning.quantize import dequantize, load_quantized
from lockadapt.version import __version__

RECIPE, RUN, METRICS, BASE, PROBE, MEAN_IMAGE_FILE = (
    "recipe.yaml",
    "run.json",
    "metrics.jsonl",
    "base",
    "probe",
    "mean_image.png",
)
PROBE_SAMPLES = 8
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "pillow",
)


@dataclass(frozen=True)
class Run:
    """A finished run, its model loaded as it was trained (quantized base, adapter not merged)."""

    folder: Path
    recipe: Recipe
    facts: dict[str, Any]
    model: nn.Module
    processor: Any


def is_run(folder: Path) -> bool:
    """Whether a folder is a finished run."""
    return (folder / RUN).is_file() and (folder / PROCESSOR).is_dir()


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe."""
    write_text(folder / RECIPE, as_yaml(recipe))


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run."""
    if not (folder / RECIPE).is_file():
        raise RecipeError(
            "is no run folder: recipe.yaml is missing", where=str(folder), fix="name a finished run"
        )
    return load_recipe(folder / RECIPE).recipe


def read_facts(folder: Path) -> dict[str, Any]:
    """`run.json` of a run."""
    if not (folder / RUN).is_file():
        raise RecipeError(
            "is no finished run: run.json is missing",
            where=str(folder),
            fix="finish it with `lockadapt train … --resume`",
        )
    return json.loads((folder / RUN).read_text(encoding="utf-8"))


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    write_json(folder / RUN, facts)


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    found = {"lockadapt": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found


def fingerprint(digests: Mapping[str, str]) -> str:
    """One SHA-256 over the digests of many tensors, by name."""
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(digests.items())).encode()).hexdigest()


def base_of(folder: Path, facts: Mapping[str, Any]) -> str:
    """Where the stock base of a run is: its own folder, or the checkpoint that the recipe started from."""
    own = folder / BASE
    return str(own) if own.is_dir() else str(facts["base"])


def load_run(folder: str | Path, dequantized: bool = False) -> Run:
    """Loads a finished run: base as it was trained on, LoRA attached, projector in place, eval mode.

    Args:
        dequantized: turn a quantized base into matrices of the same values in the run's dtype, as 4-bit layers multiply
            with them (8-bit layers round what they are multiplied with as well, which no merged matrix can do).

    Raises:
        RecipeError: the folder is no finished run.
        SetupError: the base is gone.
        VerificationError: adapter or projector do not fit the base.
    """
    folder = Path(folder)
    recipe, facts = read_recipe(folder), read_facts(folder)
    model, processor = load_trained(folder, recipe, facts, dequantized)
    return Run(folder, recipe, facts, model, processor)


def load_trained(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], dequantized: bool = False
) -> tuple[nn.Module, Any]:
    """The trained model and its processor, from the artefacts in a run folder."""
    base = base_of(folder, facts)
    dtype = getattr(torch, facts["dtype"])
    model, processor = load_quantized(base, facts["quantization"], dtype)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if dequantized and facts["quantization"] != "none":
        # What fits a card in 4 bits can be too large for it in 16.
        values_in_a_byte = {"nf4": 2, "int8": 1}[facts["quantization"]]
        place = choose_device(values_in_a_byte * dtype.itemsize * held_bytes(model))
        model = dequantize(model.to(place), dtype)
    if (folder / ADAPTER).is_dir():
        model = load_adapter(model, folder / ADAPTER)
    for objective in build_objectives(recipe).values():
        objective.prepare(model)
    load_parts(model, folder)
    return model.to(place).eval(), processor


def load_adapter(model: Any, folder: Path) -> nn.Module:
    """Puts a saved LoRA adapter onto a stock model.

    Raises:
        VerificationError: the adapter has keys that the model lacks, or lacks keys.
    """
    from peft import PeftModel
    from safetensors import safe_open

    try:
        wrapped = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:
        raise VerificationError(f"the adapter does not fit the base: {error}", where=str(folder)) from error
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    from peft import get_peft_model_state_dict

    own = set(get_peft_model_state_dict(wrapped))
    if saved != own:
        raise VerificationError(
            f"adapter keys differ from the model's: missing {sorted(own - saved)[:3]}, unexpected {sorted(saved - own)[:3]}",
            where=str(folder),
            fix="use the base that the adapter was trained on",
        )
    return wrapped


def write_probe(folder: Path, samples: Sequence[Sample], max_pixels: int) -> None:
    """Keeps a few real samples with their images, so that a merge can be proved where the data is not at hand."""
    target = folder / PROBE
    target.mkdir(exist_ok=True)
    lines: list[str] = []
    names: dict[str, str] = {}
    for sample in samples[:PROBE_SAMPLES]:
        for image in sample.images:
            if image.key not in names:
                names[image.key] = f"{len(names)}.png"
                open_image(image, max_pixels).save(target / names[image.key])
        lines.append(
            json.dumps({"images": [names[i.key] for i in sample.images], "messages": sample.messages()})
        )
    write_text(target / "samples.jsonl", "\n".join(lines) + "\n")


def read_probe(folder: Path) -> list[Sample]:
    """The kept samples."""
    file = folder / PROBE / "samples.jsonl"
    if not file.is_file():
        raise SetupError("the run's probe samples are missing", where=str(file), fix="train again")
    return read_samples("jsonl", Source(path=str(file), kind="dialogue"))


def command_line() -> str:
    """How the run was started."""
    return " ".join(["lockadapt", *sys.argv[1:]])
