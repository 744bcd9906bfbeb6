"""`lockadapt generate`: pictures for prompts, drawn by a run or a merged folder."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def generate(
    target: Path = typer.Argument(help="Run folder, or a merged stock folder, of a model that draws."),
    prompts: list[str] = typer.Option(..., "--prompt", help="What to draw; may be given several times."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write; must be new or empty."),
    count: int = typer.Option(1, "--count", min=1, help="Pictures for each prompt."),
    seed: int = typer.Option(0, "--seed", help="The same seed and prompts give the same pictures."),
    temperature: float = typer.Option(1.0, "--temperature", help="0 takes the likeliest code."),
    top_k: int = typer.Option(None, "--top-k", help="Among the K likeliest codes only."),
    top_p: float = typer.Option(
        None, "--top-p", help="Among the likeliest codes with this probability together."
    ),
    guidance_scale: float = typer.Option(
        3.0, "--guidance-scale", help="Above 1: how strongly the prompt is followed."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Draw pictures for prompts."""
    from lockadapt.evaluation.generate import generate_pictures
    from lockadapt.objectives.image_generation import ImageGenerationConfig

    drawing = ImageGenerationConfig(seed, temperature, top_k, top_p, guidance_scale)
    result = generate_pictures(target, prompts, output, drawing, count)
    print(json.dumps(result) if as_json else f"{len(result['images'])} pictures: {output}")
