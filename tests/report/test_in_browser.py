"""The report in headless Chromium with the network off: it asks for nothing, says nothing, and axe-core finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt import evaluate, train
from tests.support.browser import page, serious_findings
from tests.support.runs import values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    recipe = values(tiny, folder)
    recipe["objectives"]["vqa"]["validation"] = recipe["objectives"]["vqa"]["train"]
    train(recipe, output=folder / "run", quiet=True)
    evaluate(folder / "run", quiet=True)
    return folder / "run" / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_asked_for_and_nothing_is_wrong(report: Path, width: int) -> None:
    with page(width, offline=True) as opened:
        opened.goto(report.as_uri())
        assert opened.requests[0] == report.as_uri()
        assert [address for address in opened.requests[1:] if not address.startswith("data:")] == []
        assert opened.complaints == []
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
        assert opened.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert serious_findings(opened) == []
