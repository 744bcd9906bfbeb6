"""Broken data sets: each a typed error that names the place and the fix, with the exit code of its kind."""

from __future__ import annotations

import gzip
import json
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lockadapt.data.readers import Source, files, read_samples
from lockadapt.errors import DataError, LockadaptError, SafetyError

from .test_formats import ANSWERS, COCO, QUESTIONS, talk, write

GOOD = '{"image": "0.png", "question": "what?", "answer": "red"}\n'


def row(**changes: Any) -> str:
    """A good line, and one with changed values; `...` removes the column."""
    value = {**json.loads(GOOD), **changes}
    return GOOD + json.dumps({key: cell for key, cell in value.items() if cell is not ...})


# name: (lines, what the message must hold)
LINES: dict[str, tuple[str | bytes, str]] = {
    "invalid JSON": (GOOD + '{"image": ', "invalid JSON"),
    "not even JSON": (GOOD + "hello", "invalid JSON"),
    "too deep": (GOOD + "[" * 100_000, "nested too deeply"),
    "huge number": (GOOD + "9" * 10_000, "invalid JSON"),
    "number for a row": (GOOD + "5", "neither an object nor a list"),
    "null for a row": (GOOD + "null", "neither an object nor a list"),
    "rows on one line": (GOOD + f"[{GOOD.strip()}, {GOOD.strip()}]", "list of rows"),
    "list without positions": (GOOD + '["0.png", "what?", "red"]', "is a list"),
    "missing column": (row(question=...), "no column 'question'"),
    "misspelt column": (row(question=..., qeustion="what?"), "did you mean 'qeustion'"),
    "missing answer": (row(answer=...), "no column 'answer'"),
    "missing image": (row(image=...), "no column 'image'"),
    "empty question": (row(question=" "), "question is empty"),
    "empty answer": (row(answer=""), "answer is empty"),
    "null question": (row(question=None), "question is null"),
    "question is a list": (row(question=["what?"]), "not text"),
    "answer is a float": (row(answer=0.5), "not text"),
    "answer is true": (row(answer=True), "not text"),
    "answers is text": (row(answer=..., answers="red"), "not a list"),
    "answers is empty": (row(answer=..., answers=[]), "not a list"),
    "answers with an empty one": (row(answer=..., answers=["red", ""]), "answer is empty"),
    "answer type is a number": (row(answer_type=3), "answer_type"),
    "null image": (row(image=None), "no image"),
    "empty image": (row(image=""), "no image"),
    "empty images": (row(image=..., images=[]), "no image"),
    "image is a float": (row(image=0.5), "not a name"),
    "image is true": (row(image=True), "not a name"),
    "image is a number": (row(image=5), "image_name"),
    "image is an object": (row(image={"url": "x"}), "not a name"),
    "image marker in the question": (row(question="<image>\nwhat?"), "literal <image>"),
    "image marker in the answer": (row(answer="a <image>"), "literal <image>"),
    "lone surrogate": (row(question="\ud800?"), "lone surrogate"),
    "not UTF-8": (GOOD.encode() + GOOD.replace("red", "café").encode("latin-1"), "UTF-8"),
}


@pytest.mark.parametrize(("lines", "words"), LINES.values(), ids=LINES.keys())
def test_broken_lines(tmp_path: Path, lines: str | bytes, words: str) -> None:
    path = write(tmp_path / "train.jsonl", lines)
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    check(caught.value, 3, "train.jsonl:2", words)


