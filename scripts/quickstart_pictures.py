"""Invents the unlabelled pictures on which the quickstart's tower is trained: crowds of shapes."""

from __future__ import annotations

import colorsys
import math
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lockadapt.quickstart.drawing import COLOURS, SHAPES, Background, Rgb, Scene, Thing, draw
from lockadapt.quickstart.scenes import HELD_OUT, background, shade

LARGEST = (0.18, 0.18, 0.32)  # radii, as parts of the side


def picture_pool(random: Random, count: int, side: int) -> Tensor:
    """Draw pictures (count, 3, side, side) uint8 of up to nine things, without held-out pairs.

    Half of them have their colour channels swapped at random.
    """
    pictures = torch.from_numpy(np.stack([np.asarray(_rendered(random, side)) for _ in range(count)]))
    pictures = pictures.permute(0, 3, 1, 2).contiguous()
    for picture in pictures:
        if random.random() < 0.5:
            picture.copy_(picture[random.sample(range(3), 3)])
    return pictures


def _rendered(random: Random, side: int) -> Image.Image:
    """Make pictures of `side` pixels in three ways: shrunk smoothly, shrunk roughly, drawn so."""
    scene, way = crowd(random), random.random()
    if way < 0.5:
        return draw(scene).resize((side, side), Image.Resampling.BILINEAR)
    if way < 0.7:
        return draw(scene).resize((side, side), Image.Resampling.NEAREST)
    return draw(scene, side)


def crowd(random: Random) -> Scene:
    """Place many things apart, in named or any hues; in every fourth picture few or small ones."""
    sparse, upright, long = (random.random() < chance for chance in (0.25, 0.25, 0.3))
    most, smallest, largest = (
        (random.choice((2, 9)), 0.06, 0.16) if sparse else (8, 0.11, random.choice(LARGEST))
    )
    things: list[Thing] = []
    for _ in range(5 * most):
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        if len(things) == most or (colour, shape) in HELD_OUT:
            continue
        size = random.uniform(smallest, largest)
        x, y = (random.uniform(size, 1 - size) for _ in "xy")
        if all(math.hypot(t.x - x, t.y - y) > 1.1 * (t.size + size) + 0.01 for t in things):
            stretch = math.exp(random.uniform(-0.9, 0.9)) if long and shape in ("square", "triangle") else 1.0
            rgb = shade(random, colour) if random.random() < 0.5 else _any_hue(random)
            turn = 0.0 if upright else random.uniform(-15, 15)
            things.append(Thing(colour, shape, x, y, size, turn, rgb, stretch))
    if random.random() < 0.7:
        return Scene(tuple(things), background(random))
    pale = random.randint(225, 255), random.randint(225, 255), random.randint(225, 255)
    return Scene(tuple(things), Background(pale, pale))


def _any_hue(random: Random) -> Rgb:
    hue = colorsys.hsv_to_rgb(random.random(), random.random() ** 0.4, random.random() ** 0.6)
    return int(255 * hue[0]), int(255 * hue[1]), int(255 * hue[2])
