"""What looks random: a key or token in no vendor's list, in a text that has no reason to hold one.

A run of letters and digits counts as random by its kinds of characters, how often they change, and the
entropy of its characters (Shannon, in bits a character). Words, names of rows and runs, versions and numbers
do not reach it. Linear in the text's length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import Final

MIN_CHARS = 20  # of a run: no key of a vendor's is shorter
MIN_HEX = 24
MIN_BITS = 3.2
MIN_CHANGES = 4  # between kinds of characters: lower, upper, digit
_RUN: Final = re.compile(r"[A-Za-z0-9+/=_\-~]{20,}")
_PARTS: Final = re.compile(r"[A-Za-z0-9]+")
_CAMEL: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
# Names of ours that are made of a date and few random letters.
_NAMES: Final = re.compile(
    r"\b20\d\d-[01]\d-[0-3]\d-[a-z0-9.\-]{1,140}(?![\w\-])|\b(?:gh-)?20\d{6}-\d{6}-[a-z2-7]{6}(?:-[0-9a-f]{8})?\b"
)
_HEX: Final = re.compile(r"(?:0x)?(?:[0-9a-f]{24,}|[0-9A-F]{24,})\Z")
_UUID: Final = re.compile(r"(?<![\w\-])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![\w\-])")


def looks_random(text: str) -> bool:
    """Whether some run of characters in a text looks random."""
    if len(text) < MIN_CHARS:
        return False
    text = _NAMES.sub(" ", text)
    return _UUID.search(text) is not None or any(_random(run) for run in _RUN.findall(text))


def _random(run: str) -> bool:
    run = run[:4096]  # as random as a longer one
    if _HEX.match(run):
        return len(set(run)) >= 6
    letters = sum(len(part) for part in _PARTS.findall(run) if _mixed(part))
    return letters >= MIN_CHARS * 2 // 3 and _changes(run) >= MIN_CHANGES and _bits(run) >= MIN_BITS


def _mixed(part: str) -> bool:
    """Whether a word has what no word has: digits among letters, or capitals within."""
    if part.isdigit() or (part.islower() and part.isalpha()):
        return False
    if all(len(word) > 1 for word in _CAMEL.findall(part)) and sum(char.isdigit() for char in part) <= 4:
        return False  # aNameInCode, sha256
    digits = any(char.isdigit() for char in part) and any(char.isalpha() for char in part)
    return digits or _changes(part) >= 3


def _changes(text: str) -> int:
    kinds = [("d" if c.isdigit() else "u" if c.isupper() else "l") for c in text if c.isalnum()]
    return sum(before != after for before, after in pairwise(kinds))


def _bits(text: str) -> float:
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values())
