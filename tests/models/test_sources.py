"""Sources that do not exist, are broken or unsafe end in an error that names them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.attaching.source import read_source
from lockadapt.errors import AssemblyError, LockadaptError, SafetyError, SetupError, VerificationError
from lockadapt.exports.stock_folder import local_folder
from lockadapt.models.hub import hub_is_reachable
from lockadapt.models.llms import load_llm
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, resolve_dtype
from tests.support.tiny import tiny_tower


@pytest.mark.parametrize("name", ["nowhere", "./org/name", "/nowhere/at/all", "a/b/c", "~/none-of-this", ""])
def test_what_is_neither_folder_nor_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError) as caught:
        find(name, "tower")
    assert "tower" in caught.value.message
    assert caught.value.fix


def test_hub_ids_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not find("org/name-1.5", "LLM").local
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(SetupError, match="no config"):
        find("org/name", "LLM")
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    assert find("org/name", "LLM").local
    assert find("org/name", "LLM").arguments == {"local_files_only": True, "trust_remote_code": False}


def _pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "brand-new", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}}
    (folder / "config.json").write_text(json.dumps(config))


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _drop(name: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[next(key for key in tensors if key.endswith(name))]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return drop


@pytest.mark.parametrize(
    ("break_it", "kind", "named"),
    [
        (_pickle_instead, SetupError, "LLM cannot be loaded"),
        (_cut, SetupError, "LLM cannot be loaded"),
        (_remote_code, SafetyError, "code from its own repository"),
        (_no_config, SetupError, "LLM cannot be loaded"),
        (_no_tokenizer, LockadaptError, "tokenizer"),
        (_drop("model.norm.weight"), AssemblyError, "lacks model.norm.weight"),
        (_config(num_hidden_layers=1), AssemblyError, "no place for.*model.layers.1"),
        (_config(quantization_config={"quant_method": "gptq", "bits": 4}), AssemblyError, "stored quantized"),
        (_config(model_type="t5"), AssemblyError, "lacks decoder.block"),
        (_config(model_type="clip_vision_model"), AssemblyError, "no language model that writes text"),
    ],
)
def test_broken_llms(
    break_it: Callable[[Path], None], kind: type[LockadaptError], named: str, tiny: Path, tmp_path: Path
) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(tiny / "llama", llm)
    break_it(llm)
    with pytest.raises(kind, match=named) as caught:
        assemble(llm, tiny / "clip-vision", tmp_path / "out", dtype="float32", prove=False)
    assert str(caught.value.where).startswith(str(llm))  # the folder, or a file of it
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tower", "lost", "fine"),
    [
        ("vit", "pooler.dense.weight", True),
        ("vit", "encoder.layer.0.layernorm_before.weight", False),
        ("clip", "text_model.final_layer_norm.weight", True),
        ("clip", "vision_model.embeddings.class_embedding", False),
    ],
)
def test_only_what_features_depend_on_must_be_there(
    tower: str, lost: str, fine: bool, tiny: Path, tmp_path: Path
) -> None:
    folder = tiny_tower(tower, tmp_path / "tower")
    _drop(lost)(folder)
    if fine:
        assert assemble(tiny / "llama", folder, None, dtype="float32", prove=False).model is not None
    else:
        with pytest.raises(AssemblyError, match="lacks"):
            assemble(tiny / "llama", folder, None, dtype="float32", prove=False)


def test_a_tower_without_preprocessing(tiny: Path, tmp_path: Path) -> None:
    folder = tiny_tower("vit", tmp_path / "tower")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(LockadaptError) as caught:
        assemble(tiny / "llama", folder, None, dtype="float32", prove=False)
    assert "image processor" in caught.value.message


def test_loading_stock_folders(assembled: Assembled, tiny: Path, tmp_path: Path) -> None:
    model, processor = load_model(assembled.folder or "", "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert processor.chat_template == assembled.processor.chat_template
    empty, _ = load_model(assembled.folder or "", "float32", meta=True)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    with pytest.raises(AssemblyError, match="LlamaForCausalLM is not a class"):
        load_model(tiny / "llama", "float32")
    broken = tmp_path / "broken"
    shutil.copytree(assembled.folder or "", broken)
    _drop("multi_modal_projector.linear_1.bias")(broken)
    with pytest.raises(VerificationError, match=r"lacks model\.multi_modal_projector\.linear_1\.bias"):
        load_model(broken, "float32")


def test_dtypes() -> None:
    assert resolve_dtype("float16") == torch.float16
    assert resolve_dtype(torch.float64) == torch.float64
    assert resolve_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(SetupError, match="float12"):
        resolve_dtype("float12")


def test_quiet_gives_settings_back() -> None:
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    with contextlib.suppress(KeyError), quiet():
        assert logging.get_verbosity() == logging.ERROR
        raise KeyError
    assert logging.get_verbosity() == logging.INFO
    assert logging.is_progress_bar_enabled()
    logging.set_verbosity_warning()


def test_an_id_is_not_asked_for_where_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: `attach` and `merge` tried for half a minute, and named a lookup error."""
    asked: list[object] = []

    def no_network(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    hub_is_reachable.cache_clear()
    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for open_id in (load_llm_of, read_source, local_folder):
        with pytest.raises(SetupError, match="not in the cache, and the Hub cannot be reached"):
            open_id("nobody/nothing")
    hub_is_reachable.cache_clear()
    assert len(asked) <= 2  # whether it is there, and which agent huggingface_hub runs in: once a process


def load_llm_of(name: str) -> None:
    load_llm(name, torch.float32)
