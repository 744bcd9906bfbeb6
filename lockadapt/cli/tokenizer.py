"""`lockadapt tokenizer train`: train an image tokenizer on your images, for text-to-image runs."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit

app = typer.Typer(no_args_is_help=True, help="Train an image tokenizer for text-to-image.")


@app.callback()
def _tokenizer() -> None:
    """Train an image tokenizer for text-to-image."""


@app.command("train")
def train(
    images: Path = typer.Option(
        ..., "--images", help="Folder of images (including subfolders), or a .jsonl file of rows."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Output folder; must be new or empty."),
    size: int = typer.Option(64, "--size", help="Side of the square images, in pixels."),
    grid: int = typer.Option(
        4, "--grid", help="Side of the grid of image tokens; must equal the tower's patch grid."
    ),
    codebook_size: int = typer.Option(1024, "--codebook-size", help="Number of entries in the codebook."),
    codes: int = typer.Option(None, "--codes", hidden=True),  # its former name
    width: int = typer.Option(64, "--width", help="Channels at full resolution, a multiple of 32."),
    blocks: int = typer.Option(1, "--blocks", help="Residual blocks at each resolution; 0 is fastest."),
    steps: int = typer.Option(2000, "--steps", help="Training steps."),
    batch_size: int = typer.Option(16, "--batch-size", help="Images per training step."),
    learning_rate: float = typer.Option(3e-3, "--learning-rate", help="Peak learning rate."),
    focus: float = typer.Option(
        0.0, "--focus", help="Extra loss weight of pixels that differ from their image's mean colour."
    ),
    perceptual: str = typer.Option(None, "--perceptual", help="Vision tower for a perceptual loss."),
    adversarial: float = typer.Option(
        0.0, "--adversarial", help="Weight of the adversarial loss; 0 disables it."
    ),
    held_out: float = typer.Option(
        0.05, "--held-out", help="Fraction of the images held out for evaluation."
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, …"),
    seed: int = typer.Option(0, "--seed", help="Random seed."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Train a JanusVQVAE on images, and report reconstruction quality and codebook usage."""
    from lockadapt.architectures.janus.image_tokenizer import TokenizerShape
    from lockadapt.console import Reporter
    from lockadapt.training.image_tokenizer.folder import train_folder
    from lockadapt.training.image_tokenizer.train import TokenizerTraining

    if codes is not None:
        codebook_size = codes
        emit("note: --codes is now called --codebook-size", error=True)
    result = train_folder(
        images,
        output,
        TokenizerShape(size, grid, codebook_size=codebook_size, width=width, blocks=blocks),
        TokenizerTraining(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            focus=focus,
            adversarial=adversarial,
            seed=seed,
        ),
        Reporter(quiet),
        tower=perceptual,
        held_out=held_out,
        device=device,
    )
    if as_json:
        emit(json.dumps(result))
        return
    emit(
        f"{result['output']}: {result['grid']} x {result['grid']} image tokens, held out "
        f"({result['images']}): "
        f"L1 {result['l1']:.3f}, PSNR {result['psnr']:.1f} dB, "
        f"{result['codes_used']:.0%} of the codebook used, perplexity {result['perplexity']:.0f}; "
        f"{result['seconds']:.0f} s"
    )
