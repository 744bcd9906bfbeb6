"""Draws a scene of coloured shapes with Pillow: the same scene always gives the same pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "yellow": (240, 215, 30),
    "green": (45, 160, 65),
    "blue": (35, 90, 215),
    "purple": (130, 50, 170),
    "black": (25, 25, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIDE = 96  # pixels
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One coloured shape.

    `x`, `y` (centre, from the top left) and `size` (radius) are fractions of the side.
    """

    colour: str
    shape: str
    x: float
    y: float
    size: float
    turn: float = 0.0  # degrees, clockwise
    rgb: Rgb | None = None  # the exact shade; default: the colour's own
    stretch: float = 1.0  # width over height before turning; the area stays


@dataclass(frozen=True)
class Background:
    """What lies behind the things: two pale shades and how they mix."""

    first: Rgb = (240, 240, 240)
    second: Rgb = (240, 240, 240)
    pattern: Literal["plain", "gradient", "stripes", "dots"] = "plain"
    turn: float = 0.0  # degrees: direction of a gradient or of stripes


@dataclass(frozen=True)
class Scene:
    """Things on a background; the things do not overlap."""

    things: tuple[Thing, ...]
    background: Background = Background()


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """The scene as an RGB picture of `side` x `side` pixels, anti-aliased, identical on every call."""
    large = side * _OVERSAMPLING
    picture = _backdrop(scene.background, large)
    brush = ImageDraw.Draw(picture)
    for thing in scene.things:
        fill = thing.rgb or COLOURS[thing.colour]
        brush.polygon(_placed(thing, large), fill=fill)
    return picture.reduce(_OVERSAMPLING)


def extent(thing: Thing) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a thing as it is drawn, as fractions of the side."""
    corners = _placed(thing, 1)
    across, down = [x for x, _ in corners], [y for _, y in corners]
    return min(across), min(down), max(across), max(down)


def outline(shape: str) -> list[Point]:
    """Corners of a shape of radius about 1 around the origin, y downwards.

    Raises KeyError for an unknown shape.
    """
    return _OUTLINES[shape]


def _placed(thing: Thing, side: int) -> list[Point]:
    cosine, sine = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn))
    scale, wider = thing.size * side, math.sqrt(thing.stretch)
    corners = [(x * wider, y / wider) for x, y in outline(thing.shape)]
    return [
        (thing.x * side + scale * (x * cosine - y * sine), thing.y * side + scale * (x * sine + y * cosine))
        for x, y in corners
    ]


def _backdrop(background: Background, side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), background.first)
    if background.pattern == "gradient":
        # Rotated around its middle, a ramp of 3/2 the side still covers every corner of the square.
        ramp = Image.linear_gradient("L").resize((side * 3 // 2, side * 3 // 2)).rotate(background.turn)
        margin = side // 4
        mask = ramp.crop((margin, margin, margin + side, margin + side))
        picture.paste(background.second, mask=mask)
    elif background.pattern == "stripes":
        brush = ImageDraw.Draw(picture)
        slope = math.tan(math.radians(background.turn % 90 - 45))
        for start in range(-side, 2 * side, side // 6):
            brush.line([(start, 0), (start + slope * side, side)], fill=background.second, width=side // 16)
    elif background.pattern == "dots":
        brush = ImageDraw.Draw(picture)
        step, radius = side // 6, side // 40
        for row in range(6):
            for column in range(6):
                x, y = column * step + step // 2 + row % 2 * step // 3, row * step + step // 2
                brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=background.second)
    return picture


def _round(corners: int, radius: float = 0.95) -> list[Point]:
    angles = (2 * math.pi * i / corners for i in range(corners))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star(points: int = 5, inner: float = 0.45) -> list[Point]:
    corners = []
    for i in range(2 * points):
        radius = 1.1 if i % 2 == 0 else inner * 1.1
        angle = math.pi * i / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


_ARM = 0.34  # half the width of a bar of the cross
_OUTLINES: dict[str, list[Point]] = {
    "circle": _round(48),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(),
    "cross": [
        (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
        (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
