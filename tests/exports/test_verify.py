"""A folder that anybody made is verified: right ones pass, wrong ones fail by name, and none is changed by it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, RecipeError, SafetyError, VerificationError
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import load_run
from lockadapt.training.loop import train
from tests.support.command import lockadapt
from tests.support.runs import values

QUIET = Reporter(quiet=True)
WEIGHTS = "model.safetensors"
ALONE = {"output", "model_class", "missing_keys", "unexpected_keys", "image_effect", "dtype", "files"}


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    train(load_recipe(None, (), values(tiny, folder)).recipe, folder / "run", QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def foreign(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT and Transformers write of the run, without lockadapt's merge."""
    folder = tmp_path_factory.mktemp("peft") / "merged"
    loaded = load_run(run)
    loaded.model.merge_and_unload().save_pretrained(folder)  # type: ignore[operator]
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("own") / "merged"
    return folder, merge_run(run, folder, QUIET)


@pytest.fixture
def copy(foreign: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(foreign, tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.cold
def test_a_merge_of_pefts_own_passes(run: Path, foreign: Path, own: tuple[Path, dict[str, Any]]) -> None:
    before = digest(foreign)
    done = lockadapt("verify", foreign, "--against", run, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == set(own[1])
    assert report["output"] == str(foreign)
    assert report["missing_keys"] == report["unexpected_keys"] == []
    assert report["max_abs_logit_diff"] < 1e-4
    assert report["kl"] < 1e-6 < report["adapter_kl"]
    assert report["top1_agreement"] == 1.0
    assert report["samples"] == report["text_samples"] == 4
    assert report["answers_equal"] == report["answers"] == 8
    assert report["prompts_equal"] is report["pixels_equal"] is report["looks_at_images"] is True
    assert report["image_effect"] == pytest.approx(report["trained_image_effect"], rel=0.01)
    assert digest(foreign) == before


@pytest.mark.slow
def test_a_folder_alone(own: tuple[Path, dict[str, Any]], foreign: Path) -> None:
    """One with a manifest, and one of PEFT's without, in shards."""
    done = lockadapt("verify", own[0], "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == ALONE
    assert report["files"] == 1
    assert report["dtype"] == "float32"
    assert report["image_effect"] > 0
    done = lockadapt("verify", foreign)
    assert done.returncode == 0, done.stderr
    assert "files: 0" in done.stdout.splitlines()
    assert "no manifest" in done.stderr


def perturbed(folder: Path, run: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key_of(tensors, "layers.0.mlp.up_proj.weight")] *= 1.05

    edit(folder, change)


def untrained_projector(folder: Path, run: Path) -> None:
    base = load_file(run / "base" / WEIGHTS)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        projector = {key: base[key] for key in base if "multi_modal_projector" in key}
        assert projector
        tensors |= projector

    edit(folder, change)


def merged_twice(folder: Path, run: Path) -> None:
    base = load_file(run / "base" / WEIGHTS)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        moved = [key for key in base if "_proj.weight" in key and not torch.equal(base[key], tensors[key])]
        assert moved
        tensors |= {key: 2 * tensors[key] - base[key] for key in moved}

    edit(folder, change)


def not_merged(folder: Path, run: Path) -> None:
    base = load_file(run / "base" / WEIGHTS)
    edit(folder, lambda tensors: tensors.update({k: base[k] for k in base if "_proj.weight" in k}))


def other_image_token(folder: Path, run: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = [name for name in ("image_token_id", "image_token_index") if name in config]
    config |= {name: config[name] - 1 for name in names}
    (folder / "config.json").write_text(json.dumps(config))


def other_template(folder: Path, run: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text("{{- 'Be brief. ' -}}" + file.read_text())


def other_image_processor(folder: Path, run: Path) -> None:
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
    file.write_text(json.dumps(settings))


def key_missing(folder: Path, run: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(key_of(tensors, "layers.1.mlp.up_proj.weight")))


def key_too_many(folder: Path, run: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.language_model.layers.9.more": torch.zeros(2)}))


def not_finite(folder: Path, run: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key_of(tensors, ".norm.weight")][0] = float("nan")

    edit(folder, change)


Damage = Callable[[Path, Path], None]
DAMAGES: list[tuple[Damage, str]] = [
    (perturbed, "logits differ by"),
    (untrained_projector, "logits differ by"),
    (merged_twice, r"KL divergence is .* nats"),
    (not_merged, r"KL divergence is .* nats"),
    (other_image_token, r"config.json names \d+ as the image token, the processor writes \d+"),
    (other_template, "writes other prompts than training used"),
    (other_image_processor, "makes other pixels than training used"),
    (key_missing, r"1 missing keys: .*layers\.1\.mlp\.up_proj\.weight"),
    (key_too_many, r"1 unexpected keys: .*layers\.9\.more"),
    (not_finite, "logits differ by inf"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_what_is_not_the_trained_model_fails_by_name(
    damage: Damage, message: str, run: Path, copy: Path
) -> None:
    damage(copy, run)
    before = digest(copy)
    with pytest.raises(VerificationError, match=message) as error:
        verify_folder(copy, run, QUIET)
    assert error.value.exit_code == 8
    assert error.value.where == str(copy)
    assert digest(copy) == before


@pytest.mark.slow
def test_a_folder_that_does_not_see_fails_alone(run: Path, copy: Path) -> None:
    """Unless its record says that the trained model did not look either."""

    def blind(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "multi_modal_projector.linear_2" in key]:
            tensors[key] = torch.zeros_like(tensors[key])

    edit(copy, blind)
    with pytest.raises(VerificationError, match="the model does not see"):
        verify_folder(copy, None, QUIET)
    (copy / "merge.json").write_text('{"looks_at_images": false}')
    assert verify_folder(copy, None, QUIET)["image_effect"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [(key_missing, "up_proj"), (not_finite, "not finite"), (other_image_token, "as the image token")],
)
def test_what_is_broken_in_itself_fails_alone(damage: Damage, message: str, run: Path, copy: Path) -> None:
    damage(copy, run)
    with pytest.raises(VerificationError, match=message):
        verify_folder(copy, None, QUIET)


@pytest.fixture
def listed(foreign: Path, tmp_path: Path) -> Path:
    """A copy in two shards, with a manifest."""
    folder = Path(shutil.copytree(foreign, tmp_path / "listed"))
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    keys = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, mine in shards.items():
        save_file({key: tensors[key] for key in mine}, folder / name, metadata={"format": "pt"})
    placed = {key: name for name, mine in shards.items() for key in mine}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in shards}
    (folder / "lockadapt.json").write_text(json.dumps({"files": digests}))
    return folder


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def truncate_unlisted(folder: Path) -> None:
    truncate(folder)
    (folder / "lockadapt.json").unlink()


def flip(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()


def lose_unlisted(folder: Path) -> None:
    lose(folder)
    (folder / "lockadapt.json").unlink()


def add(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors")


def misplace(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    key = sorted(index["weight_map"])[0]
    index["weight_map"][key] = "model-00002-of-00002.safetensors"
    file.write_text(json.dumps(index))


def climb(folder: Path) -> None:
    (folder / "lockadapt.json").write_text('{"files": {"../x.safetensors": "0"}}')


def no_json(folder: Path) -> None:
    (folder / "lockadapt.json").write_text("{")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model-00002-of-00002\.safetensors is not the file that was written"),
        (truncate_unlisted, "5 bytes are missing at its end"),
        (flip, r"model-00001-of-00002\.safetensors is not the file that was written"),
        (lose, r"model-00001-of-00002\.safetensors is missing"),
        (lose_unlisted, r"model-00001-of-00002\.safetensors is missing"),
        (add, r"model\.safetensors was not written with the folder"),
        (misplace, "is said to be in model-00002-of-00002"),
        (climb, "outside the folder"),
        (no_json, "is no JSON"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files_that_are_not_what_was_written(
    damage: Callable[[Path], None], message: str, alone: bool, listed: Path, run: Path
) -> None:
    damage(listed)
    before = digest(listed)
    with pytest.raises(VerificationError, match=message) as error:
        verify_folder(listed, None if alone else run, QUIET)
    assert error.value.exit_code == 8
    assert digest(listed) == before


def test_an_index_that_leaves_the_folder_is_unsafe(listed: Path) -> None:
    file = listed / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(SafetyError, match="plain name"):
        verify_folder(listed, None, QUIET)


@pytest.mark.slow
def test_shards_with_a_manifest_pass(listed: Path) -> None:
    assert verify_folder(listed, None, QUIET)["files"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("target", ["colpali", "sentence-transformers"])
def test_folders_that_embed(target: str, embedding_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    try:
        export_run(embedding_run, target, folder, QUIET)
    except LockadaptError as error:
        pytest.skip(f"this run cannot be exported: {error}")
    report = verify_folder(folder, None, QUIET)
    assert set(report) == ALONE
    assert report["image_effect"] > 0
    with pytest.raises(RecipeError, match="does not answer"):
        verify_folder(folder, embedding_run, QUIET)


@pytest.mark.slow
def test_what_embeds_is_compared_too(embedding_run: Path, embedding_merged: Path, tmp_path: Path) -> None:
    assert verify_folder(embedding_merged, embedding_run, QUIET)["max_abs_embedding_diff"] < 1e-4
    copy = Path(shutil.copytree(embedding_merged, tmp_path / "copy"))
    shutil.rmtree(copy / "retrieval")
    (copy / "lockadapt.json").unlink()
    assert "max_abs_embedding_diff" not in verify_folder(copy, embedding_run, QUIET)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "no model"),
        ({"adapter_config.json": {}}, "an adapter"),
        ({"config.json": {"model_type": "bert"}}, "'bert', which cannot be verified"),
        ({"config.json": {"model_type": "llava", "quantization_config": {"a": 1}}}, "quantized weights"),
    ],
)
def test_what_cannot_be_verified_is_said_at_once(
    files: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))
    done = lockadapt("verify", folder)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def key_of(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(key for key in tensors if key.endswith(end))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
