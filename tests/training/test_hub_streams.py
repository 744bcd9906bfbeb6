"""Hub ids as shards: the files of a commit, by a listing and a file system that stand for the Hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import datasets
import fsspec
import huggingface_hub
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lockadapt.building.revisions import pin_revisions
from lockadapt.data.shards import hub
from lockadapt.errors import DataError, RecipeError, SafetyError, VerificationError
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from tests.support.interruption import QUIET
from tests.support.runs import values
from tests.support.shards import write

OLD, NEW = "a" * 40, "b" * 40


class FakeHub(MemoryFileSystem):
    """A file system at `hf://` whose files are in memory."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("hf://")
        return path if path.startswith("/") or not path else f"/{path}"

    def unstrip_protocol(self, name: str) -> str:
        return "hf://" + name.lstrip("/")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What the Hub says is the newest commit of `owner/colors`; two exist, with different rows."""
    known = {"owner/colors": OLD}
    before = fsspec.registry.get("hf")
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    files = FakeHub()
    for commit, rows in ((OLD, 20), (NEW, 12)):
        for file in write("parquet", tmp_path / commit[:2], rows).iterdir():
            files.pipe(f"/datasets/owner/colors@{commit}/data/train-{file.name}", file.read_bytes())

    def listed(name: str, revision: str | None) -> tuple[str, dict[str, list[str]]]:
        commit = revision or known[name]
        inside = files.find(f"/datasets/{name}@{commit}")
        return "parquet", {"train": [files.unstrip_protocol(file) for file in inside]}

    monkeypatch.setattr(hub, "_refuse_unreachable", lambda name: None)
    monkeypatch.setattr(hub, "_listed", listed)
    monkeypatch.setattr("lockadapt.models.origins.hub_is_reachable", lambda: False)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, name: huggingface_hub.DatasetInfo(id=name, sha=known[name], tags=[]),
    )
    yield known
    fsspec.register_implementation("hf", before, clobber=True)
    FakeHub.store.clear()


def streamed(tiny: Path, folder: Path, **source: Any) -> dict[str, Any]:
    given = values(tiny, folder)
    hub_id = {"format": "datasets", "path": "owner/colors", "streaming": True, "split": "train"}
    given["objectives"]["vqa"]["train"] = hub_id | source
    given["data"] = {"cache": str(folder / "cache")}
    given["training"] |= {"steps": 2, "save_every": 1}
    return given


def test_a_run_keeps_to_its_commit(tiny: Path, tmp_path: Path, commits: dict[str, str]) -> None:
    recipe = load_recipe(None, (), streamed(tiny, tmp_path)).recipe
    out = tmp_path / "out"
    train(recipe, out, QUIET)
    (told,) = (read_record(out).rows or {})["vqa"]
    assert (told.path, told.rows, told.revision) == ("owner/colors", 20, OLD)
    written = load_recipe(out / "recipe.yaml").recipe
    assert written.objectives["vqa"].sources("train")[0].revision == OLD
    # The Hub goes on; the run does not.
    commits["owner/colors"] = NEW
    train(recipe, out, QUIET, resume=True)
    train(load_recipe(None, (), streamed(tiny, tmp_path, revision=OLD)).recipe, out, QUIET, resume=True)
    with pytest.raises(RecipeError, match="revision"):
        train(load_recipe(None, (), streamed(tiny, tmp_path, revision=NEW)).recipe, out, QUIET, resume=True)
    train(recipe, tmp_path / "new", QUIET)
    (told,) = (read_record(tmp_path / "new").rows or {})["vqa"]
    assert (told.rows, told.revision) == (12, NEW)


def test_other_bytes_under_the_same_commit_are_refused(
    tiny: Path, tmp_path: Path, commits: dict[str, str]
) -> None:
    recipe = load_recipe(None, (), streamed(tiny, tmp_path)).recipe
    train(recipe, tmp_path / "out", QUIET)
    for name in [name for name in FakeHub.store if OLD in name]:
        FakeHub.store.pop(name)
    files = FakeHub()
    for file in write("parquet", tmp_path / "other", 16).iterdir():
        files.pipe(f"/datasets/owner/colors@{OLD}/data/train-{file.name}", file.read_bytes())
    with pytest.raises(VerificationError, match="not those that the run began with"):
        train(recipe, tmp_path / "out", QUIET, resume=True)


def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = f"hf://datasets/owner/x@{OLD}/"
    asked = []

    def loaded(name: str, revision: str | None) -> Any:
        asked.append((name, revision))
        builder = type("Builder", (), {"__module__": f"datasets.packaged_modules.{kind}.{kind}"})()
        builder.config = type("Config", (), {"data_files": files})()
        return builder

    monkeypatch.setattr(hub, "_refuse_unreachable", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", loaded)
    kind, files = "webdataset", {"train": [base + "b.tar", base + "a.json"], "test": [base + "c.tar"]}
    assert hub.files_of("owner/x", "train", OLD) == ("webdataset", (base + "b.tar",))
    assert asked == [("owner/x", OLD)]
    for split, words in ((None, "one of: train, test"), ("tset", "did you mean 'test'")):
        with pytest.raises(DataError, match=words):
            hub.files_of("owner/x", split, None)
    files = {"train": ["/etc/passwd.tar"]}
    with pytest.raises(SafetyError, match="not on the Hub"):
        hub.files_of("owner/x", None, None)
    kind = "json"
    with pytest.raises(DataError, match="builder 'json'"):
        hub.files_of("owner/x", None, None)
    monkeypatch.undo()
    for name, words in (("../x", "no Hub id"), ("owner/x", "cannot be reached")):
        with pytest.raises(DataError, match=words):
            hub.files_of(name, None, None)


def test_keys(tiny: Path, tmp_path: Path) -> None:
    for source, words in (
        ({"format": "parquet"}, "always streamed"),
        ({"streaming": False, "revision": OLD}, "streaming: true"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(None, (), streamed(tiny, tmp_path, **source))
    recipe = load_recipe(None, (), streamed(tiny, tmp_path, revision=OLD)).recipe
    assert pin_revisions(recipe, None) is recipe
    memory = load_recipe(None, ("data.rows=memory",), streamed(tiny, tmp_path, revision=OLD)).recipe
    with pytest.raises(RecipeError, match="streams its rows"):
        train(memory, tmp_path / "out", QUIET)
