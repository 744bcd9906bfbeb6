"""Trains the quickstart's image tokenizer from images alone, as `lockadapt tokenizer train` does."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random

from lockadapt.architectures.janus.image_tokenizer import TokenizerShape
from lockadapt.console import Reporter
from lockadapt.quickstart.drawing import COLOURS, SHAPES, draw
from lockadapt.quickstart.prompts import simple_scene
from lockadapt.training.image_tokenizer.folder import train_folder
from lockadapt.training.image_tokenizer.train import TokenizerTraining

SHAPE = TokenizerShape(size=32, grid=4, codebook_size=256, blocks=0)
"""As many codes as the tower has patches, as Janus has one grid for both."""


def make_image_tokenizer(folder: Path, seed: int, steps: int, pictures: int = 1500) -> float:
    """Train on pictures of one thing, every pair of colour and shape; return the held-out absolute error."""
    shutil.rmtree(folder, ignore_errors=True)
    random = Random(f"{seed}-image-tokenizer")
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    with tempfile.TemporaryDirectory() as drawn:
        for number in range(pictures):
            draw(simple_scene(random, pairs[number % len(pairs)])).save(Path(drawn) / f"{number:05d}.png")
        settings = TokenizerTraining(steps=steps, batch_size=8, focus=3.0, perceptual=0.0, seed=seed)
        return float(train_folder(Path(drawn), folder, SHAPE, settings, Reporter())["l1"])
