"""Recipes, overrides, and values out of all bounds."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.case import ACCEPTED, Case, Content, lines, row

GOOD, LLM = ACCEPTED
ROWS = {"rows.jsonl": lines(row())}
BASE = """\
model: {llm: ./llm, tower: ./tower}
objectives:
  vqa:
    train: {format: jsonl, path: rows.jsonl}
"""


def recipe(what: str, text: Content, code: int, *words: str) -> Case:
    return Case("recipe", what, code, words, {**ROWS, "recipe.yaml": text})


def of_files() -> Iterator[Case]:
    yield recipe("good", BASE, GOOD, *LLM)
    yield recipe("empty", "", 2, "empty")
    yield recipe("list", "[]", 2, "got an empty list")
    yield recipe("number", "3", 2, "got 3")
    yield recipe("binary", bytes(range(256)), 2, "not UTF-8")
    yield recipe("utf-16", BASE.encode("utf-16"), 2, "not UTF-8")
    yield recipe("control character", BASE + "output: a\x07b", 2, "U+0007")
    yield recipe("2 MB", BASE + "# " + "x" * 2_000_000, 2, "1 MiB")
    yield recipe("50 MB", BASE + "# " + "x" * 50_000_000, 2, "1 MiB")
    yield recipe("tabs", BASE + "lora:\n\trank: 3\n", 2, "tab")
    yield recipe("open quote", BASE + 'output: "a\n', 2, "quote")
    yield recipe("two documents", BASE + "---\na: 1\n", 2, "second document")
    yield recipe("key twice", BASE + "blind: true\nblind: false\n", 2, "given twice")
    yield recipe("merge key", BASE + "lora: {<<: {rank: 3}}\n", 2, "merge keys")
    yield recipe("key is a list", BASE + "[a]: 3\n", 2, "keys are text")
    yield recipe("key is a number", BASE + "3: 3\n", 2, "not text")
    yield recipe("key with escapes", BASE + '"\\e[31mx": 3\n', 2, "unknown key")
    yield recipe(
        "Python object", BASE + "output: !!python/object/apply:os.system [id]\n", 10, "Python object"
    )
    yield recipe("Python name", BASE + "output: !!python/name:os.system\n", 10, "Python object")
    yield recipe("binary tag", BASE + "output: !!binary aGVsbG8=\n", 2, "tag")
    yield recipe("own tag", BASE + "output: !mine x\n", 2, "tag")
    yield recipe("alias of itself", BASE + "lora: &a {targets: [*a]}\n", 2, "inside itself")
    laughs = "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" if n else "a0: &a0 [x]\n" for n in range(9)
    )
    yield recipe("a billion laughs", BASE + laughs, 2, "aliases")
    yield recipe("1,000 deep", BASE + "output: " + "[" * 1000, 2, "deep")
    yield recipe("100,000 values", BASE + "output: [" + "a," * 100_000 + "]", 2, "values")
    yield recipe("100 unknown keys", BASE + "".join(f"k{n}: 1\n" for n in range(200)), 2, "unknown key")
    yield recipe("folder", lambda path: path.mkdir(), 2, "folder")
    yield recipe("link to itself", lambda path: path.symlink_to("recipe.yaml"), 2, "recipe.yaml")
    yield recipe("device", lambda path: path.symlink_to("/dev/zero"), 2, "regular file")
    yield recipe("answers that are not UTF-8", BASE + "    answers: a.txt\n", 3, "a.txt")
    yield Case(
        "recipe",
        "answers in latin-1",
        3,
        ("not UTF-8",),
        {**ROWS, "recipe.yaml": BASE + "    answers: a.txt\n", "a.txt": b"caf\xe9\nno\n"},
    )
    yield Case(
        "recipe",
        "one answer",
        3,
        ("two answers",),
        {**ROWS, "recipe.yaml": BASE + "    answers: a.txt\n", "a.txt": "yes\n"},
    )
    yield Case(
        "recipe",
        "answers are pickle",
        10,
        ("pickle",),
        {**ROWS, "recipe.yaml": BASE + "    answers: a.txt\n", "a.txt": b"\x80\x04\x95"},
    )


def override(text: str, code: int, *words: str) -> Case:
    return Case(
        "overrides",
        text[:60].encode("unicode_escape").decode(),
        code,
        words,
        ROWS,
        ("check", "recipe.yaml", text),
    )


def of_overrides() -> Iterator[Case]:
    for key, values in {
        "lora.rank": ("0", "-1", "1.5", "1e9", "999999999", "1" * 40, ".inf", "true", "x", "[]", "null"),
        "lora.alpha": ("0", "1e300", ".nan", "-1", "x"),
        "lora.dropout": ("1", "-0.1", ".nan"),
        "lora.targets": ("[]", "{}", "3", "[3]", "''"),
        "training.batch_size": ("0", "99999999", "1e3"),
        "training.accumulation": ("0", "99999999"),
        "training.epochs": ("0", "1e308", "-1", ".inf"),
        "training.steps": ("0", "99999999999"),
        "training.seed": ("-1", "4294967296"),
        "training.learning_rate": ("0", ".inf", "-1", "1e999"),
        "training.optimizer": ("sgd",),
        "data.workers": ("-1", "100000"),
        "data.max_pixels": ("0", "99999999999"),
        "data.max_length": ("0", "999999999"),
        "data.max_bad_row_fraction": ("2", "-1", ".nan"),
        "data.feature_memory_gib": ("0", "1e308"),
        "data.feature_disk_gib": ("-1", "1e308"),
        "model.image_size": ("0", "1000000"),
        "model.calibration_images": ("-1", "999999999"),
        "model.feature_layer": ("99999",),
        "objectives.vqa.sampling_weight": ("0", "1e308", "1e-320", ".nan"),
        "objectives.vqa.weight": ("0", "1e308"),
        "objectives.vqa.batch_size": ("0", "99999999"),
        "objectives.vqa.max_new_tokens": ("0", "999999999"),
        "objectives.vqa.train.limit": ("0", "-1"),
        "objectives.vqa.train.columns": ("{x: y}", "{image: -1}", "[a]"),
        "evaluation.batch_size": ("0", "99999999"),
    }.items():
        for value in values:
            if (key, value) in (("lora.rank", "null"),):
                continue
            yield override(f"{key}={value}", 2, key)
    for pattern in (
        "x",
        "{",
        "}",
        "{}{",
        "{x}",
        "{0.real}",
        "{0[0]}",
        "{!r}",
        "{:>99999999}",
        "{:x}",
        "{}{split}",
        "{:{}}",
    ):
        yield override(f"objectives.vqa.train.image_name='{pattern}'", 2, "image_name")
    for text, words in (
        ("", "key.path=value"),
        ("=", "key.path=value"),
        ("lora.rank", "key.path=value"),
        (".=3", "key.path=value"),
        ("lora..rank=3", "key.path=value"),
        ("lora.rnak=3", "Did you mean lora.rank"),
        ("stages.0.steps=3", "not a list"),
        ("stages.x=3", "position"),
        ("objectives.0=3", "objectives"),
        ("lora.targets.0=q_proj", "not a list"),
        ("objectives.vqa.answers.0=yes", "not a list"),
        ("lora.targets.0.0.0=x", "not a list"),
        ("stages=[{name: ../x}]", "name"),
        ("stages=[{name: a}, {name: a}]", "stages"),
        ("stages=3", "stages"),
        ("output={", "not valid YAML"),
        ("output=\x1b[31m", "U+001B"),
        ("\x1b[31m=3", "unknown key"),
        ("lora.rank=" + "[" * 500, "deep"),
        ("x" * 100_000 + "=1", "unknown key"),
        ("a." * 5000 + "b=1", "unknown key"),
    ):
        yield override(text, 2, words)
    yield override("output=!!python/object/apply:os.system [id]", 10, "Python object")


CASES = [*of_files(), *of_overrides()]
