"""What can be asked and said about a scene: questions with their answers, and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random

from lockadapt.quickstart.drawing import Scene, Thing

NUMBERS = ("zero", "one", "two", "three")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
SIDES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
ANSWER_TYPES = ("colour", "shape", "relation", "number", "yes/no")
Pair = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Question:
    """A question about one scene, its only right answer and the kind of answer (one of ANSWER_TYPES)."""

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
    """All right captions, the one to learn first: things from left to right, or from above where that is clearer."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    if len(things) == 1:
        return [_one(things[0])]
    if len(things) == 2:
        first, second = things
        spoken = [(a, b) for a, b in ((first, second), (second, first)) if relation(a, b)]
        spoken.sort(key=lambda two: relation(*two) not in ("left", "above"))
        related = [f"{_one(a)} {RELATIONS[relation(a, b) or '']} {_one(b)}" for a, b in spoken]
        return [*related, *(f"{_one(a)} and {_one(b)}" for a, b in permutations(things))]
    return [_listed(order) for order in permutations(things)]


def _colours_and_shapes(scene: Scene, random: Random) -> Iterator[Question]:
    colours, shapes = _counts(scene)
    for thing in scene.things:
        if shapes[thing.shape] == 1:
            words = (f"What colour is the {thing.shape}?", f"Which colour does the {thing.shape} have?")
            yield Question(random.choice(words), thing.colour, "colour")
        if colours[thing.colour] == 1:
            words = (f"What shape is the {thing.colour} thing?", f"Which shape is {thing.colour}?")
            yield Question(random.choice(words), thing.shape, "shape")


def _relations(scene: Scene) -> Iterator[Question]:
    """Where two things are to each other; with three, too much could be meant."""
    if len(scene.things) != 2:
        return
    for thing, other in permutations(scene.things):
        place = relation(thing, other)
        if place is None:
            continue
        if thing.shape != other.shape:
            text = f"Where is the {thing.shape}, seen from the {other.shape}?"
            yield Question(text, place, "relation")
            yield Question(f"Which shape is {SIDES[place]}?", thing.shape, "relation")
        if thing.colour != other.colour:
            text = f"Where is the {thing.colour} thing, seen from the {other.colour} thing?"
            yield Question(text, place, "relation")
            yield Question(f"What colour is the thing {SIDES[place]}?", thing.colour, "relation")


def _numbers(scene: Scene, random: Random) -> Iterator[Question]:
    colours, shapes = _counts(scene)
    words = ("How many things are there?", "How many shapes do you see?")
    yield Question(random.choice(words), NUMBERS[len(scene.things)], "number")
    for shape, count in shapes.items():
        plural = f"{shape}es" if shape == "cross" else f"{shape}s"
        yield Question(f"How many {plural} are there?", NUMBERS[count], "number")
    for colour, count in colours.items():
        yield Question(f"How many {colour} things are there?", NUMBERS[count], "number")


def _yes_or_no(scene: Scene, pairs: frozenset[Pair], random: Random) -> Iterator[Question]:
    present = {pair(thing) for thing in scene.things}
    colours, shapes = _counts(scene)
    absent = sorted(pairs - present)
    # The hard kind of absence first: the colour is there and the shape is there, but not together.
    swapped = [(colour, shape) for colour, shape in absent if colour in colours and shape in shapes]
    near = [(colour, shape) for colour, shape in absent if (colour in colours) != (shape in shapes)]
    lies = swapped + random.sample(near, min(2, len(near)))
    for truth, claimed in (("yes", sorted(present)), ("no", lies)):
        for colour, shape in claimed:
            yield Question(
                f"Is there {'an' if colour == 'orange' else 'a'} {colour} {shape}?", truth, "yes/no"
            )
            if shapes[shape] == 1:
                yield Question(f"Is the {shape} {colour}?", truth, "yes/no")


def _counts(scene: Scene) -> tuple[Counter[str], Counter[str]]:
    return Counter(t.colour for t in scene.things), Counter(t.shape for t in scene.things)


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _one(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {_name(thing)}"


def _listed(things: tuple[Thing, ...]) -> str:
    names = [_one(thing) for thing in things]
    return f"{', '.join(names[:-1])} and {names[-1]}"
