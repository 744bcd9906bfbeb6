"""The feature cache in whole runs: the same losses, the choice and its reason, the recipe's keys, the verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.building.cache import cache_recipe
from lockadapt.building.experiment import build_experiment, feature_settings
from lockadapt.console import Reporter
from lockadapt.data.encode import distinct_images
from lockadapt.data.pixels import PixelInputs
from lockadapt.errors import DiskError, LockError, VerificationError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.inputs import tower_inputs
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.policy import DEFAULT_CACHE, FeatureSettings, ImagePolicy
from lockadapt.features.towerless import cached_tower, recall_tower, remember_tower
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.training.rows import image_policy, load_samples
from lockadapt.tuning.adapters import set_trainable
from lockadapt.tuning.locks import component_table, frozen_digests, prove_locked
from lockadapt.tuning.quantize import load_quantized
from tests.support.command import lockadapt
from tests.support.rows import trainer, vqa_samples
from tests.support.runs import recipe, recipe_file, values

QUIET = Reporter(quiet=True)
TINY = 1e-9


def losses(assembled: Assembled, folder: Path, name: str, **changes: Any) -> list[float]:
    # Every batch shows all four images, as the batch does that the cache is built from.
    rows = vqa_samples(folder)[::2]
    changes = {"feature_cache": str(folder / "cache"), "feature_disk_gib": 1.0, **changes}
    run = trainer(assembled.folder, rows, folder / name, **changes)
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_float32_cache_gives_bit_identical_losses(assembled: Assembled, tmp_path: Path) -> None:
    pixels = losses(assembled, tmp_path, "none", features="none", packing="none")
    memory = losses(assembled, tmp_path, "memory", features="memory", packing="none")
    disk = losses(assembled, tmp_path, "disk", features="disk", feature_dtype="float32", packing="none")
    assert disk == memory
    # At every step the tower meets the images in another order, which may change the last bit of a sum.
    assert disk == pytest.approx(pixels, rel=1e-6)
    assert disk[-1] < disk[0]


@pytest.mark.parametrize(("stored", "close"), [("bfloat16", 0.03), ("int8", 0.03)])
def test_smaller_dtypes_train_nearly_the_same(
    stored: str, close: float, assembled: Assembled, tmp_path: Path
) -> None:
    exact = losses(assembled, tmp_path, "memory", features="memory")
    rounded = losses(assembled, tmp_path, "disk", features="disk", feature_dtype=stored)
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=close)


@pytest.mark.parametrize(
    ("settings", "reused", "kind", "why"),
    [
        ({}, True, FeatureInputs, "kept in memory"),
        ({}, False, PixelInputs, "used once only"),
        ({"memory_gib": TINY}, True, DiskFeatures, "on disk in"),
        ({"memory_gib": TINY}, False, PixelInputs, "used once only"),
        ({"memory_gib": TINY, "disk_gib": TINY}, True, PixelInputs, "feature_disk_gib allows"),
        ({"memory_gib": TINY, "disk_gib": 0.0}, True, PixelInputs, "more than feature_memory_gib"),
        ({"choice": "memory", "memory_gib": TINY}, False, FeatureInputs, "kept in memory"),
        ({"choice": "disk"}, False, DiskFeatures, "on disk in"),
        ({"choice": "none"}, True, PixelInputs, "pixels at every step"),
    ],
)
def test_the_choice_and_its_reason(
    settings: dict[str, Any], reused: bool, kind: type, why: str, assembled: Assembled, tmp_path: Path
) -> None:
    rows = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run").train_dataset.rows["vqa"]
    told: list[str] = []
    kept = FeatureSettings(**{"cache": tmp_path / "cache", "disk_gib": 1.0, **settings})
    policy = ImagePolicy(kept, 10**6, note=told.append)
    chosen = tower_inputs(assembled.model, assembled.processor, distinct_images(rows), policy, reused)
    assert type(chosen) is kind
    assert why in told[-1]
    assert (tmp_path / "cache").exists() == (kind is DiskFeatures)


def test_disk_that_does_not_fit_is_an_error(assembled: Assembled, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="feature_disk_gib"):
        losses(assembled, tmp_path, "run", features="disk", feature_disk_gib=TINY)


def test_a_changed_tower_is_served_no_old_feature(assembled: Assembled, tmp_path: Path) -> None:
    model, processor = load_model(assembled.folder, "float32")
    rows = trainer(assembled.folder, vqa_samples(tmp_path), tmp_path / "run").train_dataset.rows["vqa"]
    settings = FeatureSettings("disk", stored="float32", cache=tmp_path / "cache")

    def features() -> torch.Tensor:
        images = tower_inputs(model, processor, distinct_images(rows), ImagePolicy(settings, 10**6))
        return images([rows[0].images[0]])["image_features"]

    before = features()
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(features(), before)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_keys_reach_the_settings(tmp_path: Path) -> None:
    assert feature_settings(recipe(tmp_path).data) == FeatureSettings(cache=DEFAULT_CACHE)
    changed = recipe(
        tmp_path,
        "data.features=disk",
        "data.feature_memory_gib=3.0",
        "data.feature_disk_gib=4.0",
        "data.feature_dtype=int8",
        "data.cache=/elsewhere",
        "data.workers=2",
    )
    wanted = FeatureSettings("disk", 3.0, 4.0, "int8", Path("/elsewhere"), 2)
    assert feature_settings(changed.data) == wanted


@pytest.mark.slow
def test_a_run_and_its_evaluation_share_the_cache(tiny: Path, tmp_path: Path) -> None:
    own = values(tiny, tmp_path, data={"features": "disk", "cache": str(tmp_path / "cache")})
    train(load_recipe(None, (), own).recipe, tmp_path / "run", QUIET)
    (folder,) = {path.parent for path in (tmp_path / "cache").rglob("shard-*")}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    scores = evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)
    assert 0 <= scores["vqa"]["accuracy"] <= 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    told: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.note = told.append  # type: ignore[method-assign]
    before_facts = json.loads((tmp_path / "run" / "run.json").read_text())
    train(load_recipe(None, (), own).recipe, tmp_path / "run", reporter, resume=True)
    assert any("the tower is not loaded" in note for note in told)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["base_fingerprint"] == before_facts["base_fingerprint"]


def test_cache_verb(tiny: Path, tmp_path: Path) -> None:
    own = values(tiny, tmp_path)
    file = recipe_file(tmp_path, own)
    keys = ["data.cache=" + str(tmp_path / "cache"), "data.feature_dtype=int8"]
    done = lockadapt("cache", file, *keys, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"folder", "stored", "images", "computed", "bytes", "seconds", "drift"}
    assert (report["images"], report["computed"], report["stored"]) == (4, 4, "int8")
    assert 0 < report["drift"]["relative"] < 0.01
    assert Path(report["folder"]).parent == tmp_path / "cache"
    assert "train with data.features=disk" in done.stderr
    again = lockadapt("cache", file, *keys)
    assert "0 computed now" in again.stdout
    refused = lockadapt("cache", file, *keys, "data.feature_disk_gib=0.0", "data.feature_dtype=float32")
    assert refused.returncode == 7
    assert "data.feature_disk_gib allows 0 GiB" in refused.stderr
    assert lockadapt("cache", file, "blind=true").returncode == 2
    trained = lockadapt("train", file, *keys, "data.features=disk", "-o", tmp_path / "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert "(0 computed" in trained.stderr


def test_with_all_images_cached_the_tower_is_not_loaded(
    assembled: Assembled, tiny: Path, tmp_path: Path
) -> None:
    """Same losses, same lock proof, same fingerprint as with the tower; and the run it leaves is a whole one."""
    model = {"vlm": str(assembled.folder), "dtype": "float32"}
    data = {"features": "disk", "feature_dtype": "float32", "cache": str(tmp_path / "cache")}
    own = load_recipe(None, (), values(tiny, tmp_path, model=model, data=data)).recipe
    told: dict[str, list[str]] = {"first": [], "second": []}
    facts, curves = {}, {}
    for name, notes in told.items():
        reporter = Reporter(quiet=True)
        reporter.note = notes.append  # type: ignore[method-assign]
        train(own, tmp_path / name, reporter)
        facts[name] = json.loads((tmp_path / name / "run.json").read_text())
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        curves[name] = [json.loads(line).get("vqa/loss") for line in lines]
    assert not any("not loaded" in note for note in told["first"])
    assert any("the tower is not loaded" in note for note in told["second"])
    assert curves["first"] == curves["second"]
    first, second = (facts[name] for name in told)
    assert first["base_fingerprint"] == second["base_fingerprint"]
    assert first["stages"][0]["locked"] == second["stages"][0]["locked"]
    assert first["stages"][0]["components"] == second["stages"][0]["components"]
    for name in ("projector.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert evaluate_folder(tmp_path / "second", None, (), False, None, QUIET)["vqa"]["n"] == 8


@pytest.mark.parametrize(
    ("quantization", "llm", "tower"),
    [
        ("none", "llama", "clip-vision"),
        ("nf4", "llama-tied", "clip-vision"),
        ("nf4", "llama", "mobilenet-v2"),
        ("none", "llama-tied", "mobilenet-v2"),
    ],
)
def test_an_absent_tower_has_no_weights_and_is_proved_by_its_files(
    quantization: Any, llm: str, tower: str, tiny: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    assembled = assemble(tiny / llm, tiny / tower, base, dtype="float32", prove=False)
    remember_tower(tmp_path / "cache", assembled.model, base, torch.float32)
    record = recall_tower(tmp_path / "cache", base, torch.float32)
    assert record is not None
    assert recall_tower(tmp_path / "cache", base, torch.bfloat16) is None
    model, _ = load_quantized(base, quantization, torch.float32, record)
    whole, _ = load_quantized(base, quantization, torch.float32)
    assert type(model) is type(whole)
    for either in (model, whole):
        set_trainable(either, ["projector"])
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert names == {
        n for n, _ in [*whole.named_parameters(), *whole.named_buffers()] if "vision_tower" not in n
    }
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert frozen_digests(model) == frozen_digests(whole)
    assert component_table(model) == component_table(whole)
    with pytest.raises(VerificationError, match="was not loaded"):
        model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32))
    before = frozen_digests(model)
    (file,) = base.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(LockError, match="vision_tower"):
        prove_locked(model, before)
    assert recall_tower(tmp_path / "cache", base, torch.float32) is None


@pytest.mark.parametrize("gap", ["new image", "damaged shard", "no shard", "other processor", "other dtype"])
def test_the_tower_is_loaded_where_anything_is_missing(
    gap: str, assembled: Assembled, tiny: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(assembled.folder, base)
    data = {"features": "disk", "cache": str(tmp_path / "cache")}
    recipe_values = values(tiny, tmp_path, model={"vlm": str(base), "dtype": "float32"}, data=data)
    own = load_recipe(None, (), recipe_values).recipe
    cache_recipe(own, QUIET)

    def cached(recipe: Any = own) -> Any:
        experiment = build_experiment(recipe)
        samples = load_samples(experiment, QUIET)
        images = {i.key: i for part in samples.values() for s in part.get("vqa", ()) for i in s.images}
        return cached_tower(base, torch.float32, images, image_policy(experiment, QUIET))

    assert cached() is not None
    shard = next((tmp_path / "cache").rglob("shard-*"))
    if gap == "new image":
        Image.new("RGB", (9, 9), "white").save(tmp_path / "pictures" / "red.png")
    elif gap == "damaged shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif gap == "no shard":
        shard.unlink()
    elif gap == "other processor":
        files = [f for f in base.glob("*processor*.json") if "image_mean" in f.read_text()]
        for file in files:
            file.write_text(
                file.read_text().replace('"image_mean": [\n', '"image_mean": [\n 0.1, 0.1, 0.1], "x": [\n')
            )
        assert files
    else:
        own = own.model_copy(update={"data": own.data.model_copy(update={"feature_dtype": "int8"})})
    assert cached(own) is None
