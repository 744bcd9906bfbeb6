"""The one door: a run is opened once, and only if its files are those that it wrote."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lockadapt
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.exports.compare import compare_merges
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.stack import parse_adapter
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import as_run, open_run
from lockadapt.training.loop import train
from tests.support.runs import values

QUIET = Reporter(quiet=True)
OPENED: Counter[str] = Counter()
COUNTED: list[Path] = []


def _count(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and COUNTED and isinstance(given[0], (str, Path)):
        file = Path(given[0])
        if file.parent == COUNTED[0]:
            OPENED[file.name] += 1


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    train(load_recipe(None, (), values(tiny, folder)).recipe, folder / "run", QUIET)
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_count)  # for ever: it does nothing while nothing is counted


@pytest.fixture
def opens(run: Path) -> Iterator[Counter[str]]:
    """How often files of the run's own folder are opened."""
    OPENED.clear()
    COUNTED[:] = [run]
    yield OPENED
    COUNTED.clear()


def once(opens: Counter[str]) -> bool:
    return (opens["recipe.yaml"], opens["run.json"]) == (1, 1)


def test_a_merge_opens_recipe_and_record_once(run: Path, tmp_path: Path, opens: Counter[str]) -> None:
    merge_run(run, tmp_path / "merged", QUIET)
    assert once(opens)
    opens.clear()
    verify_folder(tmp_path / "merged", run, QUIET)
    assert once(opens)
    opens.clear()
    evaluate_folder(run, None, (), False, None, QUIET)
    assert once(opens), "the model card is written with the same run"


@pytest.mark.parametrize("name", ["bridge", "adapter", "adapter-full"])
def test_an_export_opens_recipe_and_record_once(
    name: str, run: Path, tmp_path: Path, opens: Counter[str]
) -> None:
    export_run(run, name, tmp_path / "out", QUIET)
    assert once(opens)


def test_what_is_open_is_not_opened_again(run: Path, tmp_path: Path, opens: Counter[str]) -> None:
    opened = open_run(run)
    assert as_run(opened) is opened
    merge_run(opened, tmp_path / "merged", QUIET)
    assert once(opens)


def test_a_run_says_what_it_is(run: Path) -> None:
    opened = open_run(run)
    assert (opened.base, opened.dtype) == (str(run / "base"), torch.float32)
    assert (opened.lora, opened.quantized, opened.dual, opened.only_lora) == (True, False, False, False)
    assert opened.adapter is not None
    assert opened.adapter["r"] == 4
    assert list(opened.objectives) == ["vqa"]
    assert opened.objectives is opened.objectives, "built once"
    assert opened.scores().get("nothing") is None
    assert opened.mean_image() is None
    assert opened.record.trained == {"lora", "projector"}


def test_a_run_of_an_older_lockadapt_opens(copy: Path) -> None:
    """Without a version, and without what was recorded later."""
    file = copy / "run.json"
    old = json.loads(file.read_text())
    for key in ("version", "sources", "base_identity"):
        del old[key]
    for key in ("samples_by_objective", "largest_batch_bytes", "packing"):
        del old["stages"][0][key]
    file.write_text(json.dumps(old))
    assert evaluate_folder(copy, None, (), False, None, QUIET)["vqa"]["n"] == 8
    assert "## Sources and licences" in (copy / "README.md").read_text()
    merge_run(copy, copy.parent / "merged", QUIET)
    assert verify_folder(copy.parent / "merged", copy, QUIET)["kl"] < 1e-7


@pytest.mark.parametrize(
    "name", ["adapter", "projector.safetensors", "processor", "adapter/adapter_model.safetensors"]
)
def test_a_run_without_what_it_wrote_is_not_opened(name: str, copy: Path) -> None:
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(VerificationError, match="is missing") as error:
        open_run(copy)
    assert error.value.where == str(path)
    assert error.value.exit_code == 8


def test_every_way_goes_through_the_door(copy: Path, run: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "adapter")
    out = tmp_path / "out"
    ways: list[Any] = [
        lambda: merge_run(copy, out, QUIET),
        lambda: export_run(copy, "bridge", out, QUIET),
        lambda: evaluate_folder(copy, None, (), False, None, QUIET),
        lambda: verify_folder(run / "base", copy, QUIET),
        lambda: compare_merges(copy, 1, QUIET),
        lambda: parse_adapter(str(copy)),
        lambda: lockadapt.attach(load_model(run / "base")[0], copy),
    ]
    for way in ways:
        with pytest.raises(VerificationError, match="is missing"):
            way()
    assert not out.exists()


def test_what_the_run_did_not_write_is_refused(copy: Path) -> None:
    (copy / "retrieval.safetensors").write_bytes(b"")
    with pytest.raises(VerificationError, match="not what the run wrote"):
        open_run(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ('{"peft_type": "TRAINABLE_TOKENS"}', "of the kind"),
        ('{"peft_type": "LOHA"}', "of the kind"),
    ],
)
def test_a_damaged_adapter_config_is_refused(content: str, message: str, copy: Path) -> None:
    (copy / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(VerificationError, match=message):
        open_run(copy)


def test_an_adapter_that_was_not_trained_is_refused(copy: Path) -> None:
    file = copy / "run.json"
    settings = json.loads(file.read_text())
    rows = settings["stages"][0]["components"]
    settings["stages"][0]["components"] = [row for row in rows if row["component"] != "lora"]
    file.write_text(json.dumps(settings))
    with pytest.raises(VerificationError, match="trained nothing of the kind"):
        open_run(copy)
