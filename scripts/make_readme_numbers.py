"""Writes the measured share of existing VLMs into both READMEs, from `docs/compatibility.md`.

python scripts/make_readme_numbers.py            # rewrite what stands between the `measured` markers
python scripts/make_readme_numbers.py --check    # exit code 1 if a README is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "compatibility.md"
READMES = {
    ROOT / "README.md": "[{right} of {all} tiny models](docs/compatibility.md) train, merge and verify",
    ROOT
    / "README.zh-CN.md": "[{all} 个微型模型中的 {right} 个](docs/compatibility.md)可训练、合并并通过验证",
}
BEGIN, END = "<!-- measured: scripts/make_readme_numbers.py -->", "<!-- /measured -->"


def updated(text: str, sentence: str, measured: str) -> str:
    """The text with its sentence written anew.

    Args:
        text: of a README.
        sentence: with `{right}` and `{all}`.
        measured: text of `docs/compatibility.md`.

    Returns:
        The text.

    Raises:
        ValueError: a marker, or the measured numbers, are missing.
    """
    numbers = re.search(r"(\d+) of (\d+) train, merge and verify", measured)
    if numbers is None or BEGIN not in text or END not in text:
        raise ValueError("a marker, or the line with the measured numbers, is missing")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + sentence.format(right=numbers[1], all=numbers[2]) + END + tail


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    measured, stale = SOURCE.read_text(encoding="utf-8"), []
    for file, sentence in READMES.items():
        before = file.read_text(encoding="utf-8")
        after = updated(before, sentence, measured)
        if after != before:
            stale.append(file.name)
            if not check:
                file.write_text(after, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
