"""What the demo asks of a model, without a browser: streams, limits, tabs; where it listens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lockadapt import Predictor, train
from lockadapt.demo.model import MAX_IMAGES, DemoModel, Exchange
from lockadapt.demo.serve import is_loopback
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.chat import Chat
from tests.support.command import lockadapt
from tests.support.runs import values


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    recipe = values(tiny, folder)
    train(recipe, output=folder / "run", quiet=True)
    return folder / "run"


def test_a_stream_ends_with_the_answer_and_grows_to_it(run: Path) -> None:
    model = DemoModel.open(run, None, 12)
    assert model.tabs == ["chat"]
    picture = run.parent / "pictures" / "red.png"
    parts = list(model.stream([], [picture], "what color is the shape?"))
    assert parts[-1] == Predictor(run).answer(picture, "what color is the shape?", max_new_tokens=12)
    assert all(later.startswith(part) for part, later in itertools.pairwise(parts[:-1]))


def test_history_is_that_of_a_conversation(run: Path) -> None:
    model = DemoModel.open(run, None, 6)
    first, second = (run.parent / "pictures" / f"{name}.png" for name in ("red", "blue"))
    chat = Chat.open(run, [first], 6)
    before = chat.ask("what color is the shape?")
    chat.show(second)
    expected = chat.ask("is there a red shape?")
    history = [Exchange([first], "what color is the shape?", before)]
    assert list(model.stream(history, [second], "is there a red shape?"))[-1] == expected


def test_limits_and_broken_images(run: Path, tmp_path: Path) -> None:
    model = DemoModel.open(run, None, 4)
    picture = run.parent / "pictures" / "red.png"
    with pytest.raises(DataError, match="more than"):
        list(model.stream([], [picture] * (MAX_IMAGES + 1), "what?"))
    for question in (" ", "a" * 5000):
        with pytest.raises(DataError, match="characters"):
            list(model.stream([], [picture], question))
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(DataError, match="HTML page"):
        list(model.stream([], [tmp_path / "page.png"], "what?"))
    with pytest.raises(DataError, match="marker"):
        list(model.stream([], [picture], "<image>?"))
    assert list(model.stream([], [picture], "what color is the shape?"))


def test_search_needs_a_model_that_embeds(run: Path) -> None:
    with pytest.raises(RecipeError, match="not trained to embed"):
        DemoModel.open(run, run.parent / "pictures", 4)
    with pytest.raises(DataError, match="no such folder"):
        DemoModel.open(run, run.parent / "nothing", 4)


def test_only_loopback_is_silent() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org")))


def test_another_address_is_warned_of_and_share_does_not_exist(tmp_path: Path) -> None:
    done = lockadapt("demo", tmp_path / "nothing", "--host", "0.0.0.0")
    assert done.returncode != 0
    assert "everyone who reaches this machine" in done.stderr
    assert lockadapt("demo", tmp_path, "--share").returncode == 2