def test_utf_16(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", GOOD.encode("utf-16"))
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    check(caught.value, 3, "train.jsonl:1", "UTF-8")


def check(error: LockadaptError, exit_code: int, where: str, words: str) -> None:
    assert error.exit_code == exit_code
    assert where in str(error)
    assert words in str(error)
    assert error.fix
    assert len(str(error)) < 2000


UNSAFE = {
    "absolute path": "/etc/passwd",
    "path out of the folder": "../0.png",
    "URL": "https://example.com/0.png",
    "URL in an object": {"path": "https://example.com/0.png"},
    "absolute path in an object": {"path": "/etc/passwd", "bytes": None},
}


@pytest.mark.parametrize("image", UNSAFE.values(), ids=UNSAFE.keys())
@pytest.mark.parametrize("several", [False, True])
def test_unsafe_images(tmp_path: Path, image: Any, several: bool) -> None:
    change = {"images": ["0.png", image], "image": ...} if several else {"image": image}
    path = write(tmp_path / "train.jsonl", row(**change))
    with pytest.raises(SafetyError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    check(caught.value, 10, "train.jsonl:2", "")


TALKS: dict[str, tuple[Any, str]] = {
    "no list": ("hello", "not a list"),
    "empty": ([], "not a list"),
    "turn is text": (["hello"], "not an object"),
    "unknown role": (talk(("human", "<image>a"), ("bot", "b")), "unknown role 'bot'"),
    "role is a list": ([{"from": [], "value": "x"}], "unknown role"),
    "value is a number": ([{"from": "human", "value": 3}], "neither text"),
    "no answer": (talk(("human", "<image>a")), "does not end with an assistant"),
    "ends with a question": (talk(("human", "<image>a"), ("gpt", "b"), ("human", "c")), "does not end"),
    "two users in a row": (talk(("human", "<image>a"), ("human", "b"), ("gpt", "c")), "turn 2"),
    "starts with the answer": (talk(("gpt", "b"), ("human", "<image>a"), ("gpt", "c")), "turn 1"),
    "late system": (talk(("human", "<image>a"), ("system", "x"), ("gpt", "b")), "turn 2"),
    "only system": (talk(("system", "x")), "does not end"),
    "empty answer": (talk(("human", "<image>a"), ("gpt", " ")), "assistant turn is empty"),
    "empty question": (talk(("human", "<image>a"), ("gpt", "b"), ("human", ""), ("gpt", "c")), "is empty"),
    "more images than markers": (talk(("human", "a"), ("gpt", "b")), "0 <image> markers"),
    "more markers than images": (talk(("human", "<image><image>a"), ("gpt", "b")), "2 <image> markers"),
    "marker in the answer": (talk(("human", "a"), ("gpt", "b <image>")), "only user messages"),
}


@pytest.mark.parametrize(("conversation", "words"), TALKS.values(), ids=TALKS.keys())
def test_broken_conversations(tmp_path: Path, conversation: Any, words: str) -> None:
    good = {"image": "0.png", "conversations": talk(("human", "<image>a"), ("gpt", "b"))}
    path = write(tmp_path / "llava.json", [good, {"image": "0.png", "conversations": conversation}])
    with pytest.raises(DataError) as caught:
        read_samples("llava", Source(path=path, kind="dialogue"))
    check(caught.value, 3, "llava.json[1]", words)


PARTS: dict[str, tuple[Any, str]] = {
    "unknown part": ([{"type": "audio"}], "neither text nor an image"),
    "part is text": (["hello"], "neither text nor an image"),
    "part without text": ([{"type": "text"}], "neither text nor an image"),
    "images between texts": (
        [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "image"}, {"type": "text", "text": "b"}],
        "hold 2",
    ),
    "too many images": ([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "a"}], "hold 2"),
    "literal marker": ("<image> a", "literal <image>"),
}


@pytest.mark.parametrize(("content", "words"), PARTS.values(), ids=PARTS.keys())
def test_broken_parts(tmp_path: Path, content: Any, words: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", [{"images": ["0.png"], "messages": messages}])
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="dialogue"))
    check(caught.value, 3, "a.jsonl:1", words)


@pytest.mark.parametrize("completion", [5, {}, [], None, ""])
def test_broken_completions(tmp_path: Path, completion: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"image": "0.png", "prompt": "What?", "completion": completion}])
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="dialogue"))
    check(caught.value, 3, "a.jsonl:1", "completion")


