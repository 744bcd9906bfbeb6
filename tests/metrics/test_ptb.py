"""The Python tokenizer gives what the Java one gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockadapt.metrics.ptb import PUNCTUATION, tokenize

# Right-hand sides were written by pycocoevalcap 1.2's PTBTokenizer, run in Java.
JAVA = [
    ("A brown bear's face.", "a brown bear 's face"),
    ("It's the dogs' toy, isn't it?", "it 's the dogs toy is n't it"),
    ("He can't, won't and shouldn't've.", "he ca n't wo n't and should n't 've"),
    ("A close-up of a wine-filled glass", "a close-up of a wine-filled glass"),
    ("I CANNOT see it.", "i can not see it"),
    ("We're gonna wanna go", "we 're gon na wan na go"),
    ("A man at 7:30 p.m. in the U.S.", "a man at 7:30 p.m. in the u.s."),
    ("A bus on Sunset Blvd.", "a bus on sunset blvd."),
    ("St. Patrick and Mr. Smith on No. 5", "st. patrick and mr. smith on no. 5"),
    ("See group A. The next", "see group a the next"),
    ("J. Smith and R.I.P. on a t.v.", "j. smith and r.i.p. on a t.v."),
    ("A river.A group of people", "a river.a group of people"),
    ('The sign says "East 278 Queens Bronx".', "the sign says east 278 queens bronx"),
    ("A plate (blue) [red] {big}", "a plate -lrb- blue -rrb- -lsb- red -rsb- -lcb- big -rcb-"),
    ("mirror/cabinet, elephant/ and 50/50", "mirror/cabinet elephant / and 50/50"),
    ("$5.50 and 50% of 2,000 on #1", "$ 5.50 and 50 % of 2,000 on # 1"),
    ("A half ½ and 1½ cups", "a half 1/2 and 1 1/2 cups"),
    ("wait... what!! really?! no...", "wait what !! really ?! no"),
    ("foo--bar foo - bar", "foo bar foo bar"),
    ("“Curly” don’t, dog’s – dash — em", "curly do n't dog 's dash em"),
    ("café naïve Привет 日本語", "café naïve привет 日本語"),
    ("हिन्दी ไทย", "हिन्दी ไทย"),
    ("cat🐱dog 😀", "cat dog"),
    ("Tom & Jerry AT&T R&B", "tom & jerry at&t r&b"),
    ("5 o'clock, mac 'n cheese, 'em", "5 o'clock mac 'n cheese 'em"),
    ("rock 'n' roll in the '80s and 1980's", "rock 'n' roll in the '80s and 1980 's"),
    ("cats &amp; dogs", "cats & dogs"),
    ("6'2\" tall", "6 2 tall"),
    (
        "under_score @user #tag a@b.com http://a.com/x?y=1",
        "under_score @user #tag a@b.com http://a.com/x?y=1",
    ),
    ("y'all 'tis 'twas", "y' all 't is 't was"),
    ('8" x 10" and -5 degrees', "8 x 10 and -5 degrees"),
    ("a boat., with", "a boat. with"),
    ("* ** ~", "* ** ~"),
    ("zero\u200bwidth so\xadft", "zero width soft"),
    ("two\nlines\tand  spaces", "two lines and spaces"),
    ("...", ""),
    ("😀", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), JAVA)
def test_same_as_java(text: str, expected: str) -> None:
    assert " ".join(tokenize(text)) == expected


@pytest.mark.real
def test_all_captions_of_the_oracle(real: Path) -> None:
    lines = (real / "oracles/coco-captions/captions.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = []
    for row in map(json.loads, lines):
        pairs.append((row["candidate"], row["candidate_ptb"]))
        pairs += zip(row["references"], row["references_ptb"], strict=True)
    assert len(pairs) == 5000
    assert [(text, " ".join(tokenize(text))) for text, _ in pairs] == pairs


@given(st.text(max_size=60))
def test_any_text_gives_clean_tokens(text: str) -> None:
    for token in tokenize(text):
        assert token
        assert token not in PUNCTUATION
        assert token == token.lower()
