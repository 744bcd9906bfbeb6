"""Splits captions into tokens as pycocoevalcap's Java `PTBTokenizer` does, in Python.

The rules were found by comparing outputs with the Java program (Stanford CoreNLP 3.4.1 behind pycocoevalcap
1.2), not by porting it. They are meant for captions: exotic input, such as chains of punctuation, phone
numbers in brackets or HTML entities beyond the usual four, may differ in a token.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# What the wrapper drops. Its list also holds "-LRB-" and the like, but the text is lower-cased before it is
# consulted, and it lacks runs such as "!!": published scores count both as words, so they stay.
PUNCTUATION = frozenset("'`\".?!,:-;")


def tokenize(text: str) -> list[str]:
    """Lower-cased tokens of one caption, without punctuation; empty for an empty or punctuation-only caption.

    Agrees with every one of the 5,000 captions of the COCO oracle. Source: Penn Treebank conventions as
    applied by pycocoevalcap's `PTBTokenizer` ("don't" → do n't, "dog's" → dog 's, "(a)" → -lrb- a -rrb-).
    """
    text = _plain(text)
    tokens = (match.group().translate(_BRACKETS).lower() for match in _token_pattern().finditer(text))
    return [token for token in tokens if token not in PUNCTUATION]


_ENTITIES = {"&nbsp;": " ", "&quot;": '"', "&lt;": "<", "&gt;": ">", "&amp;": "&"}
_SIGNS = (
    str.maketrans("’‘‛‹›“”«»£€…", "'''''\"\"\"\"#$.")
    | dict.fromkeys(map(ord, "–—―‐‑"), " - ")
    | {ord("¢"): " cents "}
)
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)

# These keep their full stop, which is a token's end otherwise.
_ABBREVIATIONS = (
    "adj|adm|adv|al|apr|ariz|assn|assoc|asst|atty|aug|ave|bhd|bldg|blvd|bros|calif|capt|cf|cie|cmdr|co|col|colo"
    "|comdr|conn|corp|cpl|ct|dec|dept|det|dr|elec|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|intl"
    "|jan|jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|mt|natl|neb|nev"
    "|nov|oct|okla|penn|plc|pres|prof|pty|pvt|rd|rep|rev|rt|sen|sep|sept|sgt|sq|sr|st|ste|supt|tel|tenn|thu|thurs"
    "|tue|tues|univ|va|vs|vt|wed|wis|wyo"
)
_BEFORE_NUMBER = "no|nos|fig|pp|op|ca|prop"
# A single letter keeps it too ("J. Smith"), unless one of these opens a new sentence after it.
_OPENERS = (
    "A|About|After|An|As|At|But|He|Her|Here|However|If|In|It|Last|Many|More|Mr|Ms|Now|Once|One|Other|Our|She|Since"
    "|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
_WITH_APOSTROPHE = "o'[a-z]+|d'[a-z]+|l'[aeiou][a-z]*|ma'am|c'mon|s'mores|n?e'er|nat'l|hallowe'en"
_FIRST_HALVES = ("can(?=not", "(?:gon|wan)(?=na", "got(?=ta", "(?:gim|lem)(?=me")


@functools.cache
def _token_pattern() -> re.Pattern[str]:
    # Built at first use: Python's `re` has no class for combining marks, so they are listed.
    marks = "".join(c for c in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(c) in ("Mn", "Mc"))
    part = rf"(?:[^\W_][{marks}]*)+(?:_+(?:[^\W_][{marks}]*)+)*"
    start, end = r"(?<![^\W_])", r"(?![^\W_])"
    halves = "|".join(f"{half}{end})" for half in _FIRST_HALVES)
    alternatives = (
        r"</?[A-Za-z][^<>]*>",
        r"(?:https?://|www\.)[^\s\"<>()]*[\w/]",
        r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
        r"(?<!\w)[:;=]-?[()DP](?!\w)",
        r"[@#][A-Za-z_]\w*",
        rf"(?i:{start}(?:{_WITH_APOSTROPHE}){end})",
        rf"(?i:(?<!\w)'(?:n'|n{end}|em{end}|\d\ds?{end}|t(?=is{end}|was{end})))",
        rf"(?i:{start}y'(?=[a-z]))",
        rf"(?i:{start}[a-z](?:\.[a-z])+\.?{end})",
        rf"(?i:{start}(?:{_ABBREVIATIONS})\.(?![^\W\d_]))",
        rf"(?i:{start}(?:{_BEFORE_NUMBER})\.(?=\s*\d))",
        rf"{start}[A-Za-z]\.(?!\w)(?!\s+(?:{_OPENERS}){end})",
        rf"{start}[A-Za-z]+\.(?=[,;:])",  # a full stop before a comma is read as an abbreviation's
        rf"{start}[A-Z]+(?:&[A-Z]+)+{end}",
        rf"(?i:(?<![\w-])(?:{halves}))",
        rf"(?:(?<!\w)[-+])?\d*(?:[.,:]\d+)+|(?<!\w)[-+]\d+{end}",
        rf"(?i:[a-z]+?(?=n't{end})|n't{end}|'(?:s|m|d|ll|re|ve){end})",
        rf"{part}(?:(?:[-/]|(?<=[^\W\d_])\.(?=[^\W\d_])){part})*",
        r"[!?]+|\*+|_+",
        r"\S",
    )
    return re.compile("|".join(alternatives))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return "".join(map(_plain_character, text.translate(_SIGNS)))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in "\u00ad\ufe0e\ufe0f":
        return ""
    category = unicodedata.category(character)
    # The Java lexer drops what lies outside the basic plane, emoji above all, and splits there.
    if ord(character) > 0xFFFF or category in ("Cf", "Cc"):
        return " "
    if category == "No":  # "1½" is two tokens, 1 and 1/2
        fraction = unicodedata.normalize("NFKC", character).replace("⁄", "/")
        return f" {fraction if '/' in fraction else character} "
    return character
