"""CSV, LLaVA, COCO captions, VQA v2, messages, folders and the `datasets` library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.hostile.case import ACCEPTED, Case, lines

GOOD, LLM = ACCEPTED
HEAD = "image,question,answer\n"


def csv(what: str, text: str | bytes, code: int, *words: str, name: str = "rows.csv", **source: Any) -> Case:
    return Case("csv", what, code, words, {name: text}, source={"format": "csv", "path": name, **source})


def of_csv() -> Iterator[Case]:
    yield csv("good", HEAD + "0.png,what?,red\n", GOOD, *LLM)
    yield csv("tabs", "image\tquestion\tanswer\n0.png\twhat?\tred\n", GOOD, *LLM, name="rows.tsv")
    yield csv(
        "byte-order mark, quotes and line breaks", "\ufeff" + HEAD + '0.png,"a ""b""\nc",red\n', GOOD, *LLM
    )
    yield csv("semicolons", HEAD.replace(",", ";") + "0.png;what?;red\n", 3, "commas")
    yield csv("open quote", HEAD + '0.png,"what?,red\n', 3, "broken CSV")
    yield csv("text behind a quote", HEAD + '0.png,"what?"x,red\n', 3, "broken CSV")
    yield csv("too many values", HEAD + "0.png,what?,red,blue\n", 3, "4 values")
    yield csv("too few values", HEAD + "0.png\n", 3, "1 values")
    yield csv("header twice", "image,image,answer\n0.png,a,b\n", 3, "more than once")
    yield csv("header only", HEAD, 3, "no row")
    yield csv("empty", "", 3, "empty")
    yield csv("NUL", HEAD + "0.png,wh\0at?,red\n", GOOD, *LLM)
    yield csv("field of 10 MB", HEAD + "0.png," + "x" * 10_000_000 + ",red\n", 3, "broken CSV")
    yield csv(
        "100,000 columns",
        ",".join(f"c{n}" for n in range(100_000)) + "\n" + "," * 99_999 + "\n",
        3,
        "no column",
    )
    yield csv("50,000 empty answers", HEAD + "0.png,what?,\n" * 50_000, 3, "17 more")
    yield csv("latin-1", (HEAD + "0.png,café,oui\n").encode("latin-1"), 3, "not UTF-8")
    yield csv("utf-16", HEAD.encode("utf-16"), 3, "not UTF-8")
    yield csv("positions", "0.png,what?,red\n", GOOD, *LLM, columns={"image": 0, "question": 1, "answer": 2})
    yield csv(
        "position beyond the row",
        "0.png,what?\n",
        3,
        "position",
        columns={"image": 0, "question": 1, "answer": 9},
    )
    yield csv("names and positions", HEAD, 2, "mixed", columns={"image": 0, "question": "question"})
    yield csv("column that is not there", HEAD + "0.png,a,b\n", 3, "no column 'x'", columns={"answer": "x"})


def llava(what: str, rows: Any, code: int, *words: str, kind: str = "dialogue") -> Case:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    return Case(
        "llava",
        what,
        code,
        words,
        {"rows.json": text},
        source={"format": "llava", "path": "rows.json"},
        kind=kind,
    )


def talk(*turns: tuple[Any, Any], image: Any = "0.png", **more: Any) -> dict[str, Any]:
    turns_written = [{"from": role, "value": text} for role, text in turns]
    return {"conversations": turns_written, **({} if image is ... else {"image": image}), **more}


def of_llava() -> Iterator[Case]:
    ask, answer = ("human", "<image>\nwhat?"), ("gpt", "red")
    yield llava("good", [talk(ask, answer)], GOOD, *LLM)
    yield llava("text only", [talk(("human", "why?"), answer, image=...)], GOOD, *LLM)
    yield llava("mark without image", [talk(ask, answer, image=...)], 3, "0 image(s)")
    yield llava("image without mark", [talk(("human", "what?"), answer)], 3, "markers")
    yield llava("two marks", [talk(("human", "<image><image>what?"), answer)], 3, "markers")
    yield llava("100,000 marks", [talk(("human", "<image>" * 100_000 + "what?"), answer)], 3, "markers")
    yield llava("mark in the midst", [talk(("human", "what <image> is it?"), answer)], GOOD, *LLM)
    yield llava("mark in the answer", [talk(ask, ("gpt", "red <image>"))], 3, "image")
    yield llava("the model first", [talk(answer, ask, answer)], 3, "turn 1")
    yield llava("user twice", [talk(ask, ("human", "b"), answer)], 3, "turn 2")
    yield llava("no answer", [talk(ask)], 3, "assistant turn")
    yield llava("no turns", [talk()], 3, "not a list with turns")
    yield llava("turns are text", [{"image": "0.png", "conversations": "hello"}], 3, "not a list with turns")
    yield llava("turns are null", [{"image": "0.png", "conversations": None}], 3, "not a list with turns")
    yield llava("turn is a number", [{"image": "0.png", "conversations": [3]}], 3, "not an object")
    yield llava("unknown role", [talk(ask, ("tool", "x"))], 3, "unknown role")
    yield llava("role is a list", [talk(ask, (["gpt"], "x"))], 3, "unknown role")
    yield llava("text is a number", [talk(ask, ("gpt", 3))], 3, "neither text nor a list")
    yield llava("text is null", [talk(ask, ("gpt", None))], 3, "neither text nor a list")
    yield llava("empty answer", [talk(ask, ("gpt", " "))], 3, "empty")
    yield llava("two system texts", [talk(("system", "a"), ask, answer, system="b")], 3, "another")
    yield llava("object", {"a": 1}, 3, "no list of rows")
    yield llava("deep", "[" * 50_000, 3, "nested too deeply")
    yield llava("20,000 turns", [talk(ask, *[answer, ("human", "and?")] * 10_000, answer)], GOOD, *LLM)


def of_messages() -> Iterator[Case]:
    def chat(what: str, messages: Any, code: int, *words: str, **row: Any) -> Case:
        rows = {"rows.jsonl": lines({"messages": messages, **row})}
        return Case("messages", what, code, words, rows, kind="dialogue")

    def user(*parts: Any) -> list[Any]:
        return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "red"}]

    text, shown = {"type": "text", "text": "what?"}, {"type": "image"}
    yield chat("good", user(shown, text), GOOD, *LLM, images=["0.png"])
    yield chat("image_url", user({"type": "image_url", "image_url": {"url": "0.png"}}, text), GOOD, *LLM)
    yield chat(
        "image_url on the web",
        user({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, text),
        10,
        "URL",
    )
    yield chat("image_url without url", user({"type": "image_url"}, text), 3, "without a url")
    yield chat("image_url climbs", user({"type": "image_url", "image_url": "../0.png"}, text), 10, "climbs")
    yield chat("more places than images", user(shown, shown, text), 3, "1 image(s)", images=["0.png"])
    yield chat("more images than places", user(shown, text), 3, "2 image(s)", images=["0.png", "1.png"])
    yield chat("image between texts", user(text, shown, text), GOOD, *LLM, images=["0.png"])
    yield chat("unknown part", user({"type": "audio"}, text), 3, "neither text nor an image")
    yield chat("part without type", user({}, text), 3, "neither text nor an image")
    yield chat("part is a number", user(3), 3, "neither text nor an image")
    yield chat("text part without text", user({"type": "text"}), 3, "neither text nor an image")
    yield chat("tool call", [{"role": "tool", "content": "x"}], 3, "unknown role")
    yield chat(
        "content is an object",
        [{"role": "user", "content": {"a": 1}}, {"role": "assistant", "content": "x"}],
        3,
        "neither text nor a list",
    )
    yield chat("JSON text", json.dumps(user(text)), 3, "not a list with turns")
    yield chat(
        "image in an answer",
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": [shown]}],
        3,
        "only user",
    )


def coco(what: str, value: Any, code: int, *words: str, kind: str = "caption", **source: Any) -> Case:
    text = value if isinstance(value, str) else json.dumps(value)
    return Case(
        "coco",
        what,
        code,
        words,
        {"rows.json": text},
        source={"format": "coco", "path": "rows.json", **source},
        kind=kind,
    )


def of_coco() -> Iterator[Case]:
    def both(images: Any = ..., annotations: Any = ...) -> dict[str, Any]:
        return {
            "images": [{"id": 1, "file_name": "0.png"}] if images is ... else images,
            "annotations": [{"image_id": 1, "caption": "red"}] if annotations is ... else annotations,
        }

    yield coco("good", both(), GOOD, *LLM)
    yield coco("as questions", both(), 2, "caption", kind="vqa")
    yield coco("with columns", both(), 2, "columns", columns={"image": "x"})
    yield coco(
        "detection", both(annotations=[{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]), 3, "detection file"
    )
    yield coco("no images", both(images=[]), 3, "'images'")
    yield coco("images are an object", both(images={"a": 1}), 3, "'images'")
    yield coco("no annotations", {"images": [{"id": 1, "file_name": "0.png"}]}, 3, "'annotations'")
    yield coco("list", [1], 3, "'images'")
    yield coco("id is text", both(images=[{"id": "1", "file_name": "0.png"}]), 3, "whole number")
    yield coco("id is a boolean", both(images=[{"id": True, "file_name": "0.png"}]), 3, "whole number")
    yield coco("id twice", both(images=[{"id": 1, "file_name": "0.png"}] * 2), 3, "also that of")
    yield coco("image is a number", both(images=[3]), 3, "no object")
    yield coco("annotation is null", both(annotations=[None]), 3, "no object")
    yield coco("caption of no image", both(annotations=[{"image_id": 9, "caption": "x"}]), 3, "lacks")
    yield coco(
        "image without caption",
        both(images=[{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}]),
        3,
        "no caption",
    )
    yield coco("empty caption", both(annotations=[{"image_id": 1, "caption": ""}]), 3, "empty")
    yield coco("caption is a list", both(annotations=[{"image_id": 1, "caption": ["a"]}]), 3, "not text")
    yield coco("no file name", both(images=[{"id": 1}]), 3, "file_name")
    yield coco("file name climbs", both(images=[{"id": 1, "file_name": "../0.png"}]), 10, "climbs")
    yield coco("id beyond 64 bits", both(images=[{"id": 10**40, "file_name": "0.png"}]), 3, "lacks")
    yield coco(
        "pattern",
        both(images=[{"id": 0}], annotations=[{"image_id": 0, "caption": "x"}]),
        GOOD,
        *LLM,
        image_name="{}.png",
    )


def of_vqa() -> Iterator[Case]:
    question = {"question_id": 1, "image_id": 0, "question": "what?"}
    answered = {"question_id": 1, "image_id": 0, "answers": [{"answer": "red"}], "answer_type": "other"}

    def vqa(what: str, questions: Any, answers: Any, code: int, *words: str, **source: Any) -> Case:
        files = {
            "q.json": questions if isinstance(questions, str) else json.dumps(questions),
            "a.json": answers if isinstance(answers, str) else json.dumps(answers),
        }
        given = {
            "format": "vqa-v2",
            "path": "q.json",
            "annotations": "a.json",
            "image_name": "{}.png",
            **source,
        }
        return Case("vqa-v2", what, code, words, files, source=given)

    def with_answer(**changes: Any) -> dict[str, Any]:
        return {"annotations": [{**answered, **changes}]}

    asked = {"questions": [question]}
    yield vqa("good", asked, with_answer(), GOOD, *LLM)
    yield vqa("swapped files", with_answer(), asked, 3, "'questions'")
    yield vqa("no questions", {"questions": []}, with_answer(), 3, "'questions'")
    yield vqa("list", [1], with_answer(), 3, "'questions'")
    yield vqa("broken annotations", asked, "{", 3, "a.json", "invalid JSON")
    yield vqa("no annotations file", asked, with_answer(), 3, "no such file", annotations="b.json")
    yield vqa("question alone", asked, {"annotations": [{**answered, "question_id": 2}]}, 3, "no annotation")
    yield vqa("other image", asked, with_answer(image_id=7), 3, "image 7")
    yield vqa("answers are text", asked, with_answer(answers="red"), 3, "not a list of texts")
    yield vqa("answers are numbers", asked, with_answer(answers=[1, 2]), 3, "not a list of texts")
    yield vqa("answers are empty", asked, with_answer(answers=[]), 3, "not a list of texts")
    yield vqa("answer to learn is empty", asked, with_answer(multiple_choice_answer=""), 3, "empty")
    yield vqa("type is a list", asked, with_answer(answer_type=[1]), 3, "answer_type")
    yield vqa(
        "id is text", {"questions": [{**question, "question_id": "1"}]}, with_answer(), 3, "whole number"
    )
    yield vqa(
        "image id is a float",
        {"questions": [{**question, "image_id": 0.5}]},
        with_answer(),
        3,
        "whole number",
    )
    yield vqa(
        "negative image id",
        {"questions": [{**question, "image_id": -1}]},
        with_answer(image_id=-1),
        3,
        "does not exist",
    )
    yield vqa("names by split, and none said", asked, with_answer(), 2, "split", image_name="{split}/{}.png")
    yield vqa("split climbs", asked, with_answer(), 10, "climbs", image_name="{split}/{}.png", split="..")


def of_datasets() -> Iterator[Case]:
    def library(what: str, files: dict[str, Any], code: int, *words: str, **source: Any) -> Case:
        return Case("datasets", what, code, words, files, source={"format": "datasets", **source})

    yield library("no such thing", {}, 3, "no such file or folder", path="no/where/at/all")
    yield library("Hub id offline", {}, 3, "cannot be reached", path="owner/name")
    yield library("empty folder", {"d/a.txt": "x"}, 3, "no data set", path="d")
    yield library(
        "broken parquet", {"d/a.parquet": b"PAR1" + bytes(99) + b"PAR1"}, 3, "cannot open it", path="d"
    )
    yield library("parquet of nothing", {"d/a.parquet": b""}, 3, "cannot open it", path="d")
    yield library("broken arrow", {"d/a.arrow": b"ARROW1" + bytes(99)}, 3, "cannot open it", path="d")
    yield library(
        "saved state that is a list",
        {"d/state.json": "[]", "d/dataset_info.json": "[]"},
        3,
        "cannot open it",
        path="d",
    )
    yield library("WebDataset", {"d/000.tar": bytes(2048)}, 3, "WebDataset", path="d")
    yield library("pickle", {"d.pkl": b"\x80\x04."}, 10, "pickle", path="d.pkl")
    yield library(
        "slice of a split", {"d/a.csv": HEAD + "0.png,a,b\n"}, 3, "limit: 5", path="d", split="train[:5]"
    )
    yield library("unknown split", {"d/a.csv": HEAD + "0.png,a,b\n"}, 3, "no split", path="d", split="tset")
    yield library("good", {"d/a.csv": HEAD + "0.png,a,b\n"}, GOOD, *LLM, path="d", images=".")
    yield Case(
        "datasets",
        "imagefolder without metadata",
        3,
        ("metadata",),
        {"d/x.txt": "a"},
        source={"format": "imagefolder", "path": "d"},
    )
    yield Case(
        "datasets",
        "imagefolder with both kinds",
        3,
        ("both",),
        {"d/metadata.csv": "a", "d/metadata.jsonl": "a"},
        source={"format": "imagefolder", "path": "d"},
    )


CASES = [*of_csv(), *of_llava(), *of_messages(), *of_coco(), *of_vqa(), *of_datasets()]
