"""Broken recipes: each is refused at the right place, in plain words, with the documented exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockadapt.errors import LockadaptError, RecipeError, SafetyError
from lockadapt.recipe.objectives import KEYS_OF_KINDS
from lockadapt.recipe.read import load_recipe

GOOD = """\
model:
  llm: some/llm
  tower: some/tower
objectives:
  vqa:
    train: {format: jsonl, path: data/train.jsonl}
"""
"""A whole recipe of six lines: what is added to it stands on line 7 and below."""


def broken(name: str, text: str, *lines: str) -> object:
    """A case: the file's text and every line of the message, without the file's name."""
    return pytest.param(text, lines, id=name)


ADDED = [
    broken("streaming", "data: {streaming: true}\n", ":7: data.streaming: unknown key. Leave it out: images are "
           "opened only when they are needed. For a part of the rows write `limit`; for a data set that is larger "
           "than the disk, save the part that you train on."),
    broken("unknown-key", "lora: {rnak: 8}\n", ":7: lora.rnak: unknown key. Did you mean lora.rank?"),
    broken("unknown-section", "loar: {}\n", ":7: loar: unknown key. Did you mean lora?"),
    broken("nothing-near", "lora:\n  xyz: {}\n", ":8: lora.xyz: unknown key. "
           "Known here: rank, alpha, dropout, targets, rslora, dora, plus_ratio, init."),
    broken("unknown-key-deep", "stages:\n  - name: a\n    batchsize: 4\n",
           ":9: stages.0.batchsize: unknown key. Did you mean stages.0.batch_size?"),
    broken("key-of-another-section", "learning_rate: 1e-3\n",
           ":7: learning_rate: unknown key. Did you mean training.learning_rate?"),
    broken("key-of-another-section-and-like-a-neighbour", "steps: 5\n",
           ":7: steps: unknown key. Did you mean training.steps?"),
    broken("text-for-whole-number", "lora: {rank: eight}\n",
           ":7: lora.rank: should be a whole number, got 'eight'"),
    broken("quoted-number", 'lora: {rank: "8"}\n',
           ":7: lora.rank: should be a whole number, got '8'; write it without quotes and underscores"),
    broken("float-for-whole-number", "training:\n  steps: 1e3\n",
           ":8: training.steps: should be a whole number, got 1000.0; write 1000"),
    broken("yes-for-true", "blind: yes\n", ":7: blind: should be true or false, got 'yes'"),
    broken("bool-for-number", "training: {steps: true}\n",
           ":7: training.steps: should be a whole number, got true"),
    broken("number-for-text", "output: 5\n", ":7: output: should be text, got 5; put it in quotes"),
    broken("mapping-for-text", "output: a: b\n",
           ":7: not valid YAML: mapping values are not allowed here (text with `: ` in it belongs in quotes; "
           "or the indentation is wrong)"),
    broken("braces-for-text", "output: {run}\n",
           ":7: output: should be text, got a section; text with `: ` or braces in it belongs in quotes"),
    broken("empty-text", 'output: ""\n', ":7: output: should not be empty"),
    broken("list-for-section", "lora: [rank, 8]\n",
           ":7: lora: should be a section of keys and values, got a list"),
    broken("section-for-list", "stages: {name: align}\n", ":7: stages: should be a list, got a section"),
    broken("null-for-section", "training:\n",
           ":7: training: should be a section of keys and values, got nothing (null)"),
    broken("choice", "data: {on_bad_image: skpi}\n",
           ":7: data.on_bad_image: should be one of error, skip, got 'skpi'. Did you mean skip?"),
    broken("choice-in-a-list", "training:\n  report_to:\n    - wandb\n    - tensorbord\n",
           ":10: training.report_to.1: should be one of trackio, wandb, tensorboard, got 'tensorbord'. "
           "Did you mean tensorboard?"),
    broken("union", "lora: {targets: all-liner}\n",
           ":7: lora.targets: should be one of all-linear, attention, experts or a list, got 'all-liner'. "
           "Did you mean all-linear?"),
    broken("union-item", "lora:\n  targets:\n    - q_proj\n    - 5\n",
           ":10: lora.targets.1: should be text, got 5; put it in quotes"),
    broken("union-empty", "lora: {targets: []}\n", ":7: lora.targets: should not be empty"),
    broken("not-above", "training: {batch_size: 0}\n", ":7: training.batch_size: should be above 0, got 0"),
    broken("not-at-least", "training:\n\n  weight_decay: -0.1\n",
           ":9: training.weight_decay: should be at least 0, got -0.1"),
    broken("not-below", "lora: {dropout: 1.0}\n", ":7: lora.dropout: should be below 1, got 1.0"),
    broken("not-at-most", "training: {warmup: 3}\n", ":7: training.warmup: should be at most 1, got 3"),
    broken("nan", "training: {learning_rate: .nan}\n",
           ":7: training.learning_rate: should be a finite number, got nan"),
    broken("infinite", "training: {learning_rate: 1e999}\n",
           ":7: training.learning_rate: should be a finite number, got inf"),
    broken("endless-number", f"training: {{steps: {'9' * 5000}}}\n",
           ":7: training.steps: is too long for a number"),
    broken("missing-deep", "stages:\n  - train: [lora]\n",
           ":8: stages.0.name: required, but missing (name of the stage, used for its folder and metrics, e.g. align)"),
    broken("key-twice", "lora:\n  rank: 8\n  rank: 16\n", ":9: lora.rank: given twice (first on line 8)"),
    broken("section-twice", "lora: {rank: 8}\nmodel: {llm: a, tower: b}\n",
           ":8: model: given twice (first on line 1)"),
    broken("number-as-key", "5: 6\n", ":7: the key 5 is not text; put it in quotes"),
    broken("null-as-key", "lora:\n  ~: 6\n", ":8: lora: the key ~ is not text; put it in quotes"),
    broken("list-as-key", "? [a, b]\n: c\n", ":7: a key is a list or a mapping; keys are text"),
    broken("merge-key", "data: &d {workers: 1}\nlora:\n  <<: *d\n",
           ":9: lora: merge keys (`<<`) are not supported; write the keys out"),
    broken("tab", "lora:\n\trank: 8\n", ":8: a tab is used for indentation; YAML wants spaces"),
    broken("tab-after-spaces", "lora:\n  rank: 8\n\talpha: 8\n",
           ":9: a tab is used for indentation; YAML wants spaces"),
    broken("open-quote", 'output: "abc\n',
           ":8: not valid YAML: found unexpected end of stream (a quote is not closed)"),
    broken("open-bracket", "lora: {rank: 8\n",
           ":8: not valid YAML: expected ',' or '}', but got '<stream end>'"),
    broken("indentation", "lora:\n  rank: 8\n alpha: 8\n",
           ":9: not valid YAML: expected <block end>, but found '<block mapping start>' (wrong indentation, "
           "a missing `:` or space after it, or an open quote or bracket)"),
    broken("no-colon", "lora\n  rank: 8\n",
           ":8: not valid YAML: could not find expected ':' (wrong indentation, a missing `:` or space after it, "
           "or an open quote or bracket)"),
    broken("two-documents", "---\nlora: {rank: 8}\n",
           ":7: a second document starts here (`---`); a recipe is one document"),
    broken("control-character", "lora:\n  rank: \x07\n", ":8: holds the control character U+0007"),
    broken("nul-in-text", 'output: "a\\0b"\n', ":7: output: holds a character that text cannot hold"),
    broken("surrogate-in-text", 'output: "\\ud800"\n', ":7: output: holds a character that text cannot hold"),
    broken("custom-tag", "output: !include other.yaml\n",
           ":7: output: the tag !include is not allowed: a recipe holds plain values only"),
    broken("core-tag-that-does-not-suit", "training: {steps: !!int abc}\n",
           ":7: training.steps: cannot be read as a whole number"),
    broken("binary-tag", "output: !!binary aGk=\n",
           ":7: output: the tag !!binary is not allowed: a recipe holds plain values only"),
    broken("unknown-alias", "lora: *nowhere\n", ":7: not valid YAML: found undefined alias 'nowhere'"),
    broken("alias-of-itself", "lora: &a [*a]\n", ":7: the alias *a stands inside itself"),
    broken("too-many-aliases", "lora: &a 1\nstages: [" + "*a," * 65 + "]\n",
           ":8: more than 64 aliases (`*name`)"),
    broken("too-deep", "lora: " + "[" * 500_000 + "\n", ":7: nested more than 20 levels deep"),
    broken("kind-unknown", "  words:\n    train: {format: csv, path: a.csv}\n",
           f":7: objectives.words: needs a `kind` ({', '.join(KEYS_OF_KINDS)}), as its name is none of them"),
    broken("kind-misspelt", "    kind: vqaa\n",
           f":7: objectives.vqa.kind: should be one of {', '.join(KEYS_OF_KINDS)}, got 'vqaa'. Did you mean vqa?"),
    broken("kind-no-text", "    kind: [vqa]\n",
           f":7: objectives.vqa.kind: should be one of {', '.join(KEYS_OF_KINDS)}, got a list"),
    broken("key-of-no-kind", "    max_new_token: 3\n",
           ":7: objectives.vqa.max_new_token: unknown key. Did you mean objectives.vqa.max_new_tokens?"),
    broken("text-prompt", "  itc:\n    train: {format: csv, path: a.csv}\n    text_prompt: Look\n",
           ":9: objectives.itc.text_prompt: needs `{caption}` where the caption goes"),
    broken("template", "  itc:\n    train: {format: csv, path: a.csv}\n    templates: ['a {}', b]\n",
           ":9: objectives.itc.templates.1: needs `{}` once, where the class goes"),
    broken("objective-is-a-list", "  caption: [a]\n",
           ":7: objectives.caption: should be a section of keys and values, got a list"),
    broken("bad-name", "  a/b:\n    kind: vqa\n    train: {format: csv, path: a.csv}\n",
           ":7: objectives.a/b: a name is a letter and up to 63 letters, digits, `-` or `_`"),
    broken("sample-field", "  caption:\n    train: {format: csv, path: a.csv, columns: {captoin: text}}\n",
           ":8: objectives.caption.train.columns.captoin: unknown key. "
           "Did you mean objectives.caption.train.columns.caption?"),
    broken("column-below-zero", "  caption:\n    train: {format: csv, path: a.csv, columns: {image: -1}}\n",
           ":8: objectives.caption.train.columns.image: should be at least 0, got -1"),
    broken("vqa-v2-alone", "    test:\n      format: vqa-v2\n      path: questions.json\n",
           ":7: objectives.vqa.test: format vqa-v2 needs `annotations`: the questions file holds no answers"),
    broken("annotations-of-no-use", "    test:\n      format: csv\n      path: a\n      annotations: b\n",
           ":10: objectives.vqa.test.annotations: format csv has no annotations file"),
    broken("split-of-no-use", "    test:\n      format: csv\n      path: a\n      split: test\n",
           ":10: objectives.vqa.test.split: format csv has no splits: `path` names the file"),
    broken("columns-of-no-use", "  caption:\n    train: {format: coco, path: a, columns: {image: 0}}\n",
           ":8: objectives.caption.train.columns: format coco has columns of its own; leave this out"),
    broken("format-of-another-kind", "    test: {format: coco, path: a}\n",
           ":7: objectives.vqa.test.format: format coco holds caption or grounding rows, but the kind is vqa"),
    broken("image-name", "    test: {format: csv, path: a, image_name: .png}\n",
           ":7: objectives.vqa.test.image_name: needs `{}` where the image value goes, as in `{}.png`"),
    broken("prompt-without-question", "    prompt: Answer!\n",
           ":7: objectives.vqa.prompt: needs `{question}` where the question goes"),
    broken("prompt-of-a-dialogue", "    kind: dialogue\n    prompt: Hello\n",
           ":8: objectives.vqa.prompt: objectives of kind dialogue have no such key; remove it"),
    broken("steps-and-epochs", "training:\n  steps: 5\n  epochs: 1\n",
           ":9: training.epochs: give `steps` or `epochs`, not both (set the other to null)"),
    broken("patience-alone", "training: {patience: 3}\n",
           ":7: training.patience: counts validations, so it needs `validate_every`"),
    broken("stage-of-unknown-objective", "stages:\n  - name: a\n    objectives: [vqa, caption]\n",
           ":9: stages.0.objectives: `objectives` has no caption"),
    broken("stage-without-lora", "lora: null\nstages:\n  - name: a\n    train: [lora]\n",
           ":10: stages.0.train: trains lora, but `lora` is null"),
    broken("weight-of-no-objective", "stages:\n  - name: a\n    sampling_weights: {caption: 2.0}\n",
           ":9: stages.0.sampling_weights: the stage has no objective caption"),
    broken("stage-name-twice", "stages:\n  - name: a\n  - name: a\n",
           ":9: stages.1.name: an earlier stage is called a too"),
    broken("stage-name-leaves-the-folder", "stages:\n  - name: ../../etc\n",
           ":8: stages.0.name: a name is a letter and up to 63 letters, digits, `-` or `_`"),
    broken("stage-trains-twice", "stages:\n  - {name: a, train: [lora, lora]}\n",
           ":8: stages.0.train: names the same part twice"),
    broken("rate-of-what-does-not-learn", "stages:\n  - {name: a, train: [projector], learning_rate: 1e-3}\n",
           ":8: stages.0.learning_rate: applies to lora, which this stage does not train; "
           "for the projector, set `projector_learning_rate`"),
    broken("projector-rate-of-no-use", "stages:\n  - {name: a, train: [lora], projector_learning_rate: 1}\n",
           ":8: stages.0.projector_learning_rate: applies to the projector, which this stage does not train"),
    broken("retrieval-rate-of-no-use", "stages:\n  - {name: a, train: [lora], retrieval_learning_rate: 1}\n",
           ":8: stages.0.retrieval_learning_rate: applies to retrieval, which this stage does not train"),
    broken("generation-rate-of-no-use", "stages:\n  - {name: a, train: [lora], generation_learning_rate: 1}\n",
           ":8: stages.0.generation_learning_rate: applies to generation, which this stage does not train"),
    broken("rank-without-answers", "evaluation: {method: rank}\n",
           ":7: evaluation.method: rank needs a closed list: no objective has `answers`"),
]  # fmt: skip


@pytest.mark.parametrize(("added", "lines"), ADDED)
def test_addition_to_a_good_recipe_is_refused(tmp_path: Path, added: str, lines: tuple[str, ...]) -> None:
    assert problems(tmp_path, (GOOD + added).encode()) == list(lines)


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(GOOD)
    assert load_recipe(file).recipe.model.llm == "some/llm"


WHOLE = [
    broken("empty", "", ":1: the recipe is empty; it needs `model` and `objectives`"),
    broken("comments-only", "# nothing\n", ":1: the recipe is empty; it needs `model` and `objectives`"),
    broken("a-list", "- model\n", ":1: a recipe is a section of keys and values, got a list"),
    broken("a-text", "model\n", ":1: a recipe is a section of keys and values, got 'model'"),
    broken("empty-mapping", "{}\n", ":1: model: required, but missing (the models to join)",
           ":1: objectives: required, but missing (name -> objective; any name is allowed if `kind` is given)"),
    broken("nothing-to-bridge", GOOD.replace("  tower: some/tower\n", ""),
           ":1: model: needs `llm` and `tower` (or `vlm`, an existing checkpoint)"),
    broken("vlm-and-llm", GOOD.replace("objectives:", "  vlm: some/vlm\nobjectives:"),
           ":4: model.vlm: give either `vlm`, or `llm` and `tower`, not both"),
    broken("nothing-to-learn", "model: {vlm: a}\nobjectives: {}\n", ":2: objectives: should not be empty"),
    broken("no-rows", "model: {vlm: a}\nobjectives:\n  vqa:\n    weight: 2.0\n",
           ":3: objectives.vqa.train: required, but missing (training rows; a list mixes several sources)"),
    broken("billion-laughs", "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
           f"{name}: &{name} [{','.join(['*' + below] * 8)}]\n"
           for below, name in zip("abcdefg", "bcdefgh", strict=True)), ":1: more than 20,000 values"),
    broken("laughs-under-one-key", "a: &a {x: 1, x: 1, x: 1, x: 1}\n" + "".join(
           f"{name}: &{name} {{{','.join(['x: *' + below] * 8)}}}\n"
           for below, name in zip("abcdefg", "bcdefgh", strict=True)), ":1: more than 20,000 values"),
    broken("long-list", "a: [" + "1," * 30_000 + "}\n", ":1: more than 20,000 values"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), WHOLE)
def test_whole_file_is_refused(tmp_path: Path, text: str, lines: tuple[str, ...]) -> None:
    assert problems(tmp_path, text.encode()) == list(lines)


@pytest.mark.parametrize(
    ("raw", "line", "message"),
    [
        (GOOD.encode() + b"output: caf\xe9\n", ":7", "is not UTF-8 text: byte 0xe9"),
        ("model: {}".encode("utf-16"), ":1", "is not UTF-8 text: byte 0xff"),
        (b"\x80\x04\x95\x0b", ":1", "is not UTF-8 text: byte 0x80"),
        (b"#" * (1 << 20) + b"\n", "", "is larger than 1 MiB"),
    ],
    ids=["latin-1", "utf-16", "pickle", "large"],
)
def test_bytes_are_refused(tmp_path: Path, raw: bytes, line: str, message: str) -> None:
    first, fix = problems(tmp_path, raw)
    assert first == f"{line}: {message}"
    assert fix.startswith("  fix: ")


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system", "name:os.system", "tuple", "object/new:subprocess.Popen"]
)
@pytest.mark.parametrize("line", ["lora: !!python/{} ['touch {}']\n", "? !!python/{} ['touch {}']\n: 1\n"])
def test_python_objects_are_a_matter_of_safety(tmp_path: Path, tag: str, line: str) -> None:
    witness = tmp_path / "witness"
    file = tmp_path / "x.yaml"
    file.write_text(GOOD + line.format(tag, witness))
    with pytest.raises(SafetyError, match=f":7: the tag !!python/{tag} asks for a Python object") as caught:
        load_recipe(file)
    assert caught.value.exit_code == 10
    assert not witness.exists()


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "easy-vqa.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "easyvqa.yaml")
    assert (
        str(caught.value)
        == f"{tmp_path}/easyvqa.yaml: no such file\n  fix: recipes in {tmp_path}: easy-vqa.yaml"
    )


def test_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        load_recipe(tmp_path)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="is not a regular file"):
        load_recipe(tmp_path / "pipe")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "x.yaml"
    file.write_text(GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load_recipe(file)


def test_path_that_no_file_can_have() -> None:
    with pytest.raises(RecipeError, match=r"cannot be read|no such file"):
        load_recipe("a\0b")


def problems(folder: Path, raw: bytes) -> list[str]:
    """The lines of the error that a recipe of these bytes gives, each without the file's name."""
    file = folder / "x.yaml"
    file.write_bytes(raw)
    with pytest.raises(LockadaptError) as caught:
        load_recipe(file)
    assert type(caught.value) is RecipeError
    assert caught.value.exit_code == 2
    assert "pydantic" not in str(caught.value)
    return [line.removeprefix(str(file)) for line in str(caught.value).splitlines()]


edits = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 8), st.text("{}[]:,-#&*!|>'\"%@`?~\t\n 0a.é\0\ud800")),
    min_size=1,
    max_size=4,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(edits=edits, overrides=st.lists(st.text(".=[]{}:*&!1a-\n '\"") | st.just("lora.rank="), max_size=2))
def test_no_damage_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, str]], overrides: list[str]
) -> None:
    text = GOOD
    for position, cut, inserted in edits:
        text = text[:position] + inserted + text[position + cut :]
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    try:
        message = str(load_recipe(file, overrides).path)
    except (RecipeError, SafetyError) as error:
        message = str(error)
    assert message.startswith((str(file), "override "))
