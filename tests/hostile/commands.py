"""Arguments of every command."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.case import Case, lines, row

ROWS = {"rows.jsonl": lines(row())}


def command(arguments: tuple[str, ...], code: int, *words: str) -> Case:
    what = (
        " ".join(argument if len(argument) < 30 else argument[:27] + "..." for argument in arguments)
        .encode("unicode_escape")
        .decode()
    )
    return Case("arguments", what, code, words, ROWS, arguments)


def cases() -> Iterator[Case]:
    odd = "\udcff\udcfe"
    for verb in ("train", "check", "plan", "cache"):
        yield command((verb,), 2, "--vlm" if verb == "check" else "Missing argument")
        yield command((verb, "nowhere.yaml"), 2, "no such file")
        yield command((verb, odd), 2, "UTF-8")
        yield command((verb, "\x1b[31m"), 2, "\\x1b")
        yield command((verb, "x" * 5000), 2, "x")
    for verb in ("eval", "chat", "merge", "verify", "export", "search", "generate", "unmerge", "attach"):
        yield command((verb,), 2, "Missing argument")
        yield command((verb, odd), 2, "UTF-8")
        yield command((verb, "--nonsense"), 2, "nonsense")
    for folder, evaluated, merged in (
        ("nowhere", 4, 2),
        ("0.png", 4, 2),
        ("\x1b[31m", 4, 2),
        ("x" * 5000, 7, 7),
        ("", 2, 2),
    ):
        yield command(("eval", folder), evaluated, "error")
        yield command(("merge", folder, "-o", "out"), merged, "error")
    yield command((), 2, "Usage")
    yield command(("nonsense",), 2, "nonsense")
    yield command(("\x1b[31m",), 2, "\\x1b")
    yield command(("train", "recipe.yaml"), 2, "no run folder")
    yield command(("train", "recipe.yaml", "-o", "."), 2, "not empty")
    yield command(("train", "recipe.yaml", "-o", "0.png"), 2, "not empty")
    yield command(("train", "recipe.yaml", "-o", "0.png/x"), 7, "0.png")
    yield command(("train", "recipe.yaml", "-o", "x" * 300), 7, "long")
    yield command(("train", "recipe.yaml", "-o", "/proc/x"), 7, "/proc/x")
    yield command(("train", "recipe.yaml", "-o", "out", "--resume"), 2, "out")
    for memory in (
        "",
        "8",
        "GB",
        "-8GB",
        "0GB",
        "9" * 400 + "GB",
        "99999999999GB",
        "1e5GB",
        "8 potatoes",
        "\x1b[31m",
        "nan",
    ):
        yield command(("plan", "recipe.yaml", "--memory", memory), 2, "--memory")
    for option, value in (
        *(("--codebook-size", value) for value in ("0", "-1", "1", "999999999999", "x")),
        *(("--size", value) for value in ("0", "-64", "63", "1000000")),
        *(("--grid", value) for value in ("0", "-4", "5", "999")),
        *(("--width", value) for value in ("0", "33", "999968")),
        *(("--blocks", value) for value in ("-1", "9999")),
        *(("--steps", value) for value in ("0", "-1", "99999999999")),
        *(("--batch-size", value) for value in ("0", "-1", "99999999")),
        *(("--learning-rate", value) for value in ("0", "nan", "inf", "-1")),
        *(("--focus", value) for value in ("nan", "-1")),
        *(("--adversarial", value) for value in ("inf", "-1")),
        *(("--seed", value) for value in ("-1", "99999999999999999999")),
        *(("--held-out", value) for value in ("nan", "inf", "-1", "2")),
    ):
        yield command(("tokenizer", "train", "--images", ".", "-o", "out", option, value), 2, option)
    drawing = ("generate", "nowhere", "--prompt", "a", "-o", "out")
    for option, value in (
        *(("--seed", value) for value in ("-1", str(2**63), "9" * 40, "x")),
        *(("--temperature", value) for value in ("nan", "inf", "-1", "1e300")),
        *(("--top-k", value) for value in ("0", "-1", "99999999999")),
        *(("--top-p", value) for value in ("0", "nan", "2", "-1")),
        *(("--guidance-scale", value) for value in ("nan", "inf", "-1", "0", "1e300")),
        *(("--count", value) for value in ("0", "-1", "99999999")),
    ):
        yield command((*drawing, option, value), 2, option[2:4])
    for prompt, words in (
        ("", "empty"),
        ("a\nb", "line"),
        ("a <image> b", "<image>"),
        ("x" * 9999, "characters"),
        ("\u2028".join("ab"), "line"),
    ):
        yield command(("generate", "nowhere", "--prompt", prompt, "-o", "out"), 3, words)


CASES = list(cases())
