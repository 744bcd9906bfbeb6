"""`lockadapt tokenizer train`: an image tokenizer for the user's own images, with which a run can draw."""

from __future__ import annotations

import json
from pathlib import Path

import typer

app = typer.Typer(no_args_is_help=True, help="Train an image tokenizer, which text-to-image needs.")


@app.callback()
def _tokenizer() -> None:
    """Train an image tokenizer, which text-to-image needs."""


@app.command("train")
def train(
    images: Path = typer.Option(
        ..., "--images", help="Folder of images (searched through), or a .jsonl of rows."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write; must be new or empty."),
    size: int = typer.Option(64, "--size", help="Side of the images, in pixels."),
    grid: int = typer.Option(4, "--grid", help="Side of the square of codes; that of the tower's patches."),
    codes: int = typer.Option(1024, "--codes", help="Entries of the codebook."),
    width: int = typer.Option(64, "--width", help="Channels at full resolution, a multiple of 32."),
    blocks: int = typer.Option(1, "--blocks", help="Residual blocks at each resolution; 0 is fastest."),
    steps: int = typer.Option(2000, "--steps", help="Training steps."),
    batch_size: int = typer.Option(16, "--batch-size", help="Images a step."),
    learning_rate: float = typer.Option(3e-3, "--learning-rate", help="Of Adam, at its highest."),
    focus: float = typer.Option(0.0, "--focus", help="Weight of pixels unlike their image's mean colour."),
    perceptual: str = typer.Option(None, "--perceptual", help="Tower whose features are compared as well."),
    adversarial: float = typer.Option(0.0, "--adversarial", help="Weight of a critic; 0 for none."),
    held_out: float = typer.Option(0.05, "--held-out", help="Share of the images that is scored."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda …"),
    seed: int = typer.Option(0, "--seed", help="Of everything that is drawn."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Train a stock JanusVQVAE on images, and report how well they come back and how much of the codebook is used."""
    from lockadapt.architectures.janus.image_tokenizer import TokenizerShape
    from lockadapt.console import Reporter
    from lockadapt.training.image_tokenizer.folder import train_folder
    from lockadapt.training.image_tokenizer.train import TokenizerTraining

    result = train_folder(
        images,
        output,
        TokenizerShape(size, grid, codes=codes, width=width, blocks=blocks),
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
        print(json.dumps(result))
        return
    print(
        f"{result['output']}: {result['grid']} x {result['grid']} codes, held out ({result['images']}): "
        f"L1 {result['l1']:.3f}, PSNR {result['psnr']:.1f} dB, "
        f"{result['codes_used']:.0%} of the codes used, perplexity {result['perplexity']:.0f}; {result['seconds']:.0f} s"
    )
