"""Damaged bases and adapters: each is a typed error that names the place, and nothing is left behind."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.errors import LockadaptError, SafetyError
from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.files import new_folder
from tests.support.adapters import Case, make_adapter, make_base

Damage = Callable[[Path, Path], None]
INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
ADAPTER = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def raw(change: Callable[[bytes], bytes], name: str = FIRST) -> Damage:
    """Changes the bytes of a file of the base, or of the adapter."""

    def damage(base: Path, adapter: Path) -> None:
        file = (adapter if name.startswith("adapter") else base) / name
        file.write_bytes(change(file.read_bytes()))

    return damage


def header(change: Callable[[dict[str, Any]], None], name: str = FIRST) -> Damage:
    """Changes the header of a file, and leaves its data."""

    def rewrite(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        table = json.loads(data[8:end])
        change(table)
        text = json.dumps(table).encode()
        return struct.pack("<Q", len(text)) + text + data[end:]

    return raw(rewrite, name)


def entry(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Changes what the header says of one tensor."""

    def change_one_tensor(table: dict[str, Any]) -> None:
        change(table[sorted(key for key in table if key != "__metadata__")[1]])

    return header(change_one_tensor)


def index(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(base: Path, adapter: Path) -> None:
        table = json.loads((base / INDEX).read_text())
        change(table)
        (base / INDEX).write_text(json.dumps(table))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], name: str = ADAPTER) -> Damage:
    def damage(base: Path, adapter: Path) -> None:
        file = (adapter if name.startswith("adapter") else base) / name
        stored = load_file(file)
        change(stored)
        save_file(stored, file)

    return damage


def config(folder: str, **changes: Any) -> Damage:
    def damage(base: Path, adapter: Path) -> None:
        file = base / "config.json" if folder == "base" else adapter / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def remove(name: str) -> Damage:
    def damage(base: Path, adapter: Path) -> None:
        ((adapter if name.startswith("adapter") else base) / name).unlink()

    return damage


def write(name: str, text: bytes) -> Damage:
    return raw(lambda data: text, name)


