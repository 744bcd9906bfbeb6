"""What a finished run says of itself before anything is loaded: recipe, facts, and the configs in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.building.objectives import is_dual
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, loading
from lockadapt.recipe.schema import Recipe
from lockadapt.runs import run_folder
from lockadapt.runs.artifacts import ADAPTER

RUN_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class RunRecord:
    """A finished run, nothing of it loaded.

    Attributes:
        facts: `run.json`.
        adapter: `adapter_config.json` of its adapter, or None where it trained neither LoRA nor query tokens.
    """

    folder: Path
    recipe: Recipe
    facts: Mapping[str, Any]
    adapter: Mapping[str, Any] | None

    @property
    def base(self) -> str:
        """Folder or Hub id of the stock base."""
        return run_folder.base_of(self.folder, self.facts)

    @property
    def dual(self) -> bool:
        """Whether images and texts go through models of their own."""
        return is_dual(self.recipe)

    @property
    def lora(self) -> bool:
        """Whether it trained LoRA."""
        return self.adapter is not None and self.adapter["peft_type"] == "LORA"

    @property
    def quantized(self) -> bool:
        """Whether the base was quantized for training."""
        return self.facts["quantization"] != "none"

    @property
    def only_lora(self) -> bool:
        """Whether nothing but LoRA was ever trained, so that the base is still what the adapter belongs on."""
        rows = [row for stage in self.facts["stages"] for row in stage["components"]]
        return {row["component"] for row in rows if row["state"] == "trained"} == {"lora"}

    def config(self) -> Any:
        """The base's stock config.

        Raises:
            SetupError: it is gone.
        """
        from transformers import AutoConfig

        source = find(self.base, "run's base")
        with loading(source, "run's base"), quiet():
            return AutoConfig.from_pretrained(source.name, **source.arguments)


def finished_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        RecipeError: it is no finished run.
    """
    recipe, facts = run_folder.read_recipe(folder), run_folder.read_facts(folder)
    file = folder / ADAPTER / RUN_CONFIG
    adapter = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return RunRecord(folder, recipe, facts, adapter)
