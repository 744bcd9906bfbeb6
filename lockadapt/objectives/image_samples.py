"""Shows what a run can generate while it trains: a grid of images with their prompts, a few times a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt.data.encode import Encoded
from lockadapt.objectives.generate_images import generate_images, grid
from lockadapt.objectives.image_generation import ImageGenerationConfig
from lockadapt.tuning.sharding import is_sharded

SHOWN = 16


class ImageSamples(TrainerCallback):
    """Generates images for the same captions with the same seed at every checkpoint, into `step-N.png`.

    Args:
        folder: where pictures go.
        processor: of the model.
        settings: how images are generated.
        rows: whose captions are taken, each different one once.
    """

    def __init__(
        self, folder: Path, processor: Any, settings: ImageGenerationConfig, rows: Sequence[Encoded]
    ) -> None:
        self.folder, self.processor, self.settings = folder, processor, settings
        self.captions = list(dict.fromkeys(row.sample.answer for row in rows))[:SHOWN]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At every `save_steps`, and at the end."""
        at_end = state.global_step == state.max_steps
        first = state.is_world_process_zero
        if not (at_end or state.global_step % int(args.save_steps) == 0):
            return
        if not (first or is_sharded(kwargs["model"])):  # all processes call a model that they share
            return
        images = generate_images(kwargs["model"], self.processor, self.captions, self.settings)
        if not first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        grid(images, self.captions, self.folder / f"step-{state.global_step:06d}.png")
