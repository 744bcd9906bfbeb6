"""What is fuzzed: a strategy of inputs, and what reads them as a user's command would."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lockadapt.architectures.load import load_model
from lockadapt.attaching.source import read_source
from lockadapt.building.experiment import build_experiment
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoder
from lockadapt.data.readers import READERS, Source, read_samples
from lockadapt.exports.weights.adapter import read_adapter
from lockadapt.files import sha256_of
from lockadapt.models.folder_digest import folder_digest
from lockadapt.models.safetensors_file import header_bytes, read_shard
from lockadapt.models.sources import find
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import open_run
from lockadapt.training import checkpoint
from lockadapt.training.loop import train
from tests.fuzz.shards import drawn_shards, read_shards
from tests.fuzz.values import ODD_TEXTS, edited, json_bytes, json_values, torn

QUIET = Reporter(quiet=True)
JSON_OF_A_RUN = ("run.json", "adapter/adapter_config.json", "base/config.json", "base/tokenizer_config.json")
JSON_OF_A_CHECKPOINT = ("progress.json", "optimizer.json", "trainer_state.json", "rng-0.json")


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: in tables.
        inputs: what is drawn.
        read: reads an input in an empty folder; whatever it raises must be something that users are told.
        share: of the examples, where one takes longer than others.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    share: float = 1.0


def targets(run: Path, interrupted: Path) -> list[Target]:
    """All of them.

    Args:
        run: a finished run of tiny models.
        interrupted: one that stopped behind a checkpoint.
    """
    return [
        _recipes(run),
        _rows(run),
        _shards(run),
        _run_folders(run),
        _checkpoints(interrupted),
        _adapters(run),
        _headers(run),
        _model_folders(run),
        _chat_templates(run),
    ]


def _recipes(run: Path) -> Target:
    document = load_recipe(run / "recipe.yaml").recipe.model_dump(mode="json", exclude={"output"})
    document["stages"] = [{"name": "a", "train": ["projector"]}, {"name": "b", "steps": 2}]
    keys = st.sampled_from(_keys("", document))
    override = st.one_of(
        st.builds(lambda key, value: f"{key}={json.dumps(value)}", keys, json_values),
        st.builds(lambda key, value: f"{key}={value}", keys, st.sampled_from(ODD_TEXTS)),
        st.text(max_size=30),
    )
    text = st.one_of(
        edited(document, 1).map(
            lambda value: yaml.safe_dump(value, allow_unicode=True).encode(errors="replace")
        ),
        torn(yaml.safe_dump(document).encode()),
    )

    def read(value: tuple[bytes, list[str]], folder: Path) -> None:
        (folder / "recipe.yaml").write_bytes(value[0])
        build_experiment(load_recipe(folder / "recipe.yaml", value[1]).recipe)

    overrides = st.one_of(st.just([]), st.lists(override, max_size=2))
    inputs = st.one_of(
        st.tuples(text, overrides), st.tuples(st.just(yaml.safe_dump(document).encode()), overrides)
    )
    return Target("recipes", inputs, read)


def _rows(run: Path) -> Target:
    image = str(next(run.glob("probe/*.png")).resolve())
    name = Path(image).name
    turns = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"}]
    turns_of_llava = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    documents: dict[str, Any] = {
        "jsonl": [
            {"image": name, "question": "what?", "answer": "red"},
            {"images": [name, name], "messages": turns},
            {"image": name, "caption": "a cat", "captions": ["a", "b"]},
            {"text": "once upon"},
        ],
        "llava": [
            {"id": "1", "image": name, "conversations": turns_of_llava},
            {"conversations": turns_of_llava, "system": "be nice"},
        ],
        "coco": {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}],
        },
        "vqa-v2": {
            "questions": [{"image_id": 1, "question": "what?", "question_id": 1}],
            "data_subtype": "train2014",
        },
    }
    votes = {
        "annotations": [
            {"question_id": 1, "image_id": 1, "answers": [{"answer": "red"}], "answer_type": "other"}
        ]
    }
    processor = load_model(run / "base", torch.float32)[1]

    def written(kind: str) -> st.SearchStrategy[bytes]:
        if kind != "jsonl":
            return st.one_of(edited(documents[kind]).map(json_bytes), torn(json_bytes(documents[kind])))
        row = st.sampled_from(documents[kind])
        lines = st.lists(st.one_of(row.map(json_bytes), row.flatmap(edited).map(json_bytes)), max_size=2)
        return st.one_of(lines.map(b"\n".join), row.map(json_bytes).flatmap(torn))

    table = f"image,question,answer\n{name},what?,red\n"
    inputs = st.one_of(
        *(st.tuples(st.just(kind), written(kind)) for kind in documents),
        st.tuples(st.just("csv"), torn(table.encode())),
        st.tuples(st.just("imagefolder"), torn(f"file_name,caption\n{name},a\n".encode())),
    )
    of_format = {"coco": "caption", "imagefolder": "caption", "llava": "dialogue"}
    kinds = st.sampled_from((None,) * 4 + ("vqa", "caption", "dialogue", "text"))
    patterns = st.sampled_from((None,) * 19 + ("{}", "{image}.png", "{split}/{}", "{0:>9d}"))

    def read(value: Any, folder: Path) -> None:
        (format_, data), kind, pattern = value
        assert format_ in READERS
        kind = kind or of_format.get(format_, "vqa")
        shutil.copy(image, folder / name)
        path = folder / {"csv": "rows.csv", "imagefolder": "metadata.csv", "jsonl": "rows.jsonl"}.get(
            format_, "rows.json"
        )
        path.write_bytes(data)
        (folder / "votes.json").write_text(json.dumps(votes))
        given = {"annotations": str(folder / "votes.json")} if format_ == "vqa-v2" else {}
        source = folder if format_ == "imagefolder" else path
        samples = read_samples(
            format_, Source(path=str(source), kind=kind, images=str(folder), image_name=pattern, **given)
        )
        Encoder(processor, 512).encode(samples)

    return Target("rows", st.tuples(inputs, kinds, patterns), read)


def _shards(run: Path) -> Target:
    encoder = Encoder(load_model(run / "base", torch.float32)[1], 512)
    image = next(run.glob("probe/*.png")).read_bytes()
    return Target("shards", drawn_shards(image), lambda value, folder: read_shards(value, encoder, folder))


def _run_folders(run: Path) -> Target:
    files = [file for file in JSON_OF_A_RUN if (run / file).is_file()]
    tensors = ["adapter/adapter_model.safetensors", "projector.safetensors", "base/model.safetensors"]
    inputs = st.one_of(
        *(
            st.tuples(st.just(file), edited(json.loads((run / file).read_text())).map(json_bytes))
            for file in files
        ),
        *(
            st.tuples(st.just(file), torn((run / file).read_bytes()))
            for file in (*files, *tensors, "recipe.yaml", "probe/samples.jsonl")
        ),
        st.tuples(st.sampled_from((*files, *tensors)), st.none()),
    )
    load = st.sampled_from((False, False, True))

    def read(value: Any, folder: Path) -> None:
        (file, data), loaded, without_digests = value
        copied = _copied(run, folder)
        if without_digests:
            # Runs of older versions have none: what lies behind that door is reached.
            record = json.loads((copied / "run.json").read_text())
            record |= {"artifacts": None, "base_files": None}
            (copied / "run.json").write_text(json.dumps(record))
        _put(copied / file, data)
        opened = open_run(copied)
        opened.probe()
        opened.scores()
        if loaded:
            opened.load()

    return Target("run folders", st.tuples(inputs, load, st.booleans()), read)


def _checkpoints(interrupted: Path) -> Target:
    last = checkpoint.latest(interrupted / "checkpoints" / "train")
    assert last is not None
    inside = last.relative_to(interrupted).as_posix()
    names = [f"{inside}/{name}" for name in JSON_OF_A_CHECKPOINT]
    start = "checkpoints/train/start.json"
    weights = [
        f"{inside}/{name}"
        for name in ("trainable.safetensors", "optimizer.safetensors", "progress.safetensors")
    ]
    inputs = st.one_of(
        *(
            st.tuples(st.just(name), edited(json.loads((interrupted / name).read_text())).map(json_bytes))
            for name in (*names, start)
        ),
        *(
            st.tuples(st.just(name), torn((interrupted / name).read_bytes()))
            for name in (*names, *weights, start, "metrics.jsonl")
        ),
    )

    def read(value: Any, folder: Path) -> None:
        copied = _copied(interrupted, folder)
        _put(copied / value[0], value[1])
        # Whoever damages a checkpoint can seal it again.
        manifest = copied / inside / checkpoint.MANIFEST
        files = [file for file in sorted(manifest.parent.iterdir()) if file != manifest]
        sealed = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
        manifest.write_text(json.dumps({"files": sealed}))
        train(load_recipe(copied / "recipe.yaml").recipe, copied, QUIET, resume=True)

    return Target("checkpoints", inputs, read, share=0.15)


def _adapters(run: Path) -> Target:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    names = st.one_of(
        st.sampled_from(sorted(tensors)), st.text(max_size=30), st.just("base_model.model.lm_head.weight")
    )
    shapes = st.lists(st.sampled_from((0, 1, 2, 4, 32, 48)), max_size=3)
    tensor = st.builds(
        lambda shape, fill, kind: torch.full(shape, fill).to(getattr(torch, kind)),
        shapes,
        st.sampled_from((0.0, 1.0, float("nan"), float("inf"))),
        st.sampled_from(("float32", "bfloat16", "float16", "int64")),
    )
    inputs = st.tuples(
        st.one_of(st.just(json_bytes(config)), edited(config).map(json_bytes), torn(json_bytes(config))),
        st.dictionaries(names, tensor, max_size=3),
        st.booleans(),
    )

    def read(value: Any, folder: Path) -> None:
        data, others, whole = value
        (folder / "adapter_config.json").write_bytes(data)
        kept = {**(tensors if whole else {}), **others}
        save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
        read_source(folder)
        read_adapter(load_model(run / "base", torch.float32, meta=True)[0], folder)

    return Target("adapters", inputs, read, share=0.5)


def _headers(run: Path) -> Target:
    whole = (run / "projector.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def framed(value: Any) -> bytes:
        text = json_bytes(value)
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]

    inputs = st.one_of(edited(header).map(framed), torn(whole), st.binary(max_size=64))

    def read(value: bytes, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(value)
        shard = read_shard(file)
        header_bytes(shard, {tensor.key: f"a.{tensor.key}" for tensor in shard.tensors})
        folder_digest(folder)

    return Target("safetensors headers", inputs, read, share=2.0)


def _model_folders(run: Path) -> Target:
    config = json.loads((run / "base" / "config.json").read_text())
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors", "b": "x.safetensors"}}
    inputs = st.tuples(
        st.one_of(edited(config).map(json_bytes), torn(json_bytes(config))),
        st.one_of(st.none(), edited(index).map(json_bytes), torn(json_bytes(index))),
    )

    def read(value: Any, folder: Path) -> None:
        copied = _copied(run / "base", folder)
        (copied / "config.json").write_bytes(value[0])
        if value[1] is not None:
            (copied / "model.safetensors.index.json").write_bytes(value[1])
        find(copied, "VLM")
        load_model(copied, torch.float32)

    return Target("model folders", inputs, read, share=0.5)


def _chat_templates(run: Path) -> Target:
    names = (
        "messages",
        "message",
        "message.role",
        "message.content",
        "messages[0]",
        "bos_token",
        "undefined",
        "loop.x",
    )
    expression = st.one_of(
        st.sampled_from(names),
        st.sampled_from(
            ("1/0", "'a' * 99", "raise_exception('no')", "messages | tojson", "'x' | nonsense", "none.a")
        ),
        st.sampled_from(
            ("range(9999999)", "message.content[0].text", "''.__class__.__mro__", "strftime_now('%')")
        ),
    )
    piece: st.SearchStrategy[str] = st.one_of(
        st.sampled_from(("<image>", "user: ", "\n", "</s>", "<think>", "{{", "%}", "{#", "\ue000", "\0")),
        expression.map(lambda text: f"{{{{ {text} }}}}"),
        st.builds(
            lambda name, text: f"{{% set {name} = {text} %}}", st.sampled_from(("a", "message")), expression
        ),
        st.text(max_size=4),
    )
    body = st.lists(piece, max_size=5).map("".join)
    inner = st.recursive(
        body,
        lambda part: st.one_of(
            part.map(lambda text: f"{{% for message in messages %}}{text}{{% endfor %}}"),
            st.builds(lambda test, text: f"{{% if {test} %}}{text}{{% endif %}}", expression, part),
            st.builds(lambda first, second: first + second, part, part),
        ),
        max_leaves=4,
    )
    good = (run / "base" / "chat_template.jinja").read_bytes()
    inputs = st.one_of(inner, torn(good).map(lambda data: data.decode(errors="replace")))
    processor = load_model(run / "base", torch.float32)[1]
    rows = run / "probe" / "samples.jsonl"
    samples = read_samples("jsonl", Source(path=str(rows), kind="dialogue"))[:2]

    def read(value: str, folder: Path) -> None:
        processor.chat_template = value
        encoder = Encoder(processor, 512)
        encoder.encode(samples)
        encoder.prompt_ids(samples[0])

    return Target("chat templates", inputs, read)


def _copied(folder: Path, parent: Path) -> Path:
    """A copy whose files are one with the original's until others are put in their stead."""
    target = parent / "copy"
    shutil.copytree(folder, target, copy_function=os.link)
    return target


def _put(file: Path, data: bytes | None) -> None:
    file.unlink()
    if data is not None:
        file.write_bytes(data)


def _keys(prefix: str, value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    inner = [
        key for name, item in value.items() for key in _keys(f"{prefix}.{name}" if prefix else name, item)
    ]
    return inner + ([prefix] if prefix else [])
