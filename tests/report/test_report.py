"""The report of a run: one file, no request, no script; predictions followed through validations; runs side by side."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lockadapt import evaluate, train
from lockadapt.errors import RecipeError
from lockadapt.report.numbers import changed, confusion, interval
from lockadapt.report.write import write_report
from lockadapt.runs.run_folder import FOLLOWED
from tests.support.runs import values


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.without_alt = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Collects."""
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("src", "href", "xlink:href") if name in given]
        self.without_alt += tag == "img" and not given.get("alt")
        self.headings += [tag] if re.fullmatch(r"h\d", tag) else []


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two short runs, the second blind; both evaluated."""
    folder = tmp_path_factory.mktemp("report")
    folders = []
    for name, blind in (("seeing", False), ("blind", True)):
        recipe = values(tiny, folder, blind=blind)
        vqa = recipe["objectives"]["vqa"]
        vqa["validation"] = vqa["train"]
        recipe["training"] |= {"steps": 4, "validate_every": 2}
        train(recipe, output=folder / name, quiet=True)
        evaluate(folder / name, quiet=True)
        folders.append(folder / name)
    return folders[0], folders[1]


def test_a_run_leaves_a_page_that_asks_for_nothing(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert (runs[0] / "report.html").is_file()
    result = write_report([runs[0]], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert result["bytes"] == len(text.encode()) < 5_000_000
    assert set(result["sections"]) >= {"overview", "locks", "curves", "scores", "intervals", "followed"}
    assert {"wrong-vqa", "random-vqa", "confusion-vqa", "provenance"} & set(result["sections"])
    assert (result["followed_samples"], result["validations"]) == (8, 2)
    page = Page(text)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "script" not in page.tags
    assert page.headings[0] == "h1"
    assert page.without_alt == 0
    assert len(page.ids) == len(set(page.ids))
    assert text.count("data:image/webp") > 4


def test_followed_samples_are_the_same_at_every_validation(runs: tuple[Path, Path]) -> None:
    rows = [json.loads(line) for line in (runs[0] / FOLLOWED).read_text().splitlines()]
    by_step: dict[int, list[tuple[str, str]]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append((row["where"], row["question"]))
    assert list(by_step) == [2, 4]
    assert by_step[2] == by_step[4]


def test_learned_tokens_are_marked(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = write_report([runs[0]], tmp_path / "page.html")
    assert "tokens" in result["sections"]
    line = re.findall(r'<p class="tokens">(.*?)</p>', (tmp_path / "page.html").read_text())[0]
    assert "".join(re.findall(r"<mark>(.*?)</mark>", line)) == "red&lt;/s&gt;"
    assert "<i>[image × 16]</i> what Ġc" in line


def test_two_runs_side_by_side(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = write_report(runs, tmp_path / "two.html")
    assert result["sections"][0] == "differences"
    text = (tmp_path / "two.html").read_text()
    assert '<th scope="row">blind</th><td>False</td><td>True</td>' in text
    assert "seeing" in text


def test_texts_of_rows_stay_texts(runs: tuple[Path, Path], tmp_path: Path) -> None:
    file = runs[0] / "predictions.jsonl"
    before = file.read_text()
    row = {**json.loads(before.splitlines()[0]), "question": "<script>alert(1)</script>", "answer": "<b>"}
    file.write_text(json.dumps(row) + "\n")
    write_report([runs[0]], tmp_path / "page.html")
    file.write_text(before)
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_report_false_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path, report=False)
    recipe["objectives"]["vqa"]["validation"] = recipe["objectives"]["vqa"]["train"]
    train(recipe, output=tmp_path / "run", quiet=True)
    assert not {"report.html", FOLLOWED} & {file.name for file in (tmp_path / "run").iterdir()}


def test_following_changes_no_weight(tiny: Path, tmp_path: Path) -> None:
    weights = []
    for shown in (True, False):
        recipe = values(tiny, tmp_path, report=shown)
        recipe["objectives"]["vqa"]["validation"] = recipe["objectives"]["vqa"]["train"]
        recipe["training"] |= {"steps": 4, "validate_every": 2}
        recipe["lora"] |= {"dropout": 0.3}
        train(recipe, output=tmp_path / str(shown), quiet=True)
        weights.append((tmp_path / str(shown) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is no run folder"):
        write_report([tmp_path])


def test_interval_is_the_binomials() -> None:
    mean, low, high = interval([True] * 80 + [False] * 20)
    assert mean == 0.8
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.02)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.02)


def test_confusion_counts_and_what_changed() -> None:
    rows = [
        {"where": str(number), "question": "q", "objective": "vqa", "truth": truth, "answer": answer}
        for number, (truth, answer) in enumerate([("red", "red"), ("red", "blue"), ("blue", "green")])
    ]
    assert confusion(rows) == (["red", "blue"], [[1, 1, 0], [0, 0, 1]])
    later = [{**rows[0], "answer": "blue"}, {**rows[1], "answer": "Red "}, rows[2]]
    better, worse = changed(rows, later)
    assert [row["where"] for row in better] == ["1"]
    assert [(row["where"], row["before"]) for row in worse] == [("0", "red")]
