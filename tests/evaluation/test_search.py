"""Search: the index holds what is in the folder, embeds each image once, and answers as the model's embeddings do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lockadapt.console import Reporter
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, RecipeError, VerificationError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.image_index import ImageIndex, read_index, write_index
from lockadapt.evaluation.refresh import refresh
from lockadapt.evaluation.search import Queries, search
from lockadapt.evaluation.target import open_target
from tests.support.rows import CAPTIONS, pictures

QUIET = Reporter(quiet=True)


class Counting:
    """Embeds a file as its bytes' length and sum, and remembers which files it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, images: Sequence[ImageRef]) -> tuple[dict[str, Tensor], dict[str, str]]:
        made, wrong = {}, {}
        for image in images:
            data = Path(image.key).read_bytes()
            self.seen.append(Path(image.key).name)
            if data.startswith(b"bad"):
                wrong[image.key] = "is damaged"
            else:
                made[image.key] = torch.tensor([float(len(data)), float(sum(data))])
        return made, wrong


def nothing(index: ImageIndex) -> None:
    raise AssertionError("nothing to keep in between")


def folder_of(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("_", "/")
        path = path.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_only_what_changed_is_embedded(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a="one", b="two", sub_c="three", d="one", e="bad")
    (images / "notes.txt").write_text("no image")
    (images / ".hidden").mkdir()
    (images / ".hidden" / "x.png").write_text("hidden")
    embed = Counting()
    index, changes = refresh(ImageIndex(), images, embed, nothing)
    assert [file.name for file in index.files] == ["a.png", "b.png", "d.png", "sub/c.png"]
    assert sorted(embed.seen) == ["a.png", "b.png", "c.png", "e.png"]  # d.png is a.png once more
    assert (changes.embedded, changes.dropped, changes.bad) == (3, 0, {"e.png": "is damaged"})
    assert index.embeddings[2].tolist() == index.embeddings[0].tolist() == [3.0, float(sum(b"one"))]
    (images / "a.png").rename(images / "z.png")
    (images / "b.png").unlink()
    (images / "e.png").write_text("mended")
    os.utime(images / "sub" / "c.png", ns=(1, 1))
    embed = Counting()
    index, changes = refresh(index, images, embed, nothing)
    assert [file.name for file in index.files] == ["d.png", "e.png", "sub/c.png", "z.png"]
    assert embed.seen == ["e.png"]
    assert (changes.embedded, changes.dropped, changes.bad) == (1, 2, {})
    assert index.embeddings[1].tolist() == [6.0, float(sum(b"mended"))]
    assert index.embeddings[3].tolist() == [3.0, float(sum(b"one"))]
    embed = Counting()
    again, changes = refresh(index, images, embed, nothing)
    assert (embed.seen, changes.embedded, again.files) == ([], 0, index.files)
    (images / "d.png").write_text("more")  # same name, other bytes
    assert refresh(index, images, embed, nothing)[0].embeddings[0].tolist() == [4.0, float(sum(b"more"))]


def test_an_interrupted_index_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockadapt.evaluation.refresh.PART", 2)
    images = folder_of(tmp_path / "images", a="1", b="22", c="333", d="4444", e="55555")
    kept: list[ImageIndex] = []
    index, _ = refresh(ImageIndex(), images, Counting(), kept.append)
    assert [len(part.files) for part in kept] == [2, 4]
    embed = Counting()
    assert refresh(kept[0], images, embed, kept.append)[0].files == index.files
    assert embed.seen == ["c.png", "d.png", "e.png"]


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a="one")
    (folder_of(tmp_path / "other", b="two") / "b.png").rename(tmp_path / "b.png")
    (images / "out.png").symlink_to(tmp_path / "b.png")
    (images / "in.png").symlink_to(images / "a.png")
    (images / "gone.png").symlink_to(images / "nowhere.png")
    (images / "folder.png").mkdir()
    index, changes = refresh(ImageIndex(), images, Counting(), nothing)
    assert [file.name for file in index.files] == ["a.png", "in.png"]
    assert set(changes.bad) == {"out.png", "gone.png"}
    assert "symlink out of" in changes.bad["out.png"]


def test_index_on_disk(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a="one", b="two")
    index, _ = refresh(ImageIndex(), images, Counting(), nothing)
    folder = tmp_path / "index"
    assert read_index(folder, "model").files == ()
    write_index(folder, "model", index)
    stored = read_index(folder, "model")
    assert stored.files == index.files
    assert torch.equal(stored.embeddings, index.embeddings)
    (images / "b.png").unlink()
    smaller, _ = refresh(index, images, Counting(), nothing)
    write_index(folder, "model", smaller)
    assert len(list(folder.iterdir())) == 2  # the old matrix is gone
    assert read_index(folder, "model").files == smaller.files
    with pytest.raises(RecipeError, match="another model"):
        read_index(folder, "other")
    saved = (folder / "index.json").read_text()
    for text in (
        "{",
        "[]",
        '{"format": 2}',
        saved.replace('"embeddings-', '"../embeddings-'),
        saved.replace('"mtime_ns"', '"when"'),
    ):
        (folder / "index.json").write_text(text)
        with pytest.raises(DataError, match="damaged"):
            read_index(folder, "model")
    (folder / "index.json").write_text(saved)
    next(folder.glob("embeddings-*")).write_bytes(b"cut off")
    with pytest.raises(DataError, match="damaged"):
        read_index(folder, "model")


