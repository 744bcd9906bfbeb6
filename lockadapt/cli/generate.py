"""`lockadapt generate`: generate images for prompts with a run or a merged folder."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def generate(
    target: Path = typer.Argument(help="Run folder or merged folder of a model trained with t2i."),
    prompts: list[str] = typer.Option(..., "--prompt", help="Prompt; may be repeated."),
    output: Path = typer.Option(..., "--output", "-o", help="Output folder; must be new or empty."),
    count: int = typer.Option(1, "--count", min=1, help="Number of images per prompt."),
    seed: int = typer.Option(
        0, "--seed", help="Random seed; the same seed and prompts give the same images."
    ),
    temperature: float = typer.Option(
        1.0, "--temperature", help="Sampling temperature; 0 is greedy decoding."
    ),
    top_k: int = typer.Option(None, "--top-k", help="Sample from the K most likely image tokens only."),
    top_p: float = typer.Option(
        None, "--top-p", help="Sample from the most likely image tokens up to this cumulative probability."
    ),
    guidance_scale: float = typer.Option(
        3.0, "--guidance-scale", help="Classifier-free guidance scale; 1 disables guidance."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Generate images for prompts."""
    from lockadapt.evaluation.generate import generate_pictures
    from lockadapt.objectives.image_generation import ImageGenerationConfig

    config = ImageGenerationConfig(seed, temperature, top_k, top_p, guidance_scale)
    result = generate_pictures(target, prompts, output, config, count)
    emit(json.dumps(result) if as_json else f"{len(result['images'])} images: {output}")
