"""What the documentation prints runs as it is printed, on tiny models in place of the Hub's.

The Python of README.md and the reference, and all of the tutorials: recipes, commands and Python, in their order.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lockadapt
from tests.support.command import lockadapt as command
from tests.support.rows import COLOURS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
README, REFERENCE = ROOT / "README.md", ROOT / "docs" / "python.md"
HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama-tied",
    "google/siglip2-base-patch16-224": "clip-vision",
    "HuggingFaceTB/SmolVLM-500M-Instruct": "vlm",
}
GENERATED = ("runs", "predictor", "export", "models", "trainer", "errors")
"""Pages below docs/reference, in the order in which their examples build on one another."""
TUTORIALS = ("own-images", "existing-vlm", "retrieval", "nf4-to-servers")


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def project(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader who has done what README.md says: rows, images, and its recipe."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    rows = []
    for number, (colour, value) in enumerate(COLOURS.items(), 1):
        Image.new("RGB", (24, 20), value).save(images / f"{number:04}.jpg")
        question = {"image": f"images/{number:04}.jpg", "question": "Is the valve open?"}
        rows.append({**question, "answer": "yes" if colour == "red" else "no"})
    for half in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"{half}.jsonl").write_text(lines)
    captions = [{"image": row["image"], "caption": f"a valve, number {n}"} for n, row in enumerate(rows * 2)]
    lines = "".join(json.dumps(row) + "\n" for row in captions)
    (tmp_path / "data" / "captions.jsonl").write_text(lines)
    recipe = next(text for text in blocks(README, "yaml") if "objectives:" in text)
    (tmp_path / "recipe.yaml").write_text(on_tiny(recipe, tiny))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_tiny(text: str, tiny: Path) -> str:
    """The only change to what is printed: two ids of the Hub become two folders."""
    for name, folder in HUB.items():
        text = text.replace(name, str(tiny / folder))
    return text


def dataset() -> list[dict[str, Any]]:
    """What the reader brings: rows as for TRL."""
    return [
        {
            "images": [Image.new("RGB", (24, 20), value)],
            "prompt": [{"role": "user", "content": "what color is it?"}],
            "completion": [{"role": "assistant", "content": colour}],
        }
        for colour, value in COLOURS.items()
    ] * 8


def run(code: str, tiny: Path, names: dict[str, Any]) -> None:
    exec(compile(on_tiny(code, tiny), "snippet", "exec"), names)


def test_python_of_the_readme(project: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use, steps = blocks(README, "python")
    run(steps, tiny, {})
    assert "'accuracy'" in capsys.readouterr().out
    run(use, tiny, {})


def test_python_of_the_reference(project: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"dataset": dataset()}
    for code in blocks(REFERENCE, "python"):
        run(code, tiny, names)
    printed = capsys.readouterr().out
    assert printed.startswith("8 override\n")
    assert "LlavaForConditionalGeneration" in printed
    assert "did you mean rank" in printed or "lora.rnak" in printed
    assert not (project / "runs" / "other").exists()


def test_python_of_the_generated_reference(project: Path, tiny: Path) -> None:
    """One page after the other: the later ones use the run of the first."""
    for page in GENERATED:
        (code,) = blocks(ROOT / "docs" / "reference" / f"{page}.md", "python")
        run(code, tiny, {})


def test_the_generated_reference_is_of_all_public_names() -> None:
    pages = {
        file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "reference").glob("*.md")
    }
    assert set(pages) == set(GENERATED)
    named = [name for text in pages.values() for name in re.findall(r"^::: lockadapt\.(\w+)", text, re.M)]
    assert sorted(named) == sorted(set(lockadapt.__all__) - {"__version__"})


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_tutorials(tutorial: str, project: Path, tiny: Path) -> None:
    if not (tiny / "vlm").exists():
        llm, tower = tiny / "llama-tied", tiny / "clip-vision"
        lockadapt.assemble(llm, tower, tiny / "vlm", prove=False)
    text = (ROOT / "docs" / "tutorials" / f"{tutorial}.md").read_text(encoding="utf-8")
    steps = re.findall(r"(?:`([\w-]+\.yaml)`[^`]*\n)?^```(yaml|bash|python)\n(.*?)^```", text, re.M | re.S)
    assert {language for _, language, _ in steps} >= {"bash"}
    for name, language, code in steps:
        if language == "yaml" and name:
            (project / name).write_text(on_tiny(code, tiny))
        elif language == "python":
            run(code, tiny, {})
        for line in on_tiny(code, tiny).splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "lockadapt", line
            done = command(*arguments)
            assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_reference_names_everything_public_and_nothing_private() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for name in set(lockadapt.__all__) - {"__version__"}:
        assert re.search(rf"`{name}\b|lockadapt\.{name}\b", text), name
    for file in (README, REFERENCE):
        for code in blocks(file, "python"):
            assert not re.search(r"from lockadapt|import lockadapt\.", code)
            for name in re.findall(r"lockadapt\.(\w+)", code):
                assert name in lockadapt.__all__, name


def test_examples_import_public_names() -> None:
    """One draws the package's own scenes when it is given no data."""
    imports = {
        f"{file.name}: {line.strip()}"
        for file in (ROOT / "examples").glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) lockadapt\.", line)
    }
    assert imports == {"train_from_python.py: from lockadapt.quickstart.scenes import make_dataset"}
