"""Rows in JSON lines and JSON: what they hold, how they are written, what they name."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import ACCEPTED, Case, Content, lines, row

GOOD, LLM = ACCEPTED


def jsonl(what: str, content: Content, code: int, *words: str, name: str = "rows.jsonl", **more: Any) -> Case:
    source = {"path": name, **more.pop("source", {})}
    return Case(
        "jsonl" if "jsonl" in name else "json", what, code, words, {name: content}, source=source, **more
    )


def broken_row(what: str, code: int, *words: str, **changes: Any) -> Case:
    return Case("rows", what, code, words, {"rows.jsonl": lines(row(**changes))})


def texts() -> Iterator[Case]:
    for name, code, words, value in (
        ("NUL", GOOD, LLM, "r\0ed"),
        ("escapes", GOOD, LLM, "\x1b[31m\x9b"),
        ("right to left", GOOD, LLM, "\u202eder"),
        ("emoji and marks", GOOD, LLM, "👩‍👩‍👧 e\u0301\u0308"),
        ("lone surrogate", 3, ("surrogate",), "\ud800"),
        ("blank", 3, ("empty",), " \t\n"),
        ("no-break space only", 3, ("empty",), "\u00a0"),
        ("null", 3, ("null",), None),
        ("image mark", 3, ("<image>",), "a <image> b"),
        ("two million characters", 3, ("characters",), "x" * 2_000_000),
        ("list", 3, ("not text",), ["a"]),
        ("object", 3, ("not text",), {"text": "a"}),
        ("float", 3, ("not text",), 1.5),
        ("boolean", 3, ("not text",), True),
    ):
        for field in ("question", "answer"):
            yield broken_row(f"{field}: {name}", code, *words, **{field: value})
    yield broken_row("answer: whole number", GOOD, *LLM, answer=3)
    yield broken_row("answer: number of 4,000 digits", GOOD, *LLM, answer=10**4000)
    yield broken_row("question: whole number", 3, "not text", question=3)
    for field in ("question", "answer", "image"):
        yield broken_row(f"no {field}", 3, f"no column '{field}'", **{field: ...})
    yield broken_row("answers: empty list", 3, "not a list with texts", answers=[])
    yield broken_row("answers: text", 3, "not a list with texts", answers="red")
    yield broken_row("answers: lists in lists", 3, "not text", answers=[["red"]])
    yield broken_row("answers: with null", 3, "null", answers=[None, "red"])


def names() -> Iterator[Case]:
    for name, words in (
        ("../0.png", "climbs"),
        ("a/../../0.png", "climbs"),
        (".. /0.png", "climbs"),
        ("..\\0.png", "climbs"),
        ("/etc/passwd", "absolute"),
        ("\\0.png", "absolute"),
        ("//server/share/0.png", "UNC"),
        ("\\\\server\\share", "UNC"),
        ("C:\\0.png", "drive"),
        ("c:0.png", "drive"),
        ("http://example.org/0.png", "URL"),
        ("file:///etc/passwd", "URL"),
        ("data:text/plain,hello", "URL"),
        ("0.png\0.jpg", "NUL"),
        ("\udcff.png", "surrogate"),
    ):
        yield Case("paths", f"image {name!r}", 10, (words,), {"rows.jsonl": lines(row(image=name))})
    for what, value, words in (
        ("of 100,000 characters", "x" * 100_000, "does not exist"),
        ("of 300 folders", "a/" * 300 + "0.png", "does not exist"),
        ("with line breaks", "a\nerror: b", "does not exist"),
        ("with escapes", "\x1b]0;x\x07.png", "does not exist"),
        ("empty", "", "no image"),
        ("dot", ".", "names no file"),
        ("slashes", "./././", "names no file"),
        ("number", 7, "number"),
        ("negative number", -7, "number"),
        ("float", 1.5, "not a name"),
        ("boolean", True, "not a name"),
        ("object", {"a": 1}, "not a name"),
        ("list in a list", [["0.png"]], "not a name"),
        ("null", None, "no image"),
        ("empty list", [], "no image"),
        ("broken base64", "data:image/png;base64,!!!!", "base64"),
        ("base64 of no image", "data:image/png;base64,aGVsbG8=", "no image"),
        ("like a URL-encoded climb", "%2e%2e/0.png", "does not exist"),
    ):
        yield Case("paths", f"image {what}", 3, (words,), {"rows.jsonl": lines(row(image=value))})
    yield Case(
        "paths", "image: list of 200,000", GOOD, LLM, {"rows.jsonl": lines(row(image=["0.png"] * 200_000))}
    )
    for what, content, code, words in (
        ("a folder", lambda path: path.mkdir(), 3, "folder"),
        ("a pipe", lambda path: os.mkfifo(path), 3, "pipe"),
        ("a broken link", lambda path: path.symlink_to("nowhere"), 3, "no such file"),
        ("/dev/zero", lambda path: path.symlink_to("/dev/zero"), 3, "device"),
        ("a link to itself", lambda path: path.symlink_to("rows.jsonl"), 3, "rows.jsonl"),
        ("empty", "", 3, "empty"),
        ("blank lines", "\n \n\r\n", 3, "empty"),
        ("pickle", b"\x80\x04\x95abc", 10, "pickle"),
    ):
        yield Case("paths", f"rows: {what}", code, (words,), {"rows.jsonl": content})
    for suffix in ("pkl", "pt", "bin", "npy", "pkl.gz"):
        yield Case(
            "paths",
            f"rows.{suffix}",
            10,
            ("pickle",),
            {f"rows.{suffix}": b"x" * 99},
            source={"path": f"rows.{suffix}"},
        )
    for path in ("\x1b[31m.jsonl", "a\nb.jsonl", "~/rows.jsonl"):
        yield Case("paths", f"rows: missing {path[:20]!r}", 3, ("no such file",), source={"path": path})
    yield Case("paths", "rows: name of 300 characters", 3, ("too long",), source={"path": "x" * 300})
    yield Case("paths", "rows: name with NUL", 2, ("character",), source={"path": "a\0b"})
    yield Case(
        "paths",
        "images: no folder",
        3,
        ("no such folder",),
        {"rows.jsonl": lines(row())},
        source={"images": "nowhere"},
    )
    yield Case(
        "paths",
        "images: a file",
        3,
        ("no such folder",),
        {"rows.jsonl": lines(row())},
        source={"images": "0.png"},
    )


def writing() -> Iterator[Case]:
    good = lines(row(), row())
    yield jsonl("byte-order mark and CRLF", b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode(), GOOD, *LLM)
    yield jsonl("no last line end", good.rstrip(), GOOD, *LLM)
    for encoding in ("utf-16", "utf-32"):
        yield jsonl(encoding, good.encode(encoding), 3, "not UTF-8")
    yield jsonl("utf-16 without mark", good.encode("utf-16-le"), 3, "invalid JSON")
    yield jsonl(
        "latin-1", '{"image": "0.png", "question": "café", "answer": "x"}'.encode("latin-1"), 3, "not UTF-8"
    )
    yield jsonl("overlong UTF-8", b'{"question": "\xc0\xaf"}\n', 3, "not UTF-8")
    yield jsonl("cut in a character", good.encode() + "é".encode()[:1], 3, "not UTF-8")
    for what, text in (
        ("half an object", '{"image": "0.png"'),
        ("single quotes", "{'image': '0.png'}"),
        ("trailing comma", '{"image": "0.png",}'),
        ("comment", '// {"image": "0.png"}'),
        ("two objects on a line", "{} {}"),
        ("100,000 brackets", "[" * 100_000),
        ("100,000 objects deep", '{"a":' * 100_000),
        ("binary", "\x01\x02\x03"),
        ("number of 10,000 digits", '{"answer": ' + "1" * 10_000 + "}"),
    ):
        yield jsonl(what, text + "\n", 3, "invalid JSON")
        yield jsonl(what, text, 3, "invalid JSON", name="rows.json")
    for what, text, words in (
        ("number", "3", "neither an object nor a list"),
        ("text", '"red"', "neither an object nor a list"),
        ("null", "null", "neither an object nor a list"),
        ("NaN", "NaN", "neither an object nor a list"),
        ("empty object", "{}", "no column"),
        ("empty list", "[]", "list"),
        ("list of rows", json.dumps([row()]), "list of rows"),
        ("100,000 columns", json.dumps({str(n): n for n in range(100_000)}), "no column"),
        ("column of 1 MB", json.dumps({"x" * 1_000_000: 1}), "no column"),
    ):
        yield jsonl(what, text + "\n", 3, words)
    yield jsonl(
        "the same key twice",
        '{"image": "0.png", "question": "a", "answer": "x", "answer": "y"}\n',
        GOOD,
        *LLM,
    )
    yield jsonl("line of 50 MB", '{"image": "0.png", "question": "' + "x" * 50_000_000 + '"}\n', 3, "bytes")
    yield jsonl("line of 50 MB without end", "[" + "0," * 25_000_000, 3, "bytes")
    yield jsonl("text of 20 MB", lines(row(answer="x" * 20_000_000)), 3, "characters")
    yield jsonl("100,000 bad lines", "{}\n" * 100_000, 3, "17 more of this kind")
    yield jsonl("one bad row of two", lines(row(), row(answer="")), 3, ":2", "empty")
    yield jsonl(
        "half of the rows bad, skipped",
        lines(row(), row(answer="")),
        3,
        "1 of 2 rows",
        recipe={"data": {"on_bad_row": "skip"}},
    )
    yield jsonl(
        "a bad row of 200, skipped",
        lines(*[row()] * 199, row(answer="")),
        GOOD,
        "left out 1 of 200",
        recipe={"data": {"on_bad_row": "skip"}},
    )
    yield jsonl("object", json.dumps({"data": [row()]}), 3, "no list of rows", name="rows.json")
    yield jsonl("empty list", "[]", 3, "no row", name="rows.json")
    yield jsonl("JSON lines", good, 3, "name it rows.jsonl", name="rows.json")
    yield jsonl("list", json.dumps([row()]), GOOD, *LLM, name="rows.json")
    yield jsonl("100 MB list of numbers", lambda path: numbers(path, 25_000_000), 3, "rows", name="rows.json")
    packed = gzip.compress(good.encode())
    yield jsonl("gzip", packed, GOOD, *LLM, name="rows.jsonl.gz")
    yield jsonl("gzip cut off", packed[:-9], 3, "gzip", name="rows.jsonl.gz")
    yield jsonl(
        "gzip with a flipped byte",
        packed[:20] + bytes([packed[20] ^ 255]) + packed[21:],
        3,
        "rows.jsonl.gz",
        name="rows.jsonl.gz",
    )
    yield jsonl("no gzip", good, 3, "gzip", name="rows.jsonl.gz")
    yield jsonl(
        "gzip bomb of 200 MB on a line",
        gzip.compress(b"[" + bytes(200_000_000), 9),
        3,
        "bytes",
        name="rows.jsonl.gz",
    )


def numbers(path: Path, count: int) -> None:
    path.write_text("[" + "0," * count + "0]")


CASES = [*texts(), *names(), *writing()]
