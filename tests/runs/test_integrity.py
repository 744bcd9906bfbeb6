"""Whatever a run records is compared when it is opened: damage, other adapters and other bases never pass for the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, SafetyError, VerificationError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.exports.merge import merge_run
from lockadapt.exports.merge_command import MergeRequest, merge_command
from lockadapt.exports.verify import verify_folder
from lockadapt.models.folder_digest import WHOLE, folder_digest
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import load_run, open_run
from lockadapt.training.loop import train
from lockadapt.tuning.adapter_config import read_adapter_config, refuse_endless_patterns
from tests.support.runs import values

QUIET = Reporter(quiet=True)
ADAPTER = "adapter/adapter_model.safetensors"
CONFIG = "adapter/adapter_config.json"
PROCESSOR = {
    f"processor/{name}"
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja")
}


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one recipe but for the seed. Tests must not change them."""
    folder = tmp_path_factory.mktemp("integrity")
    for name, seed in (("one", 0), ("two", 1)):
        train(
            load_recipe(None, (f"training.seed={seed}",), values(tiny, folder)).recipe, folder / name, QUIET
        )
    return folder / "one", folder / "two"


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


def change(file: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def forget(run: Path, *keys: str) -> None:
    """As an older version wrote it."""
    file = run / "run.json"
    settings = json.loads(file.read_text())
    for key in keys:
        del settings[key]
    settings["version"] = 1
    file.write_text(json.dumps(settings))


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[sorted(tensors)[0]].view(-1)[3] = float("nan")


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    tensors[sorted(tensors)[-1]].view(-1)[0] += 1e-3


def test_what_was_trained_is_recorded_and_opens(runs: tuple[Path, Path]) -> None:
    records = [open_run(run).record for run in runs]
    assert set(records[0].artifacts or ()) == {ADAPTER, CONFIG, "projector.safetensors", *PROCESSOR}
    assert records[0].artifacts != records[1].artifacts
    assert records[0].base_files == folder_digest(runs[0] / "base")


@pytest.mark.parametrize("file", [ADAPTER, "projector.safetensors"])
@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_that_is_not_finite_is_named(file: str, old: bool, run: Path) -> None:
    if old:
        forget(run, "artifacts", "base_files")
    change(run / file, poison)
    name = sorted(load_file(run / file))[0]
    with pytest.raises(VerificationError, match="not finite") as error:
        open_run(run)
    assert name in error.value.message
    assert error.value.where == str(run / file)


@pytest.mark.parametrize("file", [ADAPTER, "projector.safetensors"])
def test_a_changed_tensor_is_not_the_run(file: str, run: Path) -> None:
    change(run / file, nudge)
    with pytest.raises(VerificationError, match="not what this run wrote"):
        open_run(run)


@pytest.mark.parametrize("file", [ADAPTER, "projector.safetensors"])
def test_the_files_of_another_run_are_not_the_run(file: str, runs: tuple[Path, Path], run: Path) -> None:
    shutil.copyfile(runs[1] / file, run / file)
    with pytest.raises(VerificationError, match="not what this run wrote"):
        open_run(run)


@pytest.mark.parametrize("file", sorted(PROCESSOR))
def test_another_processor_is_not_the_runs(file: str, run: Path) -> None:
    """Red before: clients of the folder read questions otherwise than the run was trained."""
    written = (run / file).read_text()
    (run / file).write_text(written + " ")
    with pytest.raises(VerificationError, match="not what this run wrote") as error:
        open_run(run)
    assert error.value.where == str(run / file)
    (run / file).unlink()
    with pytest.raises(VerificationError, match="is missing"):
        open_run(run)
    # What ran before processors were digested is opened as it was.
    record = json.loads((run / "run.json").read_text())
    record["artifacts"] = {n: d for n, d in record["artifacts"].items() if n not in PROCESSOR}
    (run / "run.json").write_text(json.dumps(record))
    open_run(run)


def test_another_alpha_is_not_the_run_but_a_moved_base_is(run: Path) -> None:
    file = run / CONFIG
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "/elsewhere"}))
    open_run(run)
    file.write_text(json.dumps({**settings, "lora_alpha": 2 * settings["lora_alpha"]}))
    with pytest.raises(VerificationError, match="not what this run wrote"):
        open_run(run)


def scaled(run: Path) -> None:
    def scale(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith("q_proj.weight"))
        tensors[name] *= 1.5

    change(run / "base" / "model.safetensors", scale)


def swapped(run: Path) -> None:
    """The merged folder in the place of the base: the same names and shapes."""
    shutil.copyfile(run / "merged" / "model.safetensors", run / "base" / "model.safetensors")


def reconfigured(run: Path) -> None:
    file = run / "base" / "config.json"
    settings = json.loads(file.read_text())
    settings["vision_feature_layer"] = -1
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize("damage", [scaled, swapped, reconfigured])
@pytest.mark.parametrize("old", [False, True])
def test_another_base_is_refused_by_every_way(damage: Callable[[Path], None], old: bool, run: Path) -> None:
    merge_run(run, run / "merged", QUIET)
    damage(run)
    if old:
        forget(run, "artifacts", "base_files")
    ways: list[Callable[[], Any]] = [
        lambda: load_run(run),
        lambda: evaluate_folder(run, None, (), False, None, QUIET),
        lambda: merge_run(run, run / "out", QUIET),
        lambda: verify_folder(run / "merged", run, QUIET),
    ]
    for way in ways:
        with pytest.raises(VerificationError, match="not the base that the run was trained on") as error:
            way()
        assert error.value.where == str(run / "base"), "the folder that is to blame, not the merged one"
    assert not (run / "out").exists()


