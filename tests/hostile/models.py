"""Model folders: what config.json and the shard index claim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hostile.case import Case, Content, lines, row

LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 8},
    **{"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
}
GPTJ = {
    **{"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "vocab_size": 64, "n_embd": 8},
    **{"n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 10**9},
}
"""Its table of rotations has no parameters, and two billion values."""
CONFIG, INDEX = "llm/config.json", "llm/model.safetensors.index.json"


def weights(path: Path) -> None:
    """Of a Llama, all but its layer."""
    save_file({"model.embed_tokens.weight": torch.zeros(64, 8), "lm_head.weight": torch.zeros(64, 8)}, path)


def folder(what: str, code: int, *words: str, config: Any = LLAMA, files: dict[str, Content]) -> Case:
    text = config if isinstance(config, (str, bytes)) else json.dumps(config)
    return Case("models", what, code, words, {"rows.jsonl": lines(row()), CONFIG: text, **files})


def cases() -> Iterator[Case]:
    shards = {"llm/model.safetensors": weights}
    for what, text in (
        ("empty config", ""),
        ("config is a list", "[]"),
        ("config is a number", "1"),
        ("config is cut", '{"model_type": "lla'),
        ("config is binary", bytes(range(256))),
        ("config of 1,000 lists", "[" * 1000),
        ("config of 70 MB", '{"a": "' + "x" * 70_000_000 + '"}'),
    ):
        yield folder(what, 4, "the LLM cannot be loaded: config.json", config=text, files=shards)
    for key, value, code, words in (
        ("model_type", "nonsense", 4, "cannot be loaded"),
        ("model_type", "\x1b[31m", 4, "\\x1b[31m"),
        ("model_type", "clip_vision_model", 4, "no language model that writes text"),
        ("num_hidden_layers", 10**9, 4, "1,000,000,000 layers, its weights are 2 tensors"),
        ("num_hidden_layers", -1, 4, "llm"),
        ("num_hidden_layers", "many", 4, "num_hidden_layers"),
        ("num_hidden_layers", 3, 4, "lacks"),
        ("vocab_size", 10**15, 4, "parameters, its weights are 1,024"),
        ("hidden_size", 10**9, 4, "parameters, its weights are 1,024"),
        ("intermediate_size", 10**15, 4, "parameters, its weights are 1,024"),
        ("num_key_value_heads", 10**12, 4, "parameters, its weights are 1,024"),
        ("vocab_size", 10**8, 4, "parameters, its weights are 1,024"),
        ("num_attention_heads", 0, 4, "cannot be loaded"),
        ("vocab_size", 10, 4, "other shapes than its config.json describes"),
        ("hidden_act", "__import__", 4, "cannot be loaded"),
        ("_attn_implementation", "org/kernel", 10, "code from the Hub"),
        ("attn_implementation", "org/kernel:entry", 10, "code from the Hub"),
        ("_attn_implementation_internal", "../x", 10, "code from the Hub"),
        ("_experts_implementation_internal", "org/kernel", 10, "code from the Hub"),
        ("sub_config", {"attn_implementation": "org/kernel"}, 10, "code from the Hub"),
    ):
        what = f"{key} is {str(value).encode('unicode_escape').decode()}"
        yield folder(what, code, words, config={**LLAMA, key: value}, files=shards)
    yield folder(
        "a table that is not stored",
        4,
        "values in buffers, its weights are 1,024",
        config=GPTJ,
        files=shards,
    )
    yield folder(
        "code of its own",
        10,
        "code from its own repository",
        config={"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}},
        files={**shards, "llm/mine.py": "open('/tmp/owned', 'w')"},
    )
    for name in ("../outside.safetensors", "/etc/passwd", "a/../../x", "..", "", "a\0b", "..\\x"):
        table = json.dumps({"weight_map": {"lm_head.weight": name}})
        what = f"index names {name.encode('unicode_escape').decode()!r}"
        yield folder(what, 10, "outside of its folder", files={INDEX: table, "outside.safetensors": weights})
    for what, text in (
        ("index is a list", "[]"),
        ("index without a table", "{}"),
        ("index of lists", '{"weight_map": {"a": ["b"]}}'),
        ("index is cut", '{"weight_map": {"a'),
    ):
        yield folder(what, 4, "index.json", files={INDEX: text})
    yield folder(
        "index of a missing file", 4, "cannot be loaded", files={INDEX: '{"weight_map": {"a": "b"}}'}
    )
    yield folder("no weights", 4, "cannot be loaded", files={})
    yield folder(
        "pickle for weights", 4, "cannot be loaded", files={"llm/pytorch_model.bin": b"\x80\x04\x95"}
    )
    for what, data in (
        ("empty weights", b""),
        ("cut weights", b"\x10\0\0\0\0\0\0\0{"),
        ("huge header", (2**63 - 1).to_bytes(8, "little")),
        ("weights without a header", b"\x02\0\0\0\0\0\0\0[]"),
    ):
        yield folder(what, 4, "cannot be loaded", files={"llm/model.safetensors": data})


CASES = list(cases())
