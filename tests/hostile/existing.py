"""Folders of existing vision-language models: files that are missing, damaged or at odds, and rows they may not take."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, Content, lines, row
from tests.hostile.pictures import image
from tests.support.zoo import entry_of

NAMES = (
    *("idefics3", "llava_next", "gemma3", "aya_vision"),
    *("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "mistral3"),
)
"""The first four need no package beside Transformers; cases of the others are there where torchvision is."""

Damage = Callable[[Path], None]


@functools.cache
def original(name: str) -> Path:
    """A sound folder of the zoo, written once."""
    folder = Path(tempfile.mkdtemp(prefix=f"lockadapt-{name}-")) / "vlm"
    entry_of(name).write(folder)
    return folder


def damaged(name: str, damage: Damage) -> Content:
    """What copies a sound folder and damages it."""

    def write(path: Path) -> None:
        shutil.copytree(original(name), path)
        damage(path)

    return write


def removed(*names: str) -> Damage:
    """Files are missing."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return damage


def with_text(name: str, text: str | bytes) -> Damage:
    """A file holds something else."""
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(content) and None


def with_keys(name: str, *path: str, **keys: Any) -> Damage:
    """Keys of a JSON file, or of a section of it, have other values; `...` removes one."""

    def damage(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text())
        section = content
        for part in path:
            section = section.setdefault(part, {})
        for key, value in keys.items():
            if value is ...:
                section.pop(key, None)
            else:
                section[key] = value
        file.write_text(json.dumps(content))

    return damage


def cut(name: str, keep: float) -> Damage:
    """A file ends too early."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def untouched(folder: Path) -> None:
    """A sound folder."""


def check(name: str, what: str, code: int, *words: str, damage: Damage) -> Case:
    return Case(
        "vlm",
        f"{name}: {what}",
        code,
        words,
        {"vlm": damaged(name, damage)},
        ("check", "--vlm", "./vlm"),
    )


def rows(
    name: str, what: str, code: int, *words: str, table: str, kind: str = "vqa", **files: Content
) -> Case:
    training = {"steps": 1, "batch_size": 2}
    return Case(
        "vlm",
        f"{name}: {what}",
        code,
        words,
        {"vlm": damaged(name, untouched), "rows.jsonl": table, **files},
        ("train", "recipe.yaml", "--output", "run"),
        recipe={"model": {"vlm": "./vlm", "dtype": "float32"}, "training": training},
        kind=kind,
    )


def cases() -> Iterator[Case]:
    words = ("is shown an image with every text",)
    text = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "blue"}]
    blind = lines({"messages": text, "images": []})
    yield rows("mllama", "rows without images", 3, *words, table=blind, kind="dialogue")
    for name in NAMES:
        if not entry_of(name).missing():
            yield from folders(name)
            if name not in SQUARES:
                yield from pictures(name)


def folders(name: str) -> Iterator[Case]:
    """Of every class: what a folder may lack or claim."""
    weights, tokenizer = "model.safetensors", "tokenizer.json"
    yield check(name, "no chat template", 3, "chat template", damage=removed("chat_template.jinja"))
    yield check(name, "no tokenizer", 4, "processor", damage=removed(tokenizer))
    yield check(name, "no processor", 4, "processor", damage=removed("processor_config.json"))
    yield check(name, "no weights", 4, "cannot be loaded", damage=removed(weights))
    yield check(name, "cut weights", 4, weights, damage=cut(weights, 0.7))
    yield check(name, "cut header", 4, weights, damage=cut(weights, 0.001))
    yield check(name, "no config", 4, "config", damage=removed("config.json"))
    yield check(name, "unknown type", 4, "model type", damage=with_keys("config.json", model_type="nonsense"))
    yield check(name, "no vision config", 4, "vlm", damage=with_keys("config.json", vision_config="a tower"))
    yield check(
        name,
        "placeholder of another id",
        4,
        "image token",
        damage=with_keys("config.json", image_token_id=5, image_token_index=5),
    )
    yield check(
        name, "template is broken", 3, "chat template", damage=with_text("chat_template.jinja", "{% if")
    )
    yield check(name, "template drops images", 3, "image", damage=with_text("chat_template.jinja", BLIND))
    yield check(name, "processor is a list", 4, "processor", damage=with_text("processor_config.json", "[]"))
    yield check(name, "processor is cut", 4, "processor", damage=cut("processor_config.json", 0.5))


BLIND = "{% for m in messages %}{{ m.role }}: {{ m.content[-1].text }}\n{% endfor %}answer:"


SQUARES = ("gemma3", "aya_vision")
"""Classes that are not trained here: the first resizes every picture to a square, the second cuts as InternVL does."""

SHAPES = ("mistral3", "qwen2_5_vl", "qwen3_vl")
"""Classes whose processors do not take every shape."""


def pictures(name: str) -> Iterator[Case]:
    """Rows without images, with many, and of extreme shapes."""
    nine = row(image=..., images=["0.png"] * 9)
    yield rows(name, "nine images", 0, table=lines(nine, nine))
    wide = lines(row(image="wide.png"), row(image="tall.png", answer="blue"))
    mixed = {"wide.png": image(size=(96, 32)), "tall.png": image(size=(40, 80))}
    yield rows(name, "mixed sizes in a batch", 0, table=wide, **mixed)
    text = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "blue"}]
    seen = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}, text[1]]
    blind, seeing = {"messages": text, "images": []}, {"messages": seen, "images": ["seen.png"]}
    yield rows(
        name,
        "rows without images beside others",
        0,
        table=lines(blind, seeing),
        kind="dialogue",
        **{"seen.png": image(size=(64, 48))},
    )
    yield rows(name, "only rows without images", 0, table=lines(blind, blind), kind="dialogue")
    extreme = lines(row(image="long.png"), row(answer="blue"))
    refused = name in SHAPES
    words = ("pixels", "fix:") if refused else ()
    yield rows(
        name, "extreme aspect ratio", 3 * refused, *words, table=extreme, **{"long.png": image(size=(900, 4))}
    )
    tiny = lines(row(image="tiny.png"), row(image="tiny.png", answer="blue"))
    fails = name == "mistral3"
    words = ("the forward of Mistral3ForConditionalGeneration fails", "tiny") if fails else ()
    yield rows(name, "tiny pictures", 4 * fails, *words, table=tiny, **{"tiny.png": image(size=(2, 2))})


CASES = list(cases())
