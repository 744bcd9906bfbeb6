"""Nothing outside `architectures/` asks for a model class: it asks the architecture what it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import lockadapt
from lockadapt.architectures import ARCHITECTURES, architecture_of, find_architecture, inputs_of
from lockadapt.architectures.base import ModelLayout, component_of
from lockadapt.errors import AssemblyError

PACKAGE = Path(lockadapt.__file__).parent
CLIENTS = ("exports/targets/colpali.py", "models/fresh_process.py", "models/fresh_embeddings.py")
"""What writes a client's own class, and what runs as the client itself, in a process without lockadapt."""

HELD = {named.__name__ for each in ARCHITECTURES for named in (each.model_class, each.config_class)}


def sources() -> Iterator[Path]:
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if not path.startswith("architectures/") and "assets" not in path and path not in CLIENTS:
            yield file


def is_of_one_model(name: str) -> bool:
    value = getattr(transformers, name, None)
    general = (transformers.PreTrainedModel, transformers.PreTrainedConfig)
    return isinstance(value, type) and issubclass(value, general) and value not in general


def asked_for(tree: ast.AST) -> Iterator[str]:
    """Names of model classes that a module imports from Transformers, or compares something with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            yield from (alias.name for alias in node.names if is_of_one_model(alias.name))
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "transformers":
            yield from [node.attr] if is_of_one_model(node.attr) else []
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            yield from (str(side.value) for side in sides if getattr(side, "value", None) in HELD)


def test_the_check_sees_what_it_looks_for() -> None:
    text = """
from transformers import AutoModel, LlavaConfig, PreTrainedModel
import transformers
isinstance(x, transformers.JanusForConditionalGeneration)
type(x).__name__ == "FastVlmConfig"
"""
    assert sorted(asked_for(ast.parse(text))) == [
        "FastVlmConfig",
        "JanusForConditionalGeneration",
        "LlavaConfig",
    ]


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_model_class_is_asked_for(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert list(asked_for(ast.parse(text))) == []
    assert "is_dual" not in text


def test_every_architecture_is_found_by_its_config() -> None:
    for architecture in ARCHITECTURES:
        assert find_architecture(architecture.config_class()) is architecture


def test_others_are_refused_by_name() -> None:
    assert find_architecture(transformers.BertConfig()) is None
    with pytest.raises(AssemblyError, match="Linear is not one of the classes"):
        architecture_of(torch.nn.Linear(1, 1))
    with pytest.raises(AssemblyError, match="bert is not one of the classes"):
        architecture_of(transformers.BertConfig())


def test_an_unknown_processor_is_asked_if_it_has_an_image_token() -> None:
    class Apart:
        pass

    class Marked:
        image_token = "<image>"

    assert not inputs_of(Apart()).stock
    assert inputs_of(Marked()).stock


def test_a_head_inside_the_llm_and_a_bare_parameter_are_found() -> None:
    layout = ModelLayout("tower", "llm", ("connector", "newline"), "llm.lm_head")
    names = ("llm.lm_head.weight", "llm.layers.0.weight", "newline", "connector.norm.weight", "tower.patch")
    components = [component_of(name, layout) for name in names]
    assert components == ["head", "llm", "projector", "projector", "tower"]
