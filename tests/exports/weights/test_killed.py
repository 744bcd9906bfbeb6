"""A merge that is killed leaves nothing or everything; memory does not grow with the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from lockadapt.exports.weights.names import meta_model
from tests.support.adapters import Case, make_adapter, make_base, write_shards

HERE = Path(__file__).parent
KILLS, HIDDEN = 30, 1024


@pytest.mark.slow
def test_sigkill_leaves_nothing_or_everything(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    case = Case(hidden=64, shards=3)
    make_adapter(case, make_base(case, base), adapter)
    outcomes = run("killing.py", base, adapter, tmp_path, KILLS)
    assert outcomes["absent"] + outcomes["complete"] == KILLS
    assert outcomes["absent"] > KILLS / 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """88 MB more of weights, in four times as many layers: peak memory differs by less than two layers."""
    small, large = (run("memory.py", *wide(tmp_path / str(layers), layers)) for layers in (2, 8))
    assert large["bytes"] - small["bytes"] > 70e6
    assert large["mib"] - small["mib"] < 24, (small, large)


def wide(scratch: Path, layers: int) -> tuple[Path, Path, Path]:
    """A Llama of so many layers of 12 MB, a shard each; an adapter; an empty folder."""
    base, adapter, output = scratch / "base", scratch / "adapter", scratch / "output"
    for folder in (base, output):
        folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=64, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(base)
    tensors = {
        name: torch.zeros(tensor.shape, dtype=torch.bfloat16)
        for name, tensor in meta_model(base).state_dict().items()
        if name != "lm_head.weight"
    }
    write_shards(tensors, base, layers)
    case = Case(targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"), hidden=HIDDEN)
    make_adapter(case, tensors, adapter)
    return base, adapter, output


def run(script: str, *arguments: object) -> dict[str, Any]:
    """What a script beside this file prints, in a fresh process."""
    root = HERE.parents[2]
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcomes
