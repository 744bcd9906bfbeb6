"""Generates images for prompts with a run or a merged folder, and writes them with one grid of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockadapt.architectures import layout_of
from lockadapt.data.control_tokens import ControlTokens
from lockadapt.data.readers.columns import clean_text
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.target import Target, open_target
from lockadapt.files import new_folder
from lockadapt.models.chat_template import control_tokens
from lockadapt.objectives.generate_images import generate_images, grid
from lockadapt.objectives.image_generation import ImageGenerationConfig

MAX_PROMPT = 4096
"""Characters of a prompt."""
MAX_IMAGES = 10_000
"""Images of one call, which stand in memory until all are generated."""


def generate_pictures(
    target: Path, prompts: Sequence[str], output: Path, config: ImageGenerationConfig, count: int
) -> dict[str, Any]:
    """Writes `count` PNGs for each prompt and `grid.png`; the folder appears whole or not at all.

    Args:
        target: a run or stock folder that generates images.
        prompts: captions.
        output: a new folder.
        config: how to generate.
        count: of images a prompt.

    Returns:
        `{"output", "grid", "images": [{"prompt", "file"}]}`.

    Raises:
        RecipeError: the model does not generate images, or `output` is not empty.
        DataError: a prompt is empty, too long, of several lines, or spells `<image>` or a control token out.
    """
    check_prompts(prompts)
    if count * len(prompts) > MAX_IMAGES:
        raise RecipeError(
            f"{count * len(prompts):,} images are too many at once",
            where="--count",
            fix=f"ask for {MAX_IMAGES:,} or fewer",
        )
    opened = open_target(target)
    check_generates(opened, prompts)
    asked = [prompt for prompt in prompts for _ in range(count)]
    images = generate_images(opened.model, opened.processor, asked, config)
    with new_folder(output, what="generating images") as folder:
        rows = []
        for number, (prompt, image) in enumerate(zip(asked, images, strict=True)):
            image.save(folder / f"{number:04d}.png")
            rows.append({"prompt": prompt, "file": f"{number:04d}.png"})
        grid(images, asked, folder / "grid.png", columns=min(8, len(asked)))
    return {"output": str(output), "grid": "grid.png", "images": rows}


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses prompts that are empty, too long, of several lines or spell `<image>` out, with `DataError`."""
    for prompt in prompts:
        clean_text(prompt, "prompt", "--prompt")
        if len(prompt) > MAX_PROMPT or len(prompt.splitlines()) > 1:
            raise DataError(
                f"the prompt has {len(prompt):,} characters on {len(prompt.splitlines()):,} lines",
                where="--prompt",
                fix=f"write one line of at most {MAX_PROMPT:,} characters",
            )


def check_generates(opened: Target, prompts: Sequence[str]) -> None:
    """Refuses a model that generates no images, and prompts that spell its control tokens out.

    Args:
        opened: the model.
        prompts: captions; may be empty.

    Raises:
        RecipeError: the model does not generate images.
        DataError: a prompt spells a control token out.
    """
    if not layout_of(opened.model).generation:
        raise RecipeError(
            "the model does not generate images", where=str(opened.folder), fix="train a t2i objective"
        )
    if opened.experiment is None or not opened.experiment.data.allow_special_tokens:
        tokenizer = opened.processor.tokenizer
        controls = ControlTokens(tokenizer, control_tokens(tokenizer))
        for prompt in prompts:
            controls.refuse(prompt, "prompt")
