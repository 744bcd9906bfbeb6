"""Videos in rows: the right frames, at the right places, within the limits; a clip is generated here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lockadapt.data.image_bytes import content_key, picture_of
from lockadapt.data.images import image_size, open_image
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.data.video import VideoRules
from lockadapt.errors import DataError, SafetyError

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
RATE, SECONDS, SIZE = 10, 4, (64, 48)


def clip(path: Path, seconds: int = SECONDS) -> Path:
    """Every second has a grey of its own: 40, 80, 120, 160; one key frame, so that seeking must decode on."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=RATE, options={"g": "1000"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(RATE * seconds):
            grey = 40 * (1 + number // RATE)
            frame = av.VideoFrame.from_image(Image.new("RGB", SIZE, (grey,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips")
    clip(path / "a.mp4")
    Image.new("RGB", (8, 8)).save(path / "0.png")
    return path


def read(folder: Path, row: Any, kind: str = "vqa", form: str = "jsonl", **rules: Any) -> Sample:
    path = folder / f"rows.{'json' if form == 'llava' else 'jsonl'}"
    path.write_text(json.dumps([row] if form == "llava" else row))
    source = Source(path=path, kind=kind, video=VideoRules(**rules))
    return next(iter(read_samples(form, source)))


def greys(sample: Sample) -> list[int]:
    return [round(float(np.asarray(open_image(image, 10**6)).mean()), -1) for image in sample.images]


QUESTION = {"video": "a.mp4", "question": "What happens?", "answer": "it brightens"}


def test_uniform_frames(folder: Path) -> None:
    sample = read(folder, QUESTION, frames=4)
    assert greys(sample) == [40, 80, 120, 160]
    assert [image.moment for image in sample.images] == [0.5, 1.5, 2.5, 3.5]
    assert sample.turns[0] == Turn("user", "What happens?", 4)
    assert image_size(sample.images[0], 10**6) == SIZE


def test_frames_at_a_rate_and_their_times(folder: Path) -> None:
    assert [i.moment for i in read(folder, QUESTION, rate=0.5).images] == [1.0, 3.0]
    assert len(read(folder, QUESTION, rate=5.0, frames=6).images) == 6  # not 20
    sample = read(folder, QUESTION, frames=2, times=True)
    assert sample.turns[0] == Turn("user", "[1.0s][3.0s]What happens?", 2, (6, 12))


def test_places_in_conversations(folder: Path) -> None:
    shown, words = {"type": "video"}, [{"type": "text", "text": t} for t in ("In ", "?")]
    answer = {"role": "assistant", "content": "yes"}
    for content in ([words[0], shown, words[1]], [words[0], {**shown, "path": "a.mp4"}, words[1]]):
        row: dict[str, Any] = {"messages": [{"role": "user", "content": content}, answer]}
        if "path" not in content[1]:
            row["video"] = "a.mp4"
        sample = read(folder, row, "dialogue", frames=2)
        assert sample.turns[0] == Turn("user", "In ?", 2, (3, 3))
    plain = {"video": "a.mp4", "image": "0.png", "messages": [{"role": "user", "content": "Go on."}, answer]}
    with pytest.raises(DataError, match="1 image"):
        read(folder, plain, "dialogue")
    sample = read(folder, {k: v for k, v in plain.items() if k != "image"}, "dialogue", frames=3)
    assert sample.turns[0] == Turn("user", "Go on.", 3)
    with pytest.raises(DataError, match="0 video"):
        read(folder, {"messages": [{"role": "user", "content": [shown]}, answer]}, "dialogue")


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
def test_markers_of_llava(folder: Path, mark: str) -> None:
    talk = [{"from": "human", "value": f"{mark}\nWhat?"}, {"from": "gpt", "value": "It brightens."}]
    row = {"video": "a.mp4", "conversations": talk}
    assert read(folder, row, "dialogue", "llava", frames=2).turns[0] == Turn("user", "What?", 2)
    with pytest.raises(DataError, match=r"1 video\(s\), but its messages show 0"):
        read(
            folder,
            {**row, "conversations": [{"from": "human", "value": "What?"}, talk[1]]},
            "dialogue",
            "llava",
        )


def test_limits_before_decoding(folder: Path) -> None:
    for rules, words in (({"max_seconds": 3.0}, "4 s long"), ({"max_pixels": 1000}, "3,072 pixels")):
        with pytest.raises(SafetyError, match=words):
            read(folder, QUESTION, **rules)
    (image, *_) = read(folder, QUESTION).images
    with pytest.raises(SafetyError, match="3,072 pixels"):
        open_image(image, 1000)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n")
    with pytest.raises(DataError, match="no video of a known format"):
        read(folder, {**QUESTION, "video": "list.mp4"})
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    with pytest.raises(DataError, match="damaged or cut off"):
        read(folder, {**QUESTION, "video": "cut.mp4"})
    with pytest.raises(SafetyError, match="climbs"):
        read(folder, {**QUESTION, "video": "../a.mp4"})


def test_frames_are_kept_apart(folder: Path) -> None:
    """Frames of one file have keys of their own, and are decoded from the very bytes that were hashed."""
    first, last = read(folder, QUESTION, frames=2).images
    keys = {content_key(image, 10**6) for image in (first, last, replace(first, mirrored=True))}
    assert len({*keys, content_key(ImageRef(first.key, path=first.path), 10**6)}) == 4
    picture = picture_of(last, content_key(last, 10**6), 10**6)
    assert picture.tobytes() == open_image(last, 10**6).tobytes()
