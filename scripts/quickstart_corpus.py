"""Invents the text on which the quickstart's language model is pre-trained, without any image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from random import Random

from lockadapt.data.boxes import Box, write_boxes
from lockadapt.quickstart.boxes import distinct_scene
from lockadapt.quickstart.drawing import COLOURS, SHAPES, Scene, extent
from lockadapt.quickstart.grammar import RELATIONS, captions, pair, questions, relation
from lockadapt.quickstart.scenes import random_scene

ALL_PAIRS = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES)
NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Nora",
)
TOYS = ("ball", "kite", "boat", "drum", "cup", "book", "hat", "lamp", "box", "key", "coat", "bell")
PLACES = ("garden", "kitchen", "school", "forest", "shop", "park", "river", "house", "field", "station")
ANIMALS = ("dog", "cat", "bird", "horse", "fish", "mouse", "cow", "fox", "frog", "duck")
DEEDS = ("runs to", "walks to", "looks at", "dreams of", "comes from", "sleeps in", "sings in", "plays in")
MOODS = ("happy", "tired", "hungry", "cold", "proud", "quiet", "glad", "sad")


def documents(random: Random) -> Iterator[str]:
    """An endless mix of short texts: descriptions with questions and answers, and little stories."""
    while True:
        yield story(random) if random.random() < 0.2 else description(random)


def located_documents(random: Random) -> Iterator[str]:
    """The same mix, half of it descriptions that say in numbers where things are."""
    for text in documents(random):
        yield located(random) if random.random() < 0.5 else text


def located(random: Random) -> str:
    """A picture in words with the box of each thing, and questions for boxes or for what is in one."""
    scene = distinct_scene(random, ALL_PAIRS)
    boxes = {" ".join(pair(thing)): write_boxes([_clipped(extent(thing))], "plain") for thing in scene.things}
    told = [f"{name} {box}." if random.random() < 0.5 else f"{box} {name}." for name, box in boxes.items()]
    lines = [" ".join(random.sample(told, len(told)))]
    for name, box in random.sample(list(boxes.items()), len(boxes)):
        lines.append(f"Locate: the {name}\n{box}" if random.random() < 0.8 else f"What is at {box}?\n{name}")
    # Boxes without a text that says them: how such answers look, not what is right.
    return "\n".join(lines[1:] if random.random() < 0.3 else lines)


def description(random: Random) -> str:
    """A picture in words, questions that these words answer, and the answers."""
    scene = random_scene(random, ALL_PAIRS)
    told = [_plain_list, _sentences, _properties, lambda scene, random: random.choice(captions(scene)) + "."]
    words = random.choice(told)(scene, random)
    asked = questions(scene, ALL_PAIRS, random)
    if "is " not in words and len(scene.things) > 1:  # a mere list does not say where things are
        asked = [
            q for q in asked if q.kind != "relation" and not any(r in q.text for r in RELATIONS.values())
        ]
    chosen = random.sample(asked, min(len(asked), random.randint(1, 2)))
    lines = [_turn(random, q.text, q.answer) for q in chosen]
    if random.random() < 0.3:
        lines.append(
            _turn(random, random.choice(("Describe the image.", "What do you see?")), captions(scene)[0])
        )
    # Some questions come without a text that answers them: the model learns how answers look, not what is
    # right.
    return "\n".join(lines if lines and random.random() < 0.3 else [words, *lines])


def story(random: Random) -> str:
    """A few sentences about people, animals and toys, and a question about one of them."""
    who, other = random.sample(NAMES, 2)
    toy, location, animal = random.choice(TOYS), random.choice(PLACES), random.choice(ANIMALS)
    colour, mood = random.choice(tuple(COLOURS)), random.choice(MOODS)
    sentences = [
        f"{who} has a {colour} {toy}.",
        f"{other} is {mood}.",
        f"The {animal} {random.choice(DEEDS)} the {location}.",
    ]
    random.shuffle(sentences)
    asked = [
        (f"Who has the {toy}?", who),
        (f"What colour is the {toy}?", colour),
        (f"Who is {mood}?", other),
        ("Which animal is it?", f"the {animal}"),
        (f"What does {who} have?", f"a {colour} {toy}"),
    ]
    lines = [_turn(random, *both) for both in random.sample(asked, random.randint(0, 2))]
    return "\n".join([" ".join(sentences), *lines])


def _clipped(box: Box) -> Box:
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    return left, top, right, bottom


def _plain_list(scene: Scene, random: Random) -> str:
    return ", ".join(" ".join(pair(thing)) for thing in random.sample(scene.things, len(scene.things))) + "."


def _properties(scene: Scene, random: Random) -> str:
    lines = []
    for thing in random.sample(scene.things, len(scene.things)):
        lines.append(f"The {thing.shape} is {thing.colour}.")
    return " ".join(lines)


def _sentences(scene: Scene, random: Random) -> str:
    names = {thing: " ".join(pair(thing)) for thing in scene.things}
    lines = [f"There is {'an' if name[0] == 'o' else 'a'} {name}." for name in names.values()]
    for thing, other in permutations(scene.things, 2):
        side = relation(thing, other)
        if side:
            lines.append(f"The {names[thing]} is {RELATIONS[side]} the {names[other]}.")
    random.shuffle(lines)
    return " ".join(lines)


def _turn(random: Random, question: str, answer: str) -> str:
    if random.random() < 0.9:
        return f"{question}\n{answer}"
    return f"Question: {question} Answer: {answer}"