def test_an_image_of_a_message_stays_inside(tmp_path: Path) -> None:
    content = [{"type": "image", "url": "http://169.254.169.254/"}, {"type": "text", "text": "a"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    with pytest.raises(SafetyError) as caught:
        read_samples("jsonl", Source(path=path, kind="dialogue"))
    check(caught.value, 10, "a.jsonl:1", "URL")


TABLES: dict[str, tuple[str, str, str]] = {
    "duplicate header": ("image,answer,answer\n", "a.csv:1", "more than once"),
    "too few values": ("image,question,answer\n0.png,what?,red\n0.png,what?\n", "a.csv:3", "2 values"),
    "too many values": ("image,question,answer\n0.png,what, now?,red\n", "a.csv:2", "4 values"),
    "open quote": ('image,question,answer\n0.png,"what?,red\n0.png,b,c\n', "a.csv:2", "broken CSV"),
    "text after a quote": ('image,question,answer\n0.png,"what"?,red\n', "a.csv:2", "broken CSV"),
    "semicolons": ("image;question;answer\n0.png;what?;red\n", "a.csv:2", "commas"),
    "only a header": ("image,question,answer\n", "a.csv", "no row"),
    "empty value": ("image,question,answer\n0.png,,red\n", "a.csv:2", "question is empty"),
    "answers in one cell": ("image,question,answers\n0.png,a,b\n", "a.csv:2", "not a list"),
    "very long value": ("image,question,answer\n0.png,what?," + "x" * 200_000, "a.csv:2", "field"),
    "number that is none": ("image,question,answer\nx,what?,red\n", "a.csv:2", "pattern"),
}


@pytest.mark.parametrize(("text", "where", "words"), TABLES.values(), ids=TABLES.keys())
def test_broken_csv(tmp_path: Path, text: str, where: str, words: str) -> None:
    pattern = "{:05d}.png" if "pattern" in words else None
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(DataError) as caught:
        read_samples("csv", Source(path=path, kind="vqa", image_name=pattern))
    check(caught.value, 3, where, words)


@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xef\xbb\xbf"], ids=["nothing", "blank", "BOM"])
@pytest.mark.parametrize("format", ["jsonl", "csv", "llava"])
def test_empty_files(tmp_path: Path, format: str, data: bytes) -> None:
    path = write(tmp_path / "train.jsonl", data)
    with pytest.raises(DataError) as caught:
        read_samples(format, Source(path=path, kind="vqa"))
    check(caught.value, 3, "train.jsonl", "")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    write(tmp_path / "empty.json", [])
    write(tmp_path / "object.json", {"rows": []})
    write(tmp_path / "lines.json", GOOD * 2)
    write(tmp_path / "cut.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-20])
    write(tmp_path / "plain.jsonl.gz", GOOD)
    cases = {
        "absent.jsonl": "no such file",
        "folder.jsonl": "folder",
        "empty.json": "no row",
        "object.json": "no list",
        "lines.json": "lines.jsonl",
        "cut.jsonl.gz": "damaged or cut off",
        "plain.jsonl.gz": "damaged or cut off",
    }
    for name, words in cases.items():
        with pytest.raises(DataError) as caught:
            read_samples("jsonl", Source(path=tmp_path / name, kind="vqa"))
        check(caught.value, 3, name, words)


def test_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", pickle.dumps([1]))
    write(tmp_path / "rows.pkl", GOOD)
    for name in ("rows.jsonl", "rows.pkl"):
        with pytest.raises(SafetyError) as caught:
            read_samples("jsonl", Source(path=tmp_path / name, kind="vqa"))
        check(caught.value, 10, name, "pickle")


def test_gzip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_UNPACKED", 1000)
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b" " * 2000))
    with pytest.raises(SafetyError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    check(caught.value, 10, "a.jsonl.gz", "unpacks")


def test_no_such_folder_of_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa", images=tmp_path / "imgs"))
    check(caught.value, 3, "imgs", "no such folder")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"question": "q"}, "no column 'q'"),
        ({"question": 0}, "no column '0'"),
        ({"answer_type": "kind"}, "no column 'kind'"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, str | int], words: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa", columns=columns))
    check(caught.value, 3, "a.jsonl:1", words)


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"question": 0, "answer": 3, "image": 2}, "3 values"), ({"question": "q"}, "is a list")],
)
def test_wrong_positions(tmp_path: Path, columns: dict[str, str | int], words: str) -> None:
    path = write(tmp_path / "a.json", [["what?", "red", "0.png"]])
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa", columns=columns))
    check(caught.value, 3, "a.json[0]", words)


def test_imagefolder_without_or_with_two_metadata_files(tmp_path: Path) -> None:
    source = Source(path=tmp_path, kind="caption")
    with pytest.raises(DataError) as caught:
        read_samples("imagefolder", source)
    check(caught.value, 3, tmp_path.name, "neither")
    write(tmp_path / "metadata.csv", "file_name,caption\n")
    write(tmp_path / "metadata.jsonl", "{}")
    with pytest.raises(DataError) as caught:
        read_samples("imagefolder", source)
    check(caught.value, 3, tmp_path.name, "both")
    with pytest.raises(DataError) as caught:
        read_samples("imagefolder", Source(path=tmp_path, split="train", kind="caption"))
    check(caught.value, 3, "train", "no such folder")


COCO_BREAKS: dict[str, tuple[tuple[Any, ...], Any, str, str]] = {
    "no images": (("images",), None, "captions.json", "'images'"),
    "no annotations": (("annotations",), [], "captions.json", "'annotations'"),
    "annotation without image": (("annotations", 1, "image_id"), 9, "captions.json[1]", "image 9"),
    "image without caption": (("annotations", 0, "image_id"), 42, "captions.json:images[1]", "no caption"),
    "image twice": (("images", 1, "id"), 42, "captions.json:images[1]", "images[0]"),
    "empty caption": (("annotations", 1, "caption"), "", "captions.json[1]", "caption is empty"),
    "id is text": (("images", 0, "id"), "42", "captions.json:images[0]", "whole number"),
    "row is no object": (("annotations", 1), "x", "captions.json[1]", "no object"),
    "no file name": (("images", 0, "file_name"), None, "captions.json:images[0]", "file_name"),
}


