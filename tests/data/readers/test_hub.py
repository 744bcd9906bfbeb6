"""Data sets that the `datasets` library opens: saved, parquet, images, and what it must not be trusted with."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.readers import Source, read_samples
from lockadapt.errors import DataError, SafetyError

COLOURS = [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, no network, no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), colour) for colour in COLOURS]


def questions() -> datasets.Dataset:
    rows = {"image": pictures(), "question": ["a?", "b?", "c?"], "answer": ["red", "blue", "red"]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def colours(samples: list[Any]) -> list[Any]:
    return [open_image(sample.images[0], 100).getpixel((0, 0)) for sample in samples]


def test_saved_to_disk(tmp_path: Path) -> None:
    questions().save_to_disk(tmp_path / "set")
    samples = read_samples("datasets", Source(path=tmp_path / "set", kind="vqa", limit=3))
    assert [(sample.answer, sample.where) for sample in samples] == [
        ("red", "set[0]"),
        ("blue", "set[1]"),
        ("red", "set[2]"),
    ]
    assert colours(samples) == COLOURS
    assert samples[0].images[0] is samples[2].images[0]  # the same bytes are kept once
    assert samples[0].images[0].key.startswith("sha256:")


def test_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": questions(), "test": questions().select([1])})
    both.save_to_disk(tmp_path / "set")
    (only,) = read_samples("datasets", Source(path=tmp_path / "set", kind="vqa", split="test"))
    assert (only.answer, only.where) == ("blue", "set/test[0]")
    for split, words in ((None, "train, test"), ("tset", "did you mean 'test'")):
        with pytest.raises(DataError, match=words) as caught:
            read_samples("datasets", Source(path=tmp_path / "set", kind="vqa", split=split))
        assert caught.value.exit_code == 3
    questions().save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="no splits"):
        read_samples("datasets", Source(path=tmp_path / "one", kind="vqa", split="train"))


def test_parquet_with_messages_and_several_images(tmp_path: Path) -> None:
    text = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(text)}),
        }
    )
    image_part = {"type": "image", "text": None}
    messages = [
        {"role": "user", "content": [image_part, image_part, {"type": "text", "text": "Same?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]
    rows = {"images": [pictures()[:2]], "messages": [messages]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / "train.parquet")
    for path in (tmp_path / "data", tmp_path / "data" / "train.parquet"):
        (sample,) = read_samples("datasets", Source(path=path, kind="dialogue"))
        assert (sample.turns[0].text, sample.turns[0].images, sample.answer) == ("Same?", 2, "no")
        assert open_image(sample.images[1], 100).getpixel((0, 0)) == COLOURS[1]


def test_images_with_metadata(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "blue"}\n')
    (sample,) = read_samples("datasets", Source(path=tmp_path, kind="caption", columns={"caption": "text"}))
    assert sample.images[0].path == tmp_path / "1.png"
    assert sample.images[0].key == (tmp_path / "1.png").as_posix()


def test_class_labels_are_names(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": pictures(), "caption": [0, 1, 0]})
    rows = rows.cast_column("caption", datasets.ClassLabel(names=["cat", "dog"]))
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    samples = read_samples("datasets", Source(path=tmp_path / "set", kind="caption"))
    assert [sample.answer for sample in samples] == ["cat", "dog", "cat"]


def test_paths_in_cells_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "set", tmp_path / "secret.png"
    (inside / "here").mkdir(parents=True)
    pictures()[0].save(inside / "here" / "0.png")
    monkeypatch.chdir(inside / "here")  # relative names mean the data set's folder, wherever one stands
    pictures()[0].save(outside)
    pictures()[1].save(inside / "0.png")
    forged = [str(outside), "../secret.png", "https://example.com/x.png", "/etc/passwd"]
    for number, path in enumerate([str(inside / "0.png"), "0.png", *forged]):
        cell = datasets.Features(
            {
                "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "caption": datasets.Value("string"),
            }
        )
        rows = {"image": [{"bytes": None, "path": path}], "caption": ["x"]}
        file = inside / f"{number}.parquet"
        datasets.Dataset.from_dict(rows, cell).to_parquet(file)
        if path not in forged:
            (sample,) = read_samples("datasets", Source(path=file, kind="caption"))
            assert sample.images[0].path == inside / "0.png"
            continue
        with pytest.raises(SafetyError) as caught:
            read_samples("datasets", Source(path=file, kind="caption"))
        assert caught.value.exit_code == 10
        assert f"{number}.parquet[0]" in str(caught.value)


def test_rows_are_checked_as_anywhere(tmp_path: Path) -> None:
    questions().remove_columns("answer").save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="no column 'answer'") as caught:
        read_samples("datasets", Source(path=tmp_path / "set", kind="vqa"))
    assert "set[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.parquet", b"PAR1 and no more", DataError),
        ("a.parquet", b"", DataError),
        ("a.jsonl", b"{", DataError),
        ("a.txt", b"hello", DataError),
        ("state.json", b"{}", DataError),
        ("a.pkl", b"x", SafetyError),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, kind: type[Exception]) -> None:
    (tmp_path / name).write_bytes(data)
    path = tmp_path if kind is DataError else tmp_path / name
    with pytest.raises(kind) as caught:
        read_samples("datasets", Source(path=path, kind="vqa"))
    assert str(path) in str(caught.value)
    assert caught.value.fix  # type: ignore[attr-defined]


def test_a_misspelt_path_does_not_reach_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(*_: Any) -> None:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", network)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("./absent", "/absent", "~/absent", "a/b/c", "data/absent", "C:\\absent", "https://x.org/y"):
        with pytest.raises(DataError, match="no such file or folder"):
            read_samples("datasets", Source(path=path, kind="vqa"))


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens after the Hub has answered, with a local data set in its place."""
    questions().to_parquet(tmp_path / "train.parquet")
    real = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda name, **_: real("parquet", data_dir=str(tmp_path))
    )
    samples = read_samples("datasets", Source(path="owner/name", kind="vqa", split="train"))
    assert [sample.where for sample in samples] == [f"name/train[{number}]" for number in range(3)]
    assert colours(samples) == COLOURS


