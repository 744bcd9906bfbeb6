"""Writes the table of recipe keys, from the schema, between the `keys` markers of `docs/recipes.md`.

    python scripts/make_recipe_docs.py            # rewrite the part between the markers
    python scripts/make_recipe_docs.py --check    # exit code 1 if the file is out of date

The prose around the markers is written by hand and left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lockadapt.recipe.keys import branches
from lockadapt.recipe.models import LoraSection, ModelSection
from lockadapt.recipe.objectives import KINDS, ObjectiveSection
from lockadapt.recipe.rewards import GuardSection, RewardSection, RewardsSection
from lockadapt.recipe.schema import (
    DataSection,
    EvaluationSection,
    Recipe,
    Section,
    StageSection,
    TrainingSection,
)
from lockadapt.recipe.sources import SourceSection

FILE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: written by scripts/make_recipe_docs.py -->", "<!-- /keys -->"
REWARDS = {
    name: branch
    for name, field in RewardsSection.model_fields.items()
    for branch in branches(field.annotation)
    if branch is not RewardSection
}
"""Rewards with keys of their own."""
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("Top level", Recipe),
    ("`model`", ModelSection),
    ("`lora`", LoraSection),
    ("`objectives.<name>`", ObjectiveSection),
    *((f"`objectives.<name>` of the kind `{kind}`", section) for kind, section in KINDS.items()),
    ("`objectives.<name>.train`, `.validation`, `.test`", SourceSection),
    ("`data`", DataSection),
    ("`training`", TrainingSection),
    ("`stages.<n>`", StageSection),
    ("`stages.<n>.rewards`", RewardsSection),
    ("`stages.<n>.rewards.<reward>`", RewardSection),
    *((f"`stages.<n>.rewards.{name}`", section) for name, section in REWARDS.items()),
    ("`stages.<n>.guard`", GuardSection),
    ("`evaluation`", EvaluationSection),
)
UNBOUNDED = 1_000_000_000
"""The schema's own upper limit on counts, which is not worth a reader's time."""
NOTHING = "–"
"""Default of a key that is not set; `null` in a recipe means the same."""


def tables() -> str:
    """One Markdown table for each section of a recipe, in the order of the schema."""
    return "\n".join(_table(title, section) for title, section in SECTIONS if _own_keys(section))


def updated(text: str) -> str:
    """The file's text with the part between the markers written anew.

    Raises:
        ValueError: a marker is missing.
    """
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the text lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"


def _own_keys(section: type[Section]) -> list[str]:
    """The keys of a section; of a kind of objectives those that not every objective has."""
    shared = ObjectiveSection.model_fields if section in KINDS.values() else {}
    if section in REWARDS.values():
        shared = RewardSection.model_fields
    return [name for name in section.model_fields if name not in shared]


def _table(title: str, section: type[Section]) -> str:
    own = section.model_json_schema()
    lines = [
        f"### {title}",
        "",
        section.__doc__ or "",
        "",
        "| key | value | default | effect |",
        "| --- | --- | --- | --- |",
    ]
    for name in _own_keys(section):
        field = section.model_fields[name]
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        value = _value(own["properties"][name])
        if section is ObjectiveSection and name == "kind":  # each kind's class knows its own only
            value, default = ", ".join(f"`{kind}`" for kind in KINDS), NOTHING
        if default == NOTHING:
            value = value.removesuffix(" or `null`")
        lines.append(f"| `{name}` | {value} | {default} | {_cell(field.description or '')} |")
    return "\n".join([*lines, ""])


def _default(value: Any) -> str:
    """A default as it would stand in a recipe; those of a section stand in its own table."""
    if value is None:
        return NOTHING
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, float) and 0 < value < 0.001:
        digits, _, power = f"{value:e}".partition("e")
        return f"`{float(digits):g}e{int(power)}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _value(node: dict[str, Any]) -> str:
    """What may stand there, in words, from the JSON schema of the key."""
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_value(branch) for branch in node["anyOf"]))
    if "$ref" in node:
        return "a section"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    kind = node.get("type")
    if kind == "array":
        item = node["items"]
        return "list of sections" if "$ref" in item else f"list of {_value(item)}"
    if kind == "object":
        return "names and sections" if "$ref" in str(node.get("additionalProperties")) else "names and values"
    return _PLAIN[str(kind)] + _bounds(node)


def _bounds(node: dict[str, Any]) -> str:
    low = f"≥ {node['minimum']:g}" if "minimum" in node else ""
    low = f"> {node['exclusiveMinimum']:g}" if "exclusiveMinimum" in node else low
    high = f"≤ {node['maximum']:g}" if node.get("maximum", UNBOUNDED) < UNBOUNDED else ""
    high = f"< {node['exclusiveMaximum']:g}" if node.get("exclusiveMaximum", UNBOUNDED) < UNBOUNDED else high
    both = ", ".join(part for part in (low, high) if part)
    return f" {both}" if both else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


_PLAIN = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "string": "text",
    "null": "`null`",
}


def main() -> None:
    """Rewrite the file, or with `--check` say whether that would change it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if out of date")
    arguments = parser.parse_args()
    before = FILE.read_text(encoding="utf-8")
    after = updated(before)
    if arguments.check:
        sys.exit(0 if before == after else f"{FILE} is out of date: run python scripts/make_recipe_docs.py")
    FILE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