def twice(data: bytes) -> bytes:
    """A header that names a tensor twice, which safetensors accepts."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].rstrip()
    table = json.loads(text)
    key = next(name for name in table if name != "__metadata__")
    more = text[:-1] + b"," + json.dumps({key: table[key]}).encode()[1:]
    return struct.pack("<Q", len(more)) + more + data[end:]


def point_elsewhere(name: str) -> Damage:
    """One key of the index is said to be in a file of that name."""

    def change(table: dict[str, Any]) -> None:
        table["weight_map"][sorted(table["weight_map"])[0]] = name

    return index(change)


def swap(table: dict[str, Any]) -> None:
    key = sorted(table["weight_map"])[0]
    table["weight_map"][key] = SECOND if table["weight_map"][key] == FIRST else FIRST


def copy_key(base: Path, adapter: Path) -> None:
    """A tensor is in both shards."""
    first, second = load_file(base / FIRST), load_file(base / SECOND)
    key = sorted(first)[0]
    save_file({**second, key: first[key]}, base / SECOND)


def foreign(base: Path, adapter: Path) -> None:
    """The adapter of a base that is as wide again."""
    for file in adapter.iterdir():
        file.unlink()
    adapter.rmdir()
    case = Case(hidden=16)
    make_adapter(case, make_base(case, base.parent / "other"), adapter)


def fewer_layers(base: Path, adapter: Path) -> None:
    config("base", num_hidden_layers=1)(base, adapter)


DAMAGES: dict[str, Damage] = {
    "shard: empty": write(FIRST, b""),
    "shard: seven bytes": write(FIRST, b"\0" * 7),
    "shard: header alone": raw(lambda d: d[: 8 + int.from_bytes(d[:8], "little")]),
    "shard: last byte lost": raw(lambda d: d[:-1]),
    "shard: half written": raw(lambda d: d[: len(d) // 2]),
    "shard: bytes at its end": raw(lambda d: d + b"\0" * 8),
    "shard: header length too large": raw(lambda d: struct.pack("<Q", 1 << 40) + d[8:]),
    "shard: header length of all bits": raw(lambda d: b"\xff" * 8 + d[8:]),
    "shard: header is no JSON": raw(lambda d: d[:8] + b"x" + d[9:]),
    "shard: header is no UTF-8": raw(lambda d: d[:9] + b"\xff" + d[10:]),
    "shard: header is a list": raw(lambda d: struct.pack("<Q", 2) + b"[]"),
    "shard: metadata is a number": header(lambda t: t.update(__metadata__=3)),
    "shard: metadata holds a number": header(lambda t: t.update(__metadata__={"a": 3})),
    "shard: a tensor twice": raw(twice),
    "shard: tensors overlap": entry(lambda e: e["data_offsets"].__setitem__(0, e["data_offsets"][0] - 4)),
    "shard: offsets the wrong way": entry(lambda e: e["data_offsets"].reverse()),
    "shard: negative offset": entry(lambda e: e.update(data_offsets=[-4, 0])),
    "shard: offset is a text": entry(lambda e: e.update(data_offsets=["0", "4"])),
    "shard: three offsets": entry(lambda e: e["data_offsets"].append(9)),
    "shard: shape too large": entry(lambda e: e["shape"].append(2)),
    "shard: shape is negative": entry(lambda e: e.update(shape=[-1])),
    "shard: shape is huge": entry(lambda e: e.update(shape=[1 << 62, 1 << 62])),
    "shard: unknown dtype": entry(lambda e: e.update(dtype="F13")),
    "shard: no dtype": entry(lambda e: e.pop("dtype")),
    "shard: another dtype": entry(lambda e: e.update(dtype="I8")),
    "shard: missing": remove(SECOND),
    "index: missing, shards there": remove(INDEX),
    "index: no JSON": write(INDEX, b"{"),
    "index: no weight_map": index(lambda t: t.pop("weight_map")),
    "index: empty": index(lambda t: t.update(weight_map={})),
    "index: key in the wrong shard": index(swap),
    "index: key left out": index(lambda t: t["weight_map"].pop(sorted(t["weight_map"])[0])),
    "index: key too many": index(lambda t: t["weight_map"].update(ghost=FIRST)),
    "index: a tensor in two shards": copy_key,
    "index: a name is a number": point_elsewhere(3),  # type: ignore[arg-type]
    "index: a pickle": point_elsewhere("pytorch_model.bin"),
    "base: config of fewer layers": fewer_layers,
    "base: config of a wider model": config("base", hidden_size=16),
    "base: config of no class": config("base", architectures=["NoSuchModel"]),
    "base: config without a class": config("base", architectures=None),
    "base: no config": remove("config.json"),
    "base: tensor renamed": tensors(lambda t: t.update(ghost=t.pop(sorted(t)[0])), FIRST),
    "adapter: no weights": remove(ADAPTER),
    "adapter: no config": remove("adapter_config.json"),
    "adapter: config is no JSON": write("adapter_config.json", b"{"),
    "adapter: config of an unknown kind": config("adapter", peft_type="NO_SUCH"),
    "adapter: config with an unknown key": config("adapter", use_something_new=True),
    "adapter: half written": raw(lambda d: d[: len(d) // 2], ADAPTER),
    "adapter: of another base": foreign,
    "adapter: A is missing": tensors(lambda t: t.pop(f"{Q}.lora_A.weight")),
    "adapter: B is missing": tensors(lambda t: t.pop(f"{Q}.lora_B.weight")),
    "adapter: a tensor too many": tensors(lambda t: t.update(ghost=torch.zeros(1))),
    "adapter: another rank": tensors(lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 8)})),
    "adapter: not finite": tensors(lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan"))),
    "adapter: infinite": tensors(lambda t: t[f"{Q}.lora_B.weight"][0].fill_(float("inf"))),
    "adapter: of no layer": config("adapter", target_modules=["nowhere"]),
    "adapter: empty": tensors(lambda t: t.clear()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_a_typed_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    scratch = tmp_path / "room"
    base, adapter = scratch / "base", scratch / "adapter"
    case = Case(shards=2)
    make_adapter(case, make_base(case, base), adapter)
    DAMAGES[name](base, adapter)
    before = sorted(scratch.rglob("*"))
    with (
        pytest.raises(LockadaptError) as error,
        new_folder(scratch / "merged", what="merging") as folder,
    ):
        merge_weights(base, folder, [Weighted(adapter)])
    assert type(error.value) is not LockadaptError
    assert error.value.where
    assert sorted(scratch.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["../base.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:\\x.safetensors",
     "C:x.safetensors", "\0.safetensors", ".safetensors/../x.safetensors"],
)  # fmt: skip
def test_an_index_does_not_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    case = Case(shards=2)
    make_adapter(case, make_base(case, base), adapter)
    point_elsewhere(name)(base, adapter)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(SafetyError, match="plain name|outside of its folder"):
        merge_weights(base, output, [Weighted(adapter)])
    assert list(output.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    base, adapter, output = tmp_path / "base", tmp_path / "adapter", tmp_path / "output"
    case = Case()
    make_adapter(case, make_base(case, base), adapter)
    output.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(LockadaptError, match="are free") as error:
        merge_weights(base, output, [Weighted(adapter)])
    assert error.value.exit_code == 7
    assert list(output.iterdir()) == []


class _Usage:
    free = 10
