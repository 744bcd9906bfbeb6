"""The demo in headless Chromium: upload, question, streamed answer, a broken image, search, draw; nothing from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from lockadapt import Predictor, train
from tests.support.browser import page
from tests.support.rows import COLOURS
from tests.support.runs import values
from tests.support.tiny import tiny_image_tokenizer, tiny_tower

pytestmark = pytest.mark.slow
SERVE = "import torch; torch.set_num_threads(1); from lockadapt.cli import main; main()"
WAIT = 120_000
"""Milliseconds that a busy machine may take."""


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers, embeds and generates images, after a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    recipe = values(tiny, folder)
    recipe["model"] |= {
        "tower": str(tiny_tower("siglip-vision", folder / "tower")),
        "image_tokenizer": str(tiny_image_tokenizer(folder / "image-tokenizer")),
    }
    captions = folder / "captions.jsonl"
    rows = [{"image": f"{name}.png", "caption": f"a {name} shape"} for name in COLOURS]
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"format": "jsonl", "path": str(captions), "images": str(folder / "pictures")}
    recipe["objectives"] |= {
        "itc": {"train": source, "batch_size": 4, "queries": 1},
        "t2i": {"train": source},
    }
    del recipe["objectives"]["vqa"]["answers"]
    recipe["training"] |= {"steps": 90, "learning_rate": 3e-3, "projector_learning_rate": 3e-3}
    train(recipe, output=folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The page, served by a process of its own as users have it."""
    pytest.importorskip("gradio", reason="needs gradio")
    command = [
        sys.executable,
        "-c",
        SERVE,
        "demo",
        str(run),
        "--images",
        str(run.parent / "pictures"),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield json.loads(line)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def opened(served: dict[str, Any]) -> Iterator[Any]:
    """The page in a browser; whatever happens, it asks nobody else for anything."""
    with page() as opened:
        opened.set_default_timeout(WAIT)
        opened.goto(served["url"])
        yield opened
        hosts = {urlsplit(address).hostname for address in opened.requests if address.startswith("http")}
        assert hosts == {"127.0.0.1"}


def ask(opened: Any, files: list[Path], question: str) -> None:
    if files:
        opened.set_input_files("input[type=file] >> nth=0", [str(file) for file in files])
        opened.wait_for_selector(".thumbnail-wrapper")
    opened.locator("textarea").first.fill(question)
    opened.keyboard.press("Enter")


def shows(opened: Any, number: int, text: str) -> None:
    """Waits until the answer of this number, counted from 0, is a text; it is streamed."""
    expect = pytest.importorskip("playwright.sync_api").expect
    answer = opened.locator("[data-testid=bot]").nth(number)
    expect(answer).to_have_text(re.compile(rf"^\s*{re.escape(text)}\s*$"), timeout=WAIT)


def refusal(opened: Any, number: int) -> str:
    """The answer of this number, which is the page's own."""
    answer = opened.locator("[data-testid=bot]", has_text="Refused: ")
    answer.wait_for()
    assert opened.locator("[data-testid=bot]").count() == number + 1
    return str(answer.inner_text()).strip()


def answered(run: Path, asked: str = "what color is the shape?") -> tuple[Path, str]:
    """A picture about which the model says something, and what."""
    predictor = Predictor(run)
    pictures = sorted((run.parent / "pictures").glob("*.png"))
    answers = {picture: predictor.answer(picture, asked) for picture in pictures}
    return next((picture, answer) for picture, answer in answers.items() if answer)


def test_json_line(served: dict[str, Any]) -> None:
    assert set(served) == {"url", "tabs"}
    assert served["tabs"] == ["chat", "search", "draw"]
    assert urlsplit(served["url"]).hostname == "127.0.0.1"


def test_upload_and_question(run: Path, opened: Any) -> None:
    picture, expected = answered(run)
    ask(opened, [picture], "what color is the shape?")
    shows(opened, 0, expected)
    assert opened.complaints == []
    shares = opened.get_by_role("button", name="Share").all()
    assert not any(button.is_visible() for button in shares)


def test_a_broken_image_is_refused_in_words_and_the_next_question_works(
    run: Path, opened: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((run.parent / "pictures" / "red.png").read_bytes()[:40])
    ask(opened, [broken], "what color is the shape?")
    message = refusal(opened, 0)
    assert message.startswith("⚠ Refused: image")
    assert "damaged" in message
    assert "/" not in message
    picture, expected = answered(run)
    ask(opened, [picture], "what color is the shape?")
    shows(opened, 1, expected)  # what was refused is not part of the conversation


def test_search(run: Path, opened: Any) -> None:
    opened.get_by_role("tab", name="Search").click()
    opened.get_by_label("Text to search for").fill("a red shape")
    opened.get_by_role("button", name="Search").click()
    opened.wait_for_function("document.querySelectorAll('.grid-container img').length == 4")
    assert "red.png" in opened.locator(".grid-container").inner_text()


def test_draw(run: Path, opened: Any) -> None:
    opened.get_by_role("tab", name="Draw").click()
    opened.get_by_label("Prompt").fill("a red shape")
    opened.get_by_role("button", name="Draw").click()
    opened.wait_for_function(
        "[...document.querySelectorAll('.grid-container img')].filter(i => i.naturalWidth).length == 4"
    )


def test_large_pictures_are_refused(run: Path, opened: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (8000, 8000)).save(large)
    ask(opened, [large], "what color is the shape?")
    assert "64,000,000 pixels" in refusal(opened, 0)


def test_an_empty_search_is_refused_in_words(opened: Any) -> None:
    opened.get_by_role("tab", name="Search").click()
    opened.get_by_role("button", name="Search").click()
    assert "write between 1 and" in opened.wait_for_selector("[data-testid=toast-body]").inner_text().lower()
