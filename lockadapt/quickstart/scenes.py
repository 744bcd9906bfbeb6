"""Invents scenes of coloured shapes, and writes a data set that tests unseen combinations only."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from random import Random

from lockadapt.errors import DiskError
from lockadapt.quickstart.drawing import COLOURS, SHAPES, Background, Rgb, Scene, Thing, draw
from lockadapt.quickstart.grammar import Pair, Question, captions, questions, relation

__all__ = ["HELD_OUT", "SEEN", "background", "draw", "make_dataset", "random_scene", "shade", "write_lines"]

# One colour of every shape, drawn and asked about in the test half only: a model that learned whole pairs by
# heart has nothing to remember there.
HELD_OUT: frozenset[Pair] = frozenset(
    (("black", "triangle"), ("blue", "square"), ("green", "cross"), ("red", "star"), ("yellow", "circle"))
)
SEEN: frozenset[Pair] = frozenset((c, s) for c in COLOURS for s in SHAPES) - HELD_OUT

# How many of a hundred questions are of which kind. Few yes/no: those can be guessed; few relations: binding
# what is where takes these tiny models longer than a quickstart may last, as their own line of the result
# shows.
SHARES = {"colour": 40, "shape": 34, "number": 19, "relation": 4, "yes/no": 3}


def random_scene(random: Random, pairs: frozenset[Pair]) -> Scene:
    """One thing (half of the scenes), two or three of a kind, or two that differ in colour and shape."""
    ordered, kind = sorted(pairs), random.random()
    if kind < 0.5:
        return _placed(random, [random.choice(ordered)], 0.18, 0.32)
    if kind < 0.75:
        return _placed(random, [random.choice(ordered)] * random.choice((2, 3)), 0.13, 0.19)
    while True:
        first, second = random.sample(ordered, 2)
        if first[0] != second[0] and first[1] != second[1]:
            return _placed(random, [first, second], 0.16, 0.24)


def _placed(random: Random, chosen: list[Pair], smallest: float, largest: float) -> Scene:
    """Things of random size and place, apart from each other; tried again until they fit."""
    while True:
        things: list[Thing] = []
        for colour, shape in chosen:
            size = random.uniform(smallest, largest)
            x, y = (random.uniform(size + 0.02, 0.98 - size) for _ in "xy")
            things.append(Thing(colour, shape, x, y, size, random.uniform(-12, 12), shade(random, colour)))
        if all(_apart(a, b) for i, a in enumerate(things) for b in things[:i]):
            return Scene(tuple(things), background(random))


def make_dataset(folder: Path, seed: int = 0, train: int = 3000, test: int = 300, per_image: int = 3) -> None:
    """Draw `train` + `test` scenes and write them with about `per_image` questions each.

    Writes `train/*.png`, `test/*.png` (RGB, 96 x 96), `train.jsonl` and `test.jsonl` (image, question,
    answer, answer_type), `captions_train.jsonl` and `captions_test.jsonl` (image, caption, captions). Train
    scenes and questions use the pairs of SEEN only, test scenes and questions those of HELD_OUT only. For
    every yes/no and every how-many wording each answer is right equally often. The same arguments give the
    same bytes.

    Args:
        folder: where to write.
        seed: of all random choices.
        train: scenes to train on.
        test: scenes to evaluate with.
        per_image: questions about a scene, on average.

    Raises:
        DiskError: the folder cannot be written.
    """
    try:
        for name, count, pairs in (("train", train, SEEN), ("test", test, HELD_OUT)):
            _write_half(folder, name, Random(f"{seed}-{name}"), count, pairs, per_image)
    except OSError as error:
        raise DiskError(
            f"the quickstart's images cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="choose a folder that can be written and has 30 MB of space",
        ) from error


def shade(random: Random, colour: str) -> Rgb:
    """A shade of a named colour. Raises KeyError for an unknown colour."""
    red, green, blue = (min(255, max(0, c + random.randint(-14, 14))) for c in COLOURS[colour])
    return red, green, blue


def background(random: Random) -> Background:
    """Two pale shades in one of the patterns."""
    light = random.randint(195, 250)
    first, second = (_pale(random, light) for _ in range(2))
    return Background(
        first, second, random.choice(("plain", "gradient", "stripes", "dots")), random.uniform(0, 360)
    )


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes one JSON object a line, UTF-8. Raises OSError."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _write_half(
    folder: Path, name: str, random: Random, count: int, pairs: frozenset[Pair], per_image: int
) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    asked: list[tuple[str, Question]] = []
    told: list[dict[str, object]] = []
    for number in range(count):
        scene = random_scene(random, pairs)
        image = f"{name}/{number:05d}.png"
        draw(scene).save(folder / image, compress_level=1)
        asked += [(image, question) for question in questions(scene, pairs, random)]
        sentences = captions(scene)
        told.append({"image": image, "caption": sentences[0], "captions": sentences})
    chosen = choose_questions(asked, count * per_image, random)
    write_lines(
        folder / f"{name}.jsonl",
        [
            {"image": image, "question": q.text, "answer": q.answer, "answer_type": q.kind}
            for image, q in chosen
        ],
    )
    write_lines(folder / f"captions_{name}.jsonl", told)


def choose_questions(
    asked: list[tuple[str, Question]], total: int, random: Random
) -> list[tuple[str, Question]]:
    """Return at most `total` (image, question) pairs, mixed by SHARES, with balanced answers."""
    chosen: list[tuple[str, Question]] = []
    for kind, share in SHARES.items():
        of_kind = [item for item in asked if item[1].kind == kind]
        random.shuffle(of_kind)
        quota = total * share // 100
        chosen += _balanced(of_kind, quota, random) if kind in ("number", "yes/no") else of_kind[:quota]
    random.shuffle(chosen)
    return chosen


def _balanced(items: list[tuple[str, Question]], quota: int, random: Random) -> list[tuple[str, Question]]:
    """Sets of one item per answer of the same wording, as many sets as there is room for."""
    answers: dict[str, dict[str, list[tuple[str, Question]]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        answers[item[1].text][item[1].answer].append(item)
    sets = [
        group
        for by_answer in answers.values()
        if len(by_answer) > 1
        for group in zip(*by_answer.values(), strict=False)
    ]
    random.shuffle(sets)
    chosen: list[tuple[str, Question]] = []
    for group in sets:
        if len(chosen) + len(group) <= quota:
            chosen += group
    return chosen


def _pale(random: Random, light: int) -> Rgb:
    red, green, blue = (min(255, max(0, light + random.randint(-12, 12))) for _ in range(3))
    return red, green, blue


def _apart(thing: Thing, other: Thing) -> bool:
    """Neither touching nor at an angle between two directions: every relation in a scene is clear."""
    distance = ((thing.x - other.x) ** 2 + (thing.y - other.y) ** 2) ** 0.5
    return distance > 1.15 * (thing.size + other.size) + 0.03 and relation(thing, other) is not None