def test_merging_onto_another_base_needs_force(runs: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    scaled(run)
    for adapter in (runs[0], runs[1]):
        request = MergeRequest(str(run / "base"), tmp_path / "out", [str(adapter)])
        with pytest.raises(VerificationError, match="llm has other weights"):
            merge_command(request, QUIET)
    forced = MergeRequest(str(run / "base"), tmp_path / "out", [str(runs[0])], force_base=True)
    assert merge_command(forced, QUIET)["max_abs_logit_diff"] < 1e-4


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter/adapter_model.bin", "base/pytorch_model.bin"])
def test_pickle_is_refused_before_it_is_opened(name: str, run: Path) -> None:
    (run / name).write_bytes(b"\x80\x04")
    (run / ADAPTER).unlink()
    with pytest.raises(SafetyError, match="pickle") as error:
        open_run(run)
    assert error.value.exit_code == 10
    assert error.value.where == str(run / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "4"),
        ("r", [4]),
        ("r", True),
        ("r", 0),
        ("r", 10**9),
        ("lora_alpha", "8"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", [8]),
        ("lora_dropout", 3),
        ("lora_dropout", {}),
        ("target_modules", 7),
        ("target_modules", [1, 2]),
        ("target_modules", "(.*a)*b"),
        ("rank_pattern", {"q_proj": "8"}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("alpha_pattern", []),
        ("use_dora", "yes"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
        ("layers_to_transform", -1),
        ("eva_config", 0.5),
    ],
)
def test_a_damaged_adapter_config_is_named(key: str, value: Any, run: Path) -> None:
    forget(run, "artifacts", "base_files")
    file = run / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(LockadaptError) as error:
        open_run(run)
    assert error.value.exit_code == 8
    assert CONFIG in str(error.value.where) or "of the kind" in error.value.message


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 64])
@pytest.mark.parametrize("file", [ADAPTER, "projector.safetensors", "base/model.safetensors"])
def test_damaged_weights_are_typed(damage: bytes, file: str, run: Path) -> None:
    (run / file).write_bytes(damage)
    with pytest.raises(VerificationError) as error:
        open_run(run)
    assert error.value.where is not None
    assert file in error.value.where


def test_a_pattern_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockadapt.tuning.adapter_config.PATTERN_SECONDS", 1)
    names = ["model.layers.0.self_attn.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa_"]
    for values_ in ({"target_modules": ".*(a+)+"}, {"rank_pattern": {"(a+)+": 2}}):
        with pytest.raises(VerificationError, match="does not end"):
            refuse_endless_patterns(values_, names, "here")
    with pytest.raises(VerificationError, match="is wrong"):
        refuse_endless_patterns({"target_modules": "("}, names, "here")
    refuse_endless_patterns({"target_modules": r".*self_attn\.(q|v)_proj"}, names, "here")
    refuse_endless_patterns({"target_modules": ["("]}, names, "here")


def test_foreign_adapters_are_read_by_the_same_door(run: Path) -> None:
    settings = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps({**settings, "target_modules": r".*\.q_proj"}))
    assert read_adapter_config(run / "adapter")["target_modules"] == r".*\.q_proj"
    (run / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(SafetyError):
        merge_command(MergeRequest(str(run / "base"), run / "out", [str(run / "adapter")]), QUIET)


def test_a_digest_sees_every_tensor_and_config(run: Path) -> None:
    before = folder_digest(run / "base")
    change(run / "base" / "model.safetensors", nudge)
    changed = folder_digest(run / "base")
    assert changed != before
    (run / "base" / "tokenizer_config.json").write_text("{}")
    assert folder_digest(run / "base") not in (before, changed)


def test_a_digest_sees_every_value_of_a_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red before: of a large tensor it read 16 pieces of 4 KiB."""
    values = torch.arange(1_000_000.0)
    digests = set()
    for number in (0, 12_345, 500_000, 777_777, 999_999):
        changed = values.clone()
        changed[number] += 1
        save_file({"a": changed, "b": values}, tmp_path / "model.safetensors")
        digests.add(folder_digest(tmp_path))
    assert len(digests) == 5
    monkeypatch.setattr("lockadapt.models.folder_digest.A_THREAD", 1_000_000)
    assert folder_digest(tmp_path) in digests


def test_a_digest_of_samples_is_not_compared(run: Path) -> None:
    """Older versions recorded them; what is loaded is compared all the same."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "base_files": "0" * 64}))
    assert open_run(run).record.base_files == "0" * 64
    (run / "run.json").write_text(json.dumps({**record, "base_files": f"{WHOLE}{'0' * 64}"}))
    with pytest.raises(VerificationError, match="not the base"):
        open_run(run)
