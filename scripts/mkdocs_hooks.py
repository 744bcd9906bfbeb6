"""Hooks of `mkdocs build`: pages of files outside docs/, and links to them that hold on the site as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "examples/README.md": "examples.md",
}
"""Files outside docs/ and the pages that they become."""
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each file outside docs/; the examples' sources stand on theirs."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.startswith("examples/"):
            text += "".join(
                f"\n## {file.name}\n\n```python\n{file.read_text(encoding='utf-8')}```\n"
                for file in sorted((ROOT / "examples").glob("*.py"))
            )
        files.append(File.generated(config, page, content=linked(text, Path(source).parent, page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links that lead out of docs/ into links to pages."""
    source = page.file.src_uri
    return (
        markdown if source in PAGES.values() else linked(markdown, Path("docs") / Path(source).parent, source)
    )


def linked(text: str, folder: Path, page: str) -> str:
    """Rewrites relative links of a file.

    Args:
        text: Markdown.
        folder: that its links are relative to, below the repository.
        page: that it becomes.

    Returns:
        The text with links that are relative to the page.
    """
    up = "../" * page.count("/")

    def rewritten(match: re.Match[str]) -> str:
        target = (ROOT / folder / match[2]).resolve()
        if not target.is_relative_to(ROOT):
            return match[0]
        name = target.relative_to(ROOT).as_posix()
        if name.startswith("docs/"):
            return f"{match[1]}{up}{name.removeprefix('docs/')}{match[3] or ''})"
        if name.startswith("examples/") and name.endswith(".py"):
            return f"{match[1]}{up}examples.md#{target.name.lower().replace('.', '')})"
        return f"{match[1]}{up}{PAGES[name]}{match[3] or ''})" if name in PAGES else match[0]

    return LINK.sub(rewritten, text)
