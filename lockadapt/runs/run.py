"""A finished run: opened once, by one door, and handed on; its model is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.building.model import limited
from lockadapt.data.sample import Sample
from lockadapt.errors import VerificationError
from lockadapt.models.device import choose_device, held_bytes
from lockadapt.models.origins import Origin
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, loading
from lockadapt.objectives import Objective
from lockadapt.recipe.schema import Recipe
from lockadapt.runs import run_folder
from lockadapt.runs.artifacts import ADAPTER, ADAPTER_WEIGHTS, load_parts
from lockadapt.runs.integrity import check_base, check_run
from lockadapt.runs.kept_json import SCORES
from lockadapt.runs.origins import recipe_origins
from lockadapt.runs.record import RunRecord, read_record
from lockadapt.tuning.quantize import dequantize, load_quantized

Base = Literal["quantized", "dequantized", "original"]
"""Of a quantized run: its base as it was trained on, matrices of the same values in the run's dtype, or those
from before quantization. Of other runs the three are one."""


@dataclass(frozen=True)
class Run:
    """A finished run, nothing of it loaded; from `open_run`.

    Attributes:
        experiment: what its recipe is made into: objectives, settings, rows.
        record: `run.json`.
        adapter: `adapter_config.json` of its adapter, or None where it trained neither LoRA nor query tokens.
    """

    folder: Path
    experiment: Experiment
    record: RunRecord
    adapter: Mapping[str, Any] | None

    @property
    def recipe(self) -> Recipe:
        """Its recipe, resolved."""
        return self.experiment.recipe

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """Its objectives by name."""
        return self.experiment.objectives

    @property
    def base(self) -> str:
        """Folder or Hub id of the stock base: the run's own, or the checkpoint that it started from."""
        return run_folder.base_of(self.folder, self.record.base)

    @property
    def dtype(self) -> torch.dtype:
        """That it was trained in."""
        return getattr(torch, self.record.dtype)

    @property
    def dual(self) -> bool:
        """Whether images and texts go through models of their own."""
        return self.experiment.dimension is not None

    @property
    def lora(self) -> bool:
        """Whether it trained LoRA."""
        return self.adapter is not None and self.adapter["peft_type"] == "LORA"

    @property
    def quantized(self) -> bool:
        """Whether the base was quantized for training."""
        return self.record.quantization != "none"

    @property
    def only_lora(self) -> bool:
        """Whether nothing but LoRA was ever trained, so that the adapter still belongs on the base."""
        return self.record.trained == {"lora"}

    def config(self) -> Any:
        """The base's stock config.

        Returns:
            A config of Transformers.

        Raises:
            SetupError: it is gone.
        """
        from transformers import AutoConfig

        source = find(self.base, "run's base")
        with loading(source, "run's base"), quiet():
            return AutoConfig.from_pretrained(source.name, **source.arguments)

    def origins(self) -> Sequence[Origin]:
        """Of LLM, tower and data: as recorded when it was trained, else as its sources say now."""
        return recipe_origins(self.recipe) if self.record.sources is None else self.record.sources

    def probe(self) -> list[Sample]:
        """The real samples that it kept.

        Returns:
            The samples.

        Raises:
            SetupError: they are missing.
        """
        return run_folder.read_probe(self.folder)

    def scores(self) -> dict[str, Any]:
        """What `lockadapt eval` kept: scores by objective, by `seeing` and `blind`; empty before it ran.

        Returns:
            The scores.

        Raises:
            VerificationError: the file is damaged.
        """
        return SCORES.read(self.folder / run_folder.SCORES, {})

    def mean_image(self) -> Image.Image | None:
        """What a blind run was shown in place of every image; None of others."""
        file = self.folder / run_folder.MEAN_IMAGE_FILE
        return Image.open(file).copy() if file.is_file() else None

    def load(self, base: Base = "quantized") -> LoadedRun:
        """Loads the trained model: base, LoRA attached and not folded, trained parts in place, eval mode.

        Args:
            base: `dequantized` computes as 4-bit layers multiply (8-bit layers round what they are multiplied
                with as well, which no matrix can do).

        Returns:
            Model and processor.

        Raises:
            SetupError: the base is gone.
            VerificationError: the base is another than the one of training, or adapter or parts do not fit
                it.
        """
        quantization = "none" if base == "original" else self.record.quantization
        model, processor = load_quantized(self.base, quantization, self.dtype)
        check_base(self.record.base_identity, model, processor.tokenizer, self.base)
        limited(processor, self.experiment.model.max_image_tokens)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if base == "dequantized" and quantization != "none":
            # What fits a card in 4 bits can be too large for it in 16.
            values_in_a_byte = {"nf4": 2, "int8": 1}[quantization]
            device = choose_device(values_in_a_byte * self.dtype.itemsize * held_bytes(model))
            model = dequantize(model.to(device), self.dtype)
        if self.adapter is not None:
            model = load_adapter(model, self.folder / ADAPTER)
        for objective in self.objectives.values():
            objective.prepare(model)
        load_parts(model, self.folder)
        return LoadedRun(self, model.to(device).eval(), processor)


@dataclass(frozen=True)
class LoadedRun:
    """A run and its trained model.

    Attributes:
        run: its folder, recipe and record.
        model: in eval mode, the adapter not folded.
        processor: the model's.
    """

    run: Run
    model: nn.Module
    processor: Any


def open_run(folder: str | Path) -> Run:
    """Reads a run folder and compares its files with what it records: every run is opened here.

    Args:
        folder: of the run.

    Returns:
        The run, its record and recipe read.

    Raises:
        RecipeError: it is no finished run.
        VerificationError: `run.json` or the adapter's config is damaged, or the files are not those that the
            run wrote.
    """
    folder = Path(folder)
    experiment = build_experiment(run_folder.read_recipe(folder))
    record = read_record(folder)
    return Run(folder, experiment, record, check_run(folder, record, experiment.query_tokens))


def as_run(run: str | Path | Run) -> Run:
    """The run itself, or the folder opened; errors as `open_run`."""
    return run if isinstance(run, Run) else open_run(run)


def load_run(folder: str | Path, *, base: Base = "quantized") -> LoadedRun:
    """Opens a run folder and loads its trained model.

    Args:
        folder: a finished run.
        base: of a quantized run: `quantized` as it was trained, `dequantized` to matrices of the same values,
            or `original`, from before quantization.

    Returns:
        `model` in eval mode with its adapter attached, on the GPU if there is one; `processor`; and the
        `run`.

    Raises:
        RecipeError: it is no finished run.
        SetupError: the base is gone.
        VerificationError: the folder is damaged, or its parts do not fit the base.
    """
    return open_run(folder).load(base)


def load_adapter(model: Any, folder: Path) -> nn.Module:
    """Puts a saved LoRA adapter onto a Transformers model.

    Args:
        model: a Transformers model.
        folder: the PEFT folder.

    Returns:
        The PEFT model.

    Raises:
        VerificationError: the adapter has keys that the model lacks, or lacks keys.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        wrapped = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:
        raise VerificationError(f"the adapter does not fit the base: {error}", where=str(folder)) from error
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        saved = set(file.keys())
    own = set(get_peft_model_state_dict(wrapped))
    if saved != own:
        raise VerificationError(
            f"adapter keys differ from the model's: missing {sorted(own - saved)[:3]}, unexpected "
            f"{sorted(saved - own)[:3]}",
            where=str(folder),
            fix="use the base that the adapter was trained on",
        )
    return wrapped
