"""What can be asked and said about a scene: questions with their answers, and captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random

from lockadapt.quickstart.drawing import Scene, Thing

NUMBERS = ("zero", "one", "two", "three")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
SIDES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
Pair = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Question:
    """A question about one scene, its only right answer and the kind of answer (a key of `scenes.SHARES`)."""

    text: str
    answer: str
    kind: str


def pair(thing: Thing) -> Pair:
    """What a thing is, without where it is."""
    return thing.colour, thing.shape


def relation(thing: Thing, other: Thing, clearness: float = 1.6) -> str | None:
    """Where `thing` is, seen from `other`: a key of RELATIONS, or None where it is between two of them."""
    dx, dy = thing.x - other.x, thing.y - other.y
    if abs(dx) >= clearness * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= clearness * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def questions(scene: Scene, pairs: frozenset[Pair], random: Random) -> list[Question]:
    """Every question that the grammar has for this scene; `random` picks among wordings of the same meaning.

    Only colour-shape pairs from `pairs` are ever mentioned, also where the answer is no.
    """
    return [
        *_colours_and_shapes(scene, random),
        *_relations(scene),
        *_numbers(scene, random),
        *_yes_or_no(scene, pairs, random),
    ]


def captions(scene: Scene) -> list[str]:
    """All right captions, the one to learn first."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    if len({pair(thing) for thing in things}) == 1:
        if len(things) == 1:
            return [_one(things[0])]
        plural = f"{_name(things[0])}es" if things[0].shape == "cross" else f"{_name(things[0])}s"
        return [f"{NUMBERS[len(things)]} {plural}"]
    first, second = things
    spoken = [(a, b) for a, b in ((first, second), (second, first)) if relation(a, b)]
    spoken.sort(key=lambda two: relation(*two) not in ("left", "above"))
    related = [f"{_one(a)} {RELATIONS[relation(a, b) or '']} {_one(b)}" for a, b in spoken]
    return [*related, *(f"{_one(a)} and {_one(b)}" for a, b in permutations(things))]


def _colours_and_shapes(scene: Scene, random: Random) -> Iterator[Question]:
    """Find what all things have in common: one thing, things of one kind, or two that differ entirely."""
    if len({pair(thing) for thing in scene.things}) > 1:
        return
    thing, alone = scene.things[0], len(scene.things) == 1
    it, verb = ("it", "is") if alone else ("they", "are")
    shapes = "shape is" if alone else "shapes are"
    yield Question(
        random.choice((f"What colour {verb} {it}?", f"What colour {verb} the {shapes.split()[0]}?")),
        thing.colour,
        "colour",
    )
    yield Question(f"Which shape {verb} {it}?", thing.shape, "shape")
    if alone:
        yield Question(f"What colour is the {thing.shape}?", thing.colour, "colour")
        yield Question(f"Which shape is {thing.colour}?", thing.shape, "shape")


def _relations(scene: Scene) -> Iterator[Question]:
    """What stands on which side of two different things."""
    if len({pair(thing) for thing in scene.things}) != 2:
        return
    for thing, other in permutations(scene.things):
        side = relation(thing, other)
        if side is not None:
            yield Question(f"Which shape is {SIDES[side]}?", thing.shape, "relation")
            yield Question(f"What colour is the thing {SIDES[side]}?", thing.colour, "relation")


def _numbers(scene: Scene, random: Random) -> Iterator[Question]:
    words = ("How many things are there?", "How many shapes do you see?")
    yield Question(random.choice(words), NUMBERS[len(scene.things)], "number")


def _yes_or_no(scene: Scene, pairs: frozenset[Pair], random: Random) -> Iterator[Question]:
    """Claims about pairs; false ones are right in colour or in shape where that can be had."""
    present = {pair(thing) for thing in scene.things}
    colours, shapes = {c for c, _ in present}, {s for _, s in present}
    absent = sorted(pairs - present)
    near = [(colour, shape) for colour, shape in absent if (colour in colours) != (shape in shapes)] or absent
    for truth, claimed in (("yes", sorted(present)), ("no", random.sample(near, min(2, len(near))))):
        for colour, shape in claimed:
            yield Question(f"Is there a {colour} {shape}?", truth, "yes/no")


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _one(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {_name(thing)}"
