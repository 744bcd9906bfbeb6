"""README.md stays short; README.zh-CN.md says the same: same headings, same commands, same links, same numbers."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


def sections(file: Path) -> list[tuple[str, str]]:
    """Level of each heading, and the text below it; headings inside of code are none."""
    text = re.sub(
        r"(?m)^```\w*\n.*?^```$",
        lambda block: re.sub(r"(?m)^#", " #", block[0]),
        file.read_text(encoding="utf-8"),
        flags=re.S,
    )
    parts = re.split(r"^(#+) .*$", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code(text: str) -> list[str]:
    """Blocks of code without their comments."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.M | re.S)
    return ["\n".join(re.sub(r"\s+# .*|^# .*", "", line) for line in block.splitlines()) for block in blocks]


def numbers(text: str) -> Counter[str]:
    """Numbers of a text, those of its code included."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\([^)]*\)", "", text)))


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(ENGLISH.read_text(encoding="utf-8").splitlines()) < 200


def test_the_chinese_readme_is_in_step() -> None:
    english, chinese = sections(ENGLISH), sections(CHINESE)
    assert [level for level, _ in english] == [level for level, _ in chinese]
    for (_, ours), (_, theirs) in zip(english, chinese, strict=True):
        where = ours.strip()[:60]
        assert code(ours) == code(theirs), where
        assert numbers(ours) == numbers(theirs), where
        links = [re.findall(r"\]\(([^)]+)\)", text) for text in (ours, theirs)]
        assert sorted(links[0]) == sorted(links[1]), where


def test_the_chinese_readme_is_chinese() -> None:
    prose = re.sub(r"```.*?```", "", CHINESE.read_text(encoding="utf-8"), flags=re.S)
    assert len(re.findall(r"[\u4e00-\u9fff]", prose)) > 1000


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "readme_numbers", ROOT / "scripts" / "make_readme_numbers.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_numbers_are_those_of_the_matrix(script: ModuleType) -> None:
    measured = script.SOURCE.read_text(encoding="utf-8")
    for file, sentence in script.READMES.items():
        text = file.read_text(encoding="utf-8")
        assert script.updated(text, sentence, measured) == text, "run python scripts/make_readme_numbers.py"
        other = script.updated(text, sentence, "7 of 9 train, merge and verify")
        assert re.search(r"\b7 of 9\b|9 个.*7 个", other)


LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", ".github/**/*.md")
    for file in ROOT.glob(pattern)
)


def anchors(file: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_internal_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for address in LINK.findall(text):
        if re.match(r"[a-z]+:", address):
            continue
        name, _, anchor = address.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {address}"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{page.name}: {address}"
