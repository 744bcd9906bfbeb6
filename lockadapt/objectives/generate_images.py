"""Generates images for prompts through the stock `generate`, and tiles them with their prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import DynamicCache

from lockadapt.architectures import generation_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.data.batch import left_padded
from lockadapt.models.quiet import quiet
from lockadapt.objectives.image_generation import ImageGenerationConfig, generation_prompts
from lockadapt.tuning.training_autocast import training_autocast


@torch.no_grad()
def generate_image_token_ids(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[str],
    settings: ImageGenerationConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Generates image tokens by the stock `generate(generation_mode="image")`.

    Args:
        model: a stock Janus, possibly wrapped by PEFT, in any mode; left as it was, torch's generators too.
        processor: its processor.
        prompts: captions.
        settings: how to generate.
        progress: told (done, all).

    Returns:
        Image token ids, int64 (prompts, tokens), on the CPU.

    Raises:
        RecipeError: as `ImageGenerationConfig.arguments`.
    """
    base, arguments = unwrap_model(model), settings.arguments()
    device, done, pad = base.device, list[Tensor](), base.generation_config.pad_token_id
    encoded = generation_prompts(processor, prompts)
    with _still(model, settings.seed), training_autocast(model), quiet():
        for start in range(0, len(encoded), settings.batch_size):
            part = encoded[start : start + settings.batch_size]
            ids, mask = left_padded([row.tolist() for row in part], pad)
            # A cache of our own: the stock class's default one fails with some LLMs (Qwen).
            generated = base.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_mode="image",
                cache=DynamicCache(),
                **arguments,
            )
            done.append(generated.cpu())
            if progress:
                progress(start + len(part), len(encoded))
    empty = torch.zeros(0, base.config.vision_config.num_image_tokens, dtype=torch.long)
    return torch.cat(done) if done else empty


@torch.no_grad()
def pictures(
    model: nn.Module, processor: Any, image_token_ids: Tensor, batch_size: int = 64
) -> list[Image.Image]:
    """Decodes image token ids, int64 (images, tokens), by the stock class and processor."""
    codec, made = generation_of(model).codec(unwrap_model(model)), list[Image.Image]()
    for part in image_token_ids.split(batch_size) if len(image_token_ids) else ():
        values = codec.decode(part).float().cpu()
        # As tensors: where torchvision is installed, the stock processor fails at making Pillow's images
        # itself.
        levels = processor.postprocess(list(values), return_tensors="pt")["pixel_values"]
        made += [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).numpy()]
    return made


def generate_images(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[str],
    settings: ImageGenerationConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """An image for every prompt; arguments and errors as `generate_image_token_ids`."""
    image_token_ids = generate_image_token_ids(model, processor, prompts, settings, progress)
    return pictures(model, processor, image_token_ids, settings.batch_size)


def grid(images: Sequence[Image.Image], prompts: Sequence[str], path: Path, columns: int = 8) -> None:
    """Write images with their prompts below as one picture; small images are enlarged without smoothing."""
    side = max(image.width for image in images)
    scale = max(1, round(128 / side))
    cell, label, space = side * scale, 14, 6
    rows = -(-len(images) // columns)
    width = min(columns, len(images)) * (cell + space) + space
    canvas = Image.new("RGB", (width, rows * (cell + label + space) + space), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        left = space + (number % columns) * (cell + space)
        top = space + (number // columns) * (cell + label + space)
        canvas.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + cell + 1), _fitting(prompt, cell, pen), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _fitting(text: str, width: int, pen: ImageDraw.ImageDraw) -> str:
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@contextlib.contextmanager
def _still(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and seeded generators; both as before afterwards."""
    training = model.training
    model.eval()
    devices = [unwrap_model(model).device] if unwrap_model(model).device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), quiet():
            torch.manual_seed(seed)
            yield
    finally:
        model.train(training)
