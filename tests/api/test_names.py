"""The public names: light to import, what `__all__` says, and never hidden by a module of the same name."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import subprocess
import sys

import pytest

import lockadapt

FUNCTIONS = ("assemble", "attach", "evaluate", "export", "keep_tower_still", "load_recipe", "load_run")
FUNCTIONS += ("lora_config", "merge", "train", "verify")
RESULTS = ("EvaluationResult", "ExportResult", "MergeResult", "TrainResult", "VerifyResult")


def test_the_names() -> None:
    classes = ("GroundingConfig", "GroundingTrainer", "LoraSettings", "Predictor", *RESULTS)
    assert set(lockadapt.__all__) == {*FUNCTIONS, *classes, "errors", "__version__"}
    assert set(lockadapt.__all__) <= set(dir(lockadapt))
    assert all(inspect.isfunction(getattr(lockadapt, name)) for name in FUNCTIONS)
    assert all(inspect.isclass(getattr(lockadapt, name)) for name in classes)
    assert all(getattr(lockadapt, name).__name__ == name for name in (*FUNCTIONS, *classes))
    assert lockadapt.errors.LockadaptError.exit_code == 1
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lockadapt.nonsense


def test_no_module_takes_the_place_of_a_name() -> None:
    """In a process of its own, as importing all is not undone."""
    script = (
        "import importlib, pkgutil, lockadapt\n"
        "before = {name: getattr(lockadapt, name) for name in lockadapt.__all__}\n"
        "for found in pkgutil.walk_packages(lockadapt.__path__, 'lockadapt.'):\n"
        "    if '.assets' in found.name:\n"
        "        continue\n"
        "    try:\n"
        "        importlib.import_module(found.name)\n"
        "    except ModuleNotFoundError as error:  # what the extras `demo` and `lmms` bring\n"
        "        assert error.name in ('gradio', 'lmms_eval'), found.name\n"
        "after = {name: getattr(lockadapt, name) for name in lockadapt.__all__}\n"
        "assert len(before) > 20\n"
        "print([name for name in before if before[name] is not after[name]])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    rooms = {module.name for module in pkgutil.iter_modules(lockadapt.__path__)}
    assert rooms & set(lockadapt.__all__) == {"errors"}


def test_public_functions_are_documented_and_options_need_their_names() -> None:
    for name in FUNCTIONS:
        function = getattr(lockadapt, name)
        parameters = inspect.signature(function).parameters.values()
        optional = [parameter for parameter in parameters if parameter.default is not inspect.Parameter.empty]
        by_place = [
            parameter.name for parameter in optional if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        # A PEFT config is made from settings, as in `lora_config(model, LoraSettings(rank=8))`; and an assembled
        # model may have no folder.
        assert by_place == {"lora_config": ["settings"], "assemble": ["output"]}.get(name, []), name
        text = inspect.getdoc(function) or ""
        for parameter in parameters:
            assert f"{parameter.name}: " in text or len(parameters) == 1, (name, parameter.name)


def test_results_are_frozen_and_documented() -> None:
    for name in RESULTS:
        kind = getattr(lockadapt, name)
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen
        for field in dataclasses.fields(kind):
            assert f"{field.name}: " in (kind.__doc__ or ""), (name, field.name)
