"""What is killed: commands on a run of tiny models, and what each leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kill.points import run_to_its_end
from tests.support.rows import embedding_recipe
from tests.support.runs import recipe_file
from tests.support.tiny import tiny_llm, tiny_tower

OUT = "out"


@dataclass(frozen=True)
class Killed:
    """A command.

    Attributes:
        name: in tables.
        arguments: of the command, given the folder that it writes below.
        again: of the command that goes on after a kill; None where nothing is left to do.
        kills: of 50, how many it gets.
    """

    name: str
    arguments: Callable[[Path], Sequence[str]]
    again: Callable[[Path], Sequence[str] | None]
    kills: int


def commands(folder: Path) -> list[Killed]:
    """Trains a run, and names all that is done with it.

    Args:
        folder: an empty one; absolute.
    """
    tiny_llm("llama-tied", folder / "llama-tied")
    tiny_tower("clip-vision", folder / "clip-vision")
    data = folder / "data"
    data.mkdir()
    recipe = _recipe(folder, data)
    train = recipe_file(data, recipe)
    run = folder / "run" / OUT
    (folder / "run").mkdir()
    run_to_its_end(["train", str(train), f"data.cache={folder / 'run' / 'cache'}", "--output", str(run)], run)
    pictures = str(data / "pictures")

    def trained(target: Path) -> list[str]:
        return [
            "train",
            str(train),
            f"data.cache={target / 'cache'}",
            "--output",
            str(target / OUT),
            "--quiet",
        ]

    def resumed(target: Path) -> list[str]:
        begun = (target / OUT / "recipe.yaml").is_file()
        return [*trained(target), *(["--resume"] if begun else [])]

    def written(verb: str, *more: str) -> Callable[[Path], list[str]]:
        return lambda target: [verb, str(run), *more, "--output", str(target / OUT), "--quiet"]

    def absent(begin: Callable[[Path], list[str]]) -> Callable[[Path], list[str] | None]:
        # A folder that appeared is whole; nothing more is to be done, and the command would refuse.
        return lambda target: None if (target / OUT).exists() else begin(target)

    def cached(target: Path) -> list[str]:
        return ["cache", str(train), f"data.cache={target / OUT}", "--quiet"]

    def indexed(target: Path) -> list[str]:
        options = ["--images", pictures, "--query", "red", "--index", str(target / OUT), "--quiet"]
        return ["search", str(run), *options]

    merge, export = written("merge"), written("export", "--to", "adapter")
    return [
        Killed("train", trained, resumed, 22),
        Killed("merge", merge, absent(merge), 8),
        Killed("export", export, absent(export), 8),
        Killed("cache", cached, cached, 6),
        Killed("search index", indexed, indexed, 6),
    ]


def _recipe(folder: Path, data: Path) -> dict[str, Any]:
    """Two objectives, two stages, tower outputs on the disk, checkpoints after every second step."""
    recipe = embedding_recipe(folder, data, "llama-tied")
    for number in range(4):  # a second shard of the cache, and images that only the index has
        source = sorted((data / "pictures").glob("*.png"))[number]
        os.link(source, data / "pictures" / f"again-{number}.png")
    recipe["training"] |= {"save_every": 2, "log_every": 3}
    recipe["data"] = {"features": "disk"}
    recipe["stages"] = [
        {"name": "first", "train": ["projector"], "steps": 3},
        {"name": "second", "steps": 5},
    ]
    return recipe