def test_a_hub_id_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def retries(name: str, download_config: Any) -> None:
        assert download_config is None or download_config.local_files_only
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", retries)
    for reachable, words, fix in (
        (True, "cannot open it", "spelling"),
        (False, "cannot be reached", "connect"),
    ):
        monkeypatch.setattr("lockadapt.models.hub.hub_is_reachable", lambda reachable=reachable: reachable)
        with pytest.raises(DataError, match=words) as caught:
            read_samples("datasets", Source(path="owner/name", kind="vqa"))
        assert caught.value.where == "owner/name"
        assert fix in (caught.value.fix or "")


def test_a_hub_id_with_an_unsafe_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = type(
        "Builder", (SimpleNamespace,), {"__module__": "datasets.packaged_modules.webdataset.webdataset"}
    )
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, **_: builder())
    with pytest.raises(SafetyError, match="webdataset") as caught:
        read_samples("datasets", Source(path="owner/name", kind="vqa"))
    assert caught.value.exit_code == 10


def test_no_progress_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions().to_parquet(tmp_path / "a.parquet")
    datasets.enable_progress_bars()
    read_samples("datasets", Source(path=tmp_path / "a.parquet", kind="vqa"))
    assert capsys.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, lockadapt.data.readers, lockadapt.data.scan;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bytes_are_encoded_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    pictures()[1].save(file, "JPEG", quality=100)
    rows = {"image": [file.getvalue()], "caption": ["x"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    (sample,) = read_samples("datasets", Source(path=tmp_path / "a.parquet", kind="caption"))
    assert sample.images[0].data == file.getvalue()
