"""The run folder: names of its files, and how recipe, probe, versions and base are written and found."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lockadapt.data.images import open_image
from lockadapt.data.readers import read_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError, SetupError
from lockadapt.files import nothing_but_abandoned, write_text
from lockadapt.recipe.explain import as_yaml
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.record import RUN
from lockadapt.version import __version__

RECIPE, METRICS, SCORES, BASE, PROBE, MEAN_IMAGE_FILE, FOLLOWED, PREDICTIONS = (
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation.json",
    "base",
    "probe",
    "mean_image.png",
    "followed.jsonl",
    "predictions.jsonl",
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


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, finished or not."""
    return (folder / RUN).is_file() or (folder / RECIPE).is_file()


def open_folder(recipe: Recipe, folder: Path, resume: bool) -> Path:
    """Makes the run folder, or checks that the one to resume belongs to this recipe.

    Args:
        recipe: of the run.
        folder: of the run.
        resume: whether it may exist.

    Returns:
        The folder.

    Raises:
        RecipeError: it is not empty, or belongs to another recipe.
    """
    same = recipe.model_copy(update={"output": None})
    if resume:
        before = read_recipe(folder).model_copy(update={"output": None})
        if before != same:
            raise RecipeError(
                f"differs from the recipe of the run: {_differences(before, same)}",
                where=str(folder),
                fix="resume with the same recipe, or train anew with another --output",
            )
        return folder
    if folder.exists() and not (folder.is_dir() and nothing_but_abandoned(folder)):
        raise RecipeError(
            "exists and is not empty", where=f"--output {folder}", fix="name a new folder, or add --resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder, same)
    return folder


def forget_unbegun(folder: Path, lock: str) -> None:
    """Empties the folder of a run that failed before it made anything, so that its command can come again.

    Args:
        folder: of the run.
        lock: name of the file in it that claims it.
    """
    if {path.name for path in folder.iterdir()} <= {RECIPE, lock}:
        for name in (RECIPE, lock):
            (folder / name).unlink(missing_ok=True)


def _differences(before: Recipe, now: Recipe) -> str:
    """The first few keys whose values differ, with both."""
    first, second = (dict(_leaves("", recipe.model_dump(mode="json"))) for recipe in (before, now))
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    shown = [f"{key} was {_short(first.get(key))}, is {_short(second.get(key))}" for key in keys[:5]]
    return "; ".join(shown + ([f"and {len(keys) - 5} more"] if len(keys) > 5 else []))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    known = {"lockadapt": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known[package] = "absent"
    known["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return known


def fingerprint(digests: Mapping[str, str]) -> str:
    """One SHA-256 over the digests of many tensors, by name."""
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(digests.items())).encode()).hexdigest()


def base_of(folder: Path, recorded: str) -> str:
    """Where the stock base of a run is: its own folder, or the recorded one that its recipe started from."""
    own = folder / BASE
    return str(own) if own.is_dir() else recorded


def write_probe(folder: Path, samples: Sequence[Sample], max_pixels: int) -> None:
    """Keeps a few real samples with their images, so that a merge can be proved without the data."""
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