def test_what_cannot_be_searched_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        refresh(ImageIndex(), tmp_path / "none", Counting(), nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        refresh(ImageIndex(), tmp_path / "empty", Counting(), nothing)
    with pytest.raises(DataError, match="none of its 1 images"):
        refresh(ImageIndex(), folder_of(tmp_path / "images", a="bad"), Counting(), nothing)


def test_search_with_run_and_merged_folder(
    embedding_run: Path, embedding_merged: Path, tmp_path: Path
) -> None:
    images, query = tmp_path / "images", CAPTIONS["green"]
    paths = pictures(images)
    (images / "broken.png").write_text("no picture")
    embedder = Embedder.open(open_target(embedding_run))
    own = embedder.images([ImageRef(str(path), path=path) for path in paths.values()])
    scores = own @ embedder.texts([query])[0]
    expected = [f"{list(paths)[number]}.png" for number in scores.argsort(descending=True).tolist()]
    index = tmp_path / "index"
    first = search(embedding_run, images, Queries([query], [paths["blue"]]), index, 3, QUIET)
    text, picture = first["searches"]
    assert text["query"] == query
    assert [hit["file"] for hit in text["results"]] == expected[:3]
    assert [hit["score"] for hit in text["results"]] == pytest.approx(
        scores.sort(descending=True).values[:3].tolist(), abs=1e-5
    )
    assert picture["query"] == str(paths["blue"])
    assert picture["results"][0] == {"file": "blue.png", "score": pytest.approx(1.0, abs=1e-5)}
    report = first["index"]
    assert (report["folder"], report["images"], report["embedded"]) == (str(index), 4, 4)
    assert [problem["file"] for problem in report["bad"]] == ["broken.png"]
    again = search(embedding_run, images, Queries([query]), index, 9, QUIET)
    assert again["index"]["embedded"] == 0
    assert [hit["file"] for hit in again["searches"][0]["results"]] == expected
    with pytest.raises(RecipeError, match="another model"):
        search(embedding_merged, images, Queries([query]), index, 3, QUIET)
    merged = search(embedding_merged, images, Queries([query]), tmp_path / "index2", 3, QUIET)
    assert [hit["file"] for hit in merged["searches"][0]["results"]] == expected[:3]
    assert [hit["score"] for hit in merged["searches"][0]["results"]] == pytest.approx(
        [hit["score"] for hit in text["results"]], abs=1e-4
    )
    with pytest.raises(DataError, match="broken.png"):
        search(embedding_run, images, Queries([], [images / "broken.png"]), index, 3, QUIET)
    with pytest.raises(RecipeError, match="nothing is asked"):
        search(embedding_run, images, Queries(), index, 3, QUIET)


def test_every_model_has_an_index_of_its_own(
    embedding_run: Path, embedding_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "images")
    copy = tmp_path / "copy"
    shutil.copytree(embedding_merged, copy)
    folders = [
        search(target, tmp_path / "images", Queries(["red"]), None, 1, QUIET)["index"]
        for target in (embedding_run, embedding_merged, copy)
    ]
    assert folders[1]["folder"] == folders[2]["folder"] != folders[0]["folder"]
    assert [report["embedded"] for report in folders] == [4, 4, 0]
    settings = json.loads((copy / "lockadapt.json").read_text())
    settings["recipe"]["objectives"]["itc"]["image_prompt"] = "look"
    (copy / "lockadapt.json").write_text(json.dumps(settings))
    assert search(copy, tmp_path / "images", Queries(["red"]), None, 1, QUIET)["index"]["embedded"] == 4


def test_a_model_that_cannot_embed_is_refused(assembled: object, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    with pytest.raises(RecipeError, match="does not say which recipe"):
        search(assembled.folder, tmp_path / "images", Queries(["red"]), None, 1, QUIET)  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_index_that_is_not_finite_or_of_another_width_is_refused(value: float, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", a="one", b="two")
    index, _ = refresh(ImageIndex(), images, Counting(), nothing)
    width = index.embeddings.shape[1]
    write_index(tmp_path / "index", "model", index)
    assert read_index(tmp_path / "index", "model", width).files == index.files
    with pytest.raises(VerificationError, match=f"have {width} values, the model's {width + 1}"):
        read_index(tmp_path / "index", "model", width + 1)
    index.embeddings[1, 0] = value
    write_index(tmp_path / "index", "model", index)
    with pytest.raises(VerificationError, match="embedding of b.png is not finite") as error:
        read_index(tmp_path / "index", "model", width)
    assert error.value.exit_code == 8
