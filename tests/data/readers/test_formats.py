"""Each reader on an honest data set: what the samples hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.readers import READERS, Source, read_samples
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError, RecipeError


def write(path: Path, value: Any) -> Path:
    """A file: text as it is, bytes as they are, `.jsonl` a row a line, else JSON."""
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


def names(sample: Sample) -> list[str]:
    return [image.path.name for image in sample.images if image.path]


def test_jsonl_questions(tmp_path: Path) -> None:
    rows = [
        {"image": "a/0.png", "question": " What? ", "answer": "red", "id": 7},
        {"image": "1.png", "question": "How many?", "answer": 3},
        {"image": "1.png", "question": "Is it?", "answers": ["no", "yes", "yes"], "answer_type": "odd"},
    ]
    path = write(tmp_path / "train.jsonl", rows)
    first, second, third = read_samples("jsonl", Source(path=path, kind="vqa"))
    assert first.turns == (Turn("user", "What?", 1), Turn("assistant", "red"))
    assert (first.where, first.sample_id, first.answer_type) == ("train.jsonl:1", "7", "other")
    assert first.references == ("red",)
    assert first.images[0].path == tmp_path / "a" / "0.png"
    assert (second.answer, second.answer_type) == ("3", "number")
    assert (third.answer, third.references, third.answer_type) == ("yes", ("no", "yes", "yes"), "odd")
    assert second.images[0] is third.images[0]  # one object a distinct image


def test_json_list_of_lists_with_positions_and_image_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.json", [["is it red?", "yes", 0], ["what is it?", "circle", 12]])
    (tmp_path / "images").mkdir()
    source = Source(
        path=path,
        kind="vqa",
        images=tmp_path / "images",
        columns={"question": 0, "answer": 1, "image": 2},
        image_name="{:04d}.png",
        prompt="Q: {question} A:",
    )
    first, second = read_samples("jsonl", source)
    assert first.turns[0].text == "Q: is it red? A:"
    assert (first.where, first.answer_type) == ("questions.json[0]", "yes/no")
    assert second.images[0].path == tmp_path / "images" / "0012.png"


def test_a_question_with_braces_is_not_a_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"image": "0.png", "question": "{answer} {0}?", "answer": "x"}])
    (sample,) = read_samples("jsonl", Source(path=path, kind="vqa", prompt="{question} {now}"))
    assert sample.turns[0].text == "{answer} {0}? {now}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bom_line_ends_and_blank_lines_are_harmless(tmp_path: Path, end: str) -> None:
    line = '{"image": "0.png", "caption": "a\u2028b"}'
    text = f"\ufeff{line}{end}{end}  {end}{line}"
    path = write(tmp_path / "a.jsonl", text.encode())
    samples = read_samples("jsonl", Source(path=path, kind="caption"))
    assert [sample.where for sample in samples] == ["a.jsonl:1", "a.jsonl:4"]
    assert {sample.answer for sample in samples} == {"a\u2028b"}


def test_limit_and_gzip(tmp_path: Path) -> None:
    rows = b"".join(b'{"image": "%d.png", "caption": "c"}\n' % number for number in range(5))
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(rows + b"not reached\n"))
    assert len(read_samples("jsonl", Source(path=path, kind="caption", limit=3))) == 3


def test_captions(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "caption": "a cat"},
        {"image": "1.png", "captions": ["a dog", "the dog"], "id": "x"},
        {"image": "2.png", "caption": "a cow", "captions": ["a cow", "cattle"]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    samples = read_samples("jsonl", Source(path=path, kind="caption"))
    assert [sample.answer for sample in samples] == ["a cat", "a dog", "the dog", "a cow"]
    assert samples[0].turns[0] == Turn("user", "Describe the image.", 1)
    assert samples[1].references == samples[2].references == ("a dog", "the dog")
    assert samples[3].references == ("a cow", "cattle")
    assert {sample.answer_type for sample in samples} == {None}
    scored = read_samples("jsonl", Source(path=path, kind="caption", expand=False, prompt="Say."))
    assert [(sample.answer, len(sample.references)) for sample in scored] == [
        ("a cat", 1),
        ("a dog", 2),
        ("a cow", 2),
    ]
    assert scored[0].turns[0].text == "Say."


def test_csv(tmp_path: Path) -> None:
    text = 'picture,question,answer\r\n0.png,"what, ""really""?\nyes",red\r\n\r\n1.png,how many?,12\r\n'
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode())
    first, second = read_samples("csv", Source(path=path, kind="vqa", columns={"image": "picture"}))
    assert first.turns[0].text == 'what, "really"?\nyes'
    assert (first.where, second.where) == ("a.csv:2", "a.csv:5")
    assert (second.answer, second.answer_type) == ("12", "number")


def test_tsv_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "7\ta cat, sleeping\n8\ta dog\n")
    source = Source(path=path, kind="caption", columns={"image": 0, "caption": 1}, image_name="{:03d}.jpg")
    samples = read_samples("csv", source)
    assert [(names(sample), sample.answer) for sample in samples] == [
        (["007.jpg"], "a cat, sleeping"),
        (["008.jpg"], "a dog"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "0.png", "text": "red"}\n{"file_name": "b/1.png", "text": "blue"}'),
        ("metadata.csv", "file_name,text\n0.png,red\nb/1.png,blue\n"),
    ],
)
def test_imagefolder(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / name, text)
    for source in (
        Source(path=tmp_path, split="train", kind="caption", columns={"caption": "text"}),
        Source(path=tmp_path / "train", kind="caption", columns={"caption": "text"}),
    ):
        first, second = read_samples("imagefolder", source)
        assert (first.answer, first.images[0].path) == ("red", tmp_path / "train" / "0.png")
        assert second.images[0].path == tmp_path / "train" / "b" / "1.png"


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "id": "one",
            "image": "coco/0.jpg",
            "conversations": talk(
                ("human", "<image>\nWhat?"), ("gpt", "A cat."), ("human", "And?"), ("gpt", "Two.")
            ),
        },
        {
            "image": ["1.jpg", "2.jpg"],
            "conversations": talk(("human", "Same?\n<image><image>"), ("gpt", "No")),
        },
        {
            "id": 3,
            "conversations": talk(("system", "Be brief."), ("human", "2 + 2?"), ("gpt", "4")),
        },
        {
            "image": ["3.jpg", "4.jpg"],
            "conversations": talk(
                ("human", "<image>"), ("gpt", "A"), ("human", "<image>\nand this?"), ("gpt", "B")
            ),
        },
    ]
    first, two, three, four = read_samples(
        "llava", Source(path=write(tmp_path / f"a{suffix}", rows), kind="dialogue")
    )
    assert first.turns == (
        Turn("user", "What?", 1),
        Turn("assistant", "A cat."),
        Turn("user", "And?"),
        Turn("assistant", "Two."),
    )
    assert (first.references, first.sample_id) == (("Two.",), "one")
    assert (two.turns[0], names(two)) == (Turn("user", "Same?\n", 2, (6, 6)), ["1.jpg", "2.jpg"])
    assert (three.images, three.turns[0], three.sample_id) == ((), Turn("system", "Be brief."), "3")
    assert [turn.images for turn in four.turns] == [1, 0, 1, 0]
    assert four.turns[0].text == ""


def test_llava_rows_with_other_names(tmp_path: Path) -> None:
    rows = [
        {
            "images": ["0.jpg"],
            "question": "ignored",
            "messages": [
                {"role": "user", "content": "<image>Is it?"},
                {"role": "assistant", "content": "yes"},
            ],
        }
    ]
    path = write(tmp_path / "a.json", rows)
    (sample,) = read_samples("llava", Source(path=path, kind="vqa", columns={"messages": "messages"}))
    assert (sample.turns[0], sample.answer_type) == (Turn("user", "Is it?", 1), "yes/no")


def test_trl_messages(tmp_path: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Look "}, {"type": "text", "text": "here."}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}
    rows = [
        {"images": ["0.png"], "messages": [{"role": "user", "content": parts}, answer]},
        # Without places, the images go before the first user turn, as TRL puts them.
        {
            "images": ["0.png", "1.png"],
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Compare."},
                {"role": "assistant", "content": "ok"},
            ],
        },
        # An image of its own, and one of the row's.
        {
            "image": "2.png",
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "own.png"}, *parts[:2]]},
                answer,
            ],
        },
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    first, two, three, four = read_samples("jsonl", Source(path=path, kind="dialogue"))
    assert first.turns[0] == Turn("user", "Look here.", 1)
    assert [turn.images for turn in two.turns] == [0, 2, 0]
    assert (names(three), three.turns[0].images) == (["own.png", "2.png"], 2)
    assert four.images == ()


def test_trl_prompt_and_completion(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "prompt": "What?", "completion": "A cat."},
        {
            "images": ["1.png"],
            "prompt": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "A dog."},
                {"role": "user", "content": "Sure?"},
            ],
            "completion": [{"role": "assistant", "content": "Yes."}],
        },
    ]
    first, two = read_samples("jsonl", Source(path=write(tmp_path / "a.jsonl", rows), kind="dialogue"))
    assert first.turns == (Turn("user", "What?", 1), Turn("assistant", "A cat."))
    assert [turn.images for turn in two.turns] == [1, 0, 0, 0]
    assert two.answer == "Yes."


COCO = {
    "info": {},
    "images": [{"id": 42, "file_name": "000000000042.jpg"}, {"id": 7, "file_name": "000000000007.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A bear."},
        {"image_id": 42, "id": 2, "caption": "A shoe. "},
        {"image_id": 42, "id": 3, "caption": "Shoes"},
    ],
}


def test_coco(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", COCO)
    samples = read_samples("coco", Source(path=path, kind="caption"))
    assert [(sample.answer, sample.where) for sample in samples] == [
        ("A shoe.", "captions.json[1]"),
        ("Shoes", "captions.json[2]"),
        ("A bear.", "captions.json[0]"),
    ]
    assert samples[0].references == ("A shoe.", "Shoes")
    assert (names(samples[0]), samples[0].sample_id) == (["000000000042.jpg"], "42")
    scored = read_samples("coco", Source(path=path, kind="caption", expand=False))
    assert [(sample.answer, sample.sample_id) for sample in scored] == [("A shoe.", "42"), ("A bear.", "7")]
    assert len(read_samples("coco", Source(path=path, kind="caption", limit=1))) == 2
    named = read_samples("coco", Source(path=path, kind="caption", image_name="val_{id:06d}.png"))
    assert names(named[0]) == ["val_000042.png"]


QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "How many?", "question_id": 420},
        {"image_id": 42, "question": "Is it?", "question_id": 421},
    ],
}
ANSWERS = {
    "annotations": [
        {
            "question_id": 421,
            "image_id": 42,
            "answer_type": "yes/no",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "yes"}] * 9 + [{"answer": "no"}],
        },
        {
            "question_id": 420,
            "image_id": 42,
            "answer_type": "number",
            "multiple_choice_answer": "2",
            "answers": [{"answer": "2"}] * 9 + [{"answer": ""}],
        },
    ]
}


def test_vqa_v2(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.json.gz", gzip.compress(json.dumps(QUESTIONS).encode()))
    annotations = write(tmp_path / "annotations.json", ANSWERS)
    first, second = read_samples(
        "vqa-v2", Source(path=path, annotations=annotations, kind="vqa", prompt="{question} Briefly.")
    )
    assert first.turns == (Turn("user", "How many? Briefly.", 1), Turn("assistant", "2"))
    assert (first.answer_type, first.sample_id) == ("number", "420")
    assert first.references == ("2",) * 9 + ("",)
    assert names(first) == ["COCO_val2014_000000000042.jpg"]
    assert (second.answer_type, second.where) == ("yes/no", "questions.json.gz[1]")
    assert second.images[0] is first.images[0]
    named = Source(path=path, annotations=annotations, kind="vqa", image_name="{}.png", limit=1)
    assert [names(sample) for sample in read_samples("vqa-v2", named)] == [["42.png"]]


def test_the_trainers_rows() -> None:
    picture = Image.new("RGB", (3, 2), (255, 0, 0))
    row = {"images": [picture, picture.copy()], "prompt": "Same?", "completion": "yes"}
    (sample,) = row_to_samples(row, Source("row 0", "dialogue"), "row 0")
    assert sample.images[0] == sample.images[1]  # by pixels
    assert sample.images[0].key.startswith("sha256:")
    assert open_image(sample.images[0], 100).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="no folder"):
        row_to_samples({"image": "0.png", "caption": "x"}, Source("row 0", "caption"), "row 0")


def test_keys_differ_over_folders_and_agree_over_sources(tmp_path: Path) -> None:
    row = [{"image": "0.png", "caption": "x"}]
    keys = []
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (sample,) = read_samples(
            "jsonl", Source(path=write(tmp_path / name / "a.jsonl", row), kind="caption")
        )
        keys.append(sample.images[0].key)
    whole = write(tmp_path / "all.jsonl", [{"image": "test/0.png", "caption": "y"}])
    (again,) = read_samples("jsonl", Source(path=whole, kind="caption"))
    assert keys[0] != keys[1]
    assert again.images[0].key == keys[1]


WRONG_RECIPES = {
    "format": ("jsnl", {}, "jsonl"),
    "kind": ("jsonl", {"kind": "vqq"}, "vqa"),
    "field": ("jsonl", {"columns": {"qestion": "q"}}, "question"),
    "position": ("jsonl", {"columns": {"question": -1}}, "0"),
    "mixed columns": ("csv", {"columns": {"question": 1, "answer": "a"}}, "positions"),
    "prompt without question": ("jsonl", {"prompt": "Answer!"}, "{question}"),
    "prompt with marker": ("jsonl", {"prompt": "<image> {question}"}, "text only"),
    "empty prompt": ("jsonl", {"kind": "caption", "prompt": " "}, "text"),
    "prompt of a dialogue": ("jsonl", {"kind": "dialogue", "prompt": "x"}, "remove"),
    "attribute in pattern": ("jsonl", {"image_name": "{0.__class__}"}, "{}.png"),
    "index in pattern": ("jsonl", {"image_name": "{0[0]}"}, "{}.png"),
    "width in pattern": ("jsonl", {"image_name": "{:099999999d}"}, "{}.png"),
    "conversion in pattern": ("jsonl", {"image_name": "{!r}"}, "{}.png"),
    "open pattern": ("jsonl", {"image_name": "{"}, "{}.png"),
    "annotations": ("jsonl", {"annotations": "a.json"}, "remove"),
    "no annotations": ("vqa-v2", {}, "annotations"),
    "split": ("jsonl", {"split": "train"}, "remove"),
    "captions format for questions": ("coco", {}, "caption"),
    "columns of a fixed format": ("coco", {"kind": "caption", "columns": {"image": "i"}}, "remove"),
    "prompt for rows with prompts": ("jsonl", {"prompt": "{question}!"}, "remove"),
}


@pytest.mark.parametrize(("format", "given", "hint"), WRONG_RECIPES.values(), ids=WRONG_RECIPES.keys())
def test_wrong_recipes(tmp_path: Path, format: str, given: dict[str, Any], hint: str) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write(tmp_path / "a.jsonl", [row])
    source = Source(**{"path": path, "kind": "vqa", **given})
    with pytest.raises(RecipeError) as caught:
        read_samples(format, source)
    assert caught.value.exit_code == 2
    assert caught.value.where
    assert hint in (caught.value.fix or "")


def test_vqa_v2_needs_a_split(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", {"questions": QUESTIONS["questions"]})
    annotations = write(tmp_path / "a.json", ANSWERS)
    with pytest.raises(RecipeError, match="split"):
        read_samples("vqa-v2", Source(path=path, annotations=annotations, kind="vqa"))


def test_all_formats_are_listed() -> None:
    assert list(READERS) == [
        *("jsonl", "csv", "imagefolder", "llava", "coco", "vqa-v2", "refcoco", "llava-rlhf", "datasets"),
        *("parquet", "webdataset"),
    ]


@pytest.mark.parametrize("kind", ["llava", "jsonl"])
def test_a_system_text_beside_the_messages_is_the_first_turn(kind: str, tmp_path: Path) -> None:
    names = {
        "llava": ("conversations", "from", "value", "human", "gpt"),
        "jsonl": ("messages", "role", "content", "user", "assistant"),
    }
    column, role, text, user, assistant = names[kind]
    talk = [{role: user, text: "hi?"}, {role: assistant, text: "yes"}]
    rows = [
        {"system": " Be brief. ", column: talk},
        {"system": None, column: talk},
        {"system": "", column: talk},
        {"system": "Be brief.", column: [{role: "system", text: "Be brief."}, *talk]},
    ]
    suffix = ".json" if kind == "llava" else ".jsonl"
    samples = read_samples(kind, Source(path=write(tmp_path / f"a{suffix}", rows), kind="dialogue"))
    shown = [[(turn.role, turn.text) for turn in sample.turns] for sample in samples]
    plain = [("user", "hi?"), ("assistant", "yes")]
    assert shown == [[("system", "Be brief."), *plain], plain, plain, [("system", "Be brief."), *plain]]


def test_two_system_texts_are_refused(tmp_path: Path) -> None:
    talk = [{"from": "system", "value": "Be long."}, {"from": "human", "value": "hi?"}]
    rows = [{"system": "Be brief.", "conversations": [*talk, {"from": "gpt", "value": "yes"}]}]
    with pytest.raises(DataError, match="another one in them"):
        read_samples("llava", Source(path=write(tmp_path / "a.json", rows), kind="dialogue"))