@pytest.mark.parametrize(("at", "value", "where", "words"), COCO_BREAKS.values(), ids=COCO_BREAKS.keys())
def test_broken_coco(tmp_path: Path, at: tuple[Any, ...], value: Any, where: str, words: str) -> None:
    path = write(tmp_path / "captions.json", changed(COCO, at, value))
    with pytest.raises(DataError) as caught:
        read_samples("coco", Source(path=path, kind="caption"))
    check(caught.value, 3, where, words)


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    copy = deepcopy(value)
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return copy


def test_coco_file_name_that_leaves_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", changed(COCO, ("images", 0, "file_name"), "../../x.jpg"))
    with pytest.raises(SafetyError) as caught:
        read_samples("coco", Source(path=path, kind="caption"))
    check(caught.value, 10, "captions.json:images[0]", "..")


VQA_BREAKS: dict[str, tuple[str, tuple[Any, ...], Any, str, str]] = {
    "no questions": ("q", ("questions",), None, "q.json", "'questions'"),
    "question without annotation": ("q", ("questions", 0, "question_id"), 9, "q.json[0]", "no annotation"),
    "annotation without question": ("a", ("annotations", 0, "question_id"), 9, "a.json[0]", "no question"),
    "question twice": ("q", ("questions", 1, "question_id"), 420, "q.json[1]", "question_id 420"),
    "annotation twice": ("a", ("annotations", 1, "question_id"), 421, "a.json[1]", "question_id 421"),
    "empty question": ("q", ("questions", 0, "question"), "", "q.json[0]", "question is empty"),
    "empty answer": ("a", ("annotations", 1, "multiple_choice_answer"), "", "a.json[1]", "is empty"),
    "no answers": ("a", ("annotations", 1, "answers"), [], "a.json[1]", "answers"),
    "answers of numbers": ("a", ("annotations", 1, "answers"), [{"answer": 2}], "a.json[1]", "answers"),
    "other image": ("a", ("annotations", 1, "image_id"), 9, "a.json[1]", "image 9"),
    "image is text": ("q", ("questions", 0, "image_id"), "42", "q.json[0]", "image_id"),
    "files exchanged": ("q", (), None, "q.json", "'questions'"),
}


@pytest.mark.parametrize(
    ("file", "at", "value", "where", "words"), VQA_BREAKS.values(), ids=VQA_BREAKS.keys()
)
def test_broken_vqa_v2(
    tmp_path: Path, file: str, at: tuple[Any, ...], value: Any, where: str, words: str
) -> None:
    both = {"q": QUESTIONS, "a": ANSWERS}
    if at:
        both[file] = changed(both[file], at, value)
    else:
        both = {"q": ANSWERS, "a": QUESTIONS}
    path, annotations = (write(tmp_path / f"{name}.json", both[name]) for name in "qa")
    with pytest.raises(DataError) as caught:
        read_samples("vqa-v2", Source(path=path, annotations=annotations, kind="vqa", split="val2014"))
    check(caught.value, 3, where, words)


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    lines = [
        GOOD,
        row(question="").removeprefix(GOOD) + "\n",
        "{\n",
        GOOD,
        row(image="/x").removeprefix(GOOD),
    ]
    path = write(tmp_path / "train.jsonl", "".join(lines))
    with pytest.raises(SafetyError) as caught:  # the gravest kind
        read_samples("jsonl", Source(path=path, kind="vqa"))
    message = str(caught.value)
    assert "3 rows" in message
    assert [f"train.jsonl:{number}:" in message for number in (1, 2, 3, 4, 5)] == [0, 1, 1, 0, 1]
    assert message.startswith(str(path))


def test_twenty_problems_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "{}\n" * 50)
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=path, kind="vqa"))
    message = str(caught.value)
    assert "and 17 more of this kind, up to train.jsonl:20\n" in message
    assert "train.jsonl:3:" in message
    assert "train.jsonl:4:" not in message
    assert "may be more" in message


def test_messages_hold_no_control_characters_and_no_endless_values(tmp_path: Path) -> None:
    bad = {"image": "0.png", "question": ["\x1b[2J" * 9000, "\u202e"], "answer": "x"}
    with pytest.raises(DataError) as caught:
        read_samples("jsonl", Source(path=write(tmp_path / "a.jsonl", [bad]), kind="vqa"))
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 1000
