"""Requirement strings (PEP 508) of files and of machines, read and asked so that none of them does harm.

The parser calls itself once for each parenthesis, and a marker may compare what cannot be compared, which is
seen when it is asked: all of that is InvalidRequirement here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

MAX_CHARS: Final = 2000
MAX_PARENTHESES: Final = 50
MAX_NEEDS: Final = 2000  # for extras of one package; the most that is seen is about a thousand
MAX_ASKED: Final = 100  # extras of what a machine has that one project asks for, also by another one
# What a marker is tried with where the machine is not known. What can be compared depends on which values are
# versions alone, and those are the same here and in every Target's environment.
_ANY: Final = {"platform_release": "", "platform_version": ""}


class MarkerError(InvalidRequirement):
    """A marker that cannot be asked."""


def parsed(text: str) -> Requirement:
    """Read one. Raises InvalidRequirement, with no word of the text where it is too long to be shown."""
    if len(text) > MAX_CHARS:
        raise InvalidRequirement(f"more than {MAX_CHARS} characters")
    if text.count("(") > MAX_PARENTHESES:
        raise InvalidRequirement(f"more than {MAX_PARENTHESES} parentheses")
    try:
        return Requirement(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequirement(str(error)) from error


def holds(requirement: Requirement, environment: Mapping[str, str], extra: str = "") -> bool:
    """Whether its marker is true there, or it has none. Raises MarkerError for one that cannot be asked.

    environment: by PEP 508, of the machine that is meant.
    """
    if requirement.marker is None:
        return True
    try:
        return requirement.marker.evaluate({**environment, "extra": extra})
    except (ValueError, KeyError, AttributeError, TypeError, AssertionError, RecursionError) as error:
        raise MarkerError("it compares what cannot be compared") from error


def asked_of_any(requirement: Requirement) -> Requirement:
    """Return it, if its marker can be asked at all. Raises MarkerError."""
    holds(requirement, _ANY)
    return requirement


def of_extras(items: Sequence[str], environment: Mapping[str, str]) -> dict[str, Requirement]:
    """Return of a machine's answer what is needed for an extra alone, by its text: of the first MAX_NEEDS.

    What is needed without one is left out, for the machine has it or does not need it; so is what names a
    place to fetch from, and what would be more than one line, or name a variable, where pip reads it.
    """
    found: dict[str, Requirement] = {}
    for text in items[:MAX_NEEDS]:
        if "$" in text or not (text.isascii() and text.isprintable()):
            continue
        try:
            item = parsed(text)
            if item.url is None and not holds(item, environment):
                found[text] = item
        except InvalidRequirement:
            pass
    return found


def for_extras(
    asking: Iterable[Requirement], extras: Mapping[str, Sequence[str]], environment: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return of a machine's `extras` what they need for those extras that somebody asks for, by package.

    asking: requirements of the project, and of what is fetched for it; a need that itself asks for an extra
    of another package, or of the same, does so too. Each marker was asked of `environment`: what is left of
    it is the extra. No more than MAX_ASKED extras are looked at.
    """
    found: dict[str, dict[str, None]] = {}
    known: dict[str, dict[str, Requirement]] = {}
    left, seen = list(asking), set[tuple[str, str]]()
    while left:
        item = left.pop()
        name = canonicalize_name(item.name)
        for extra in {canonicalize_name(extra) for extra in item.extras}:
            if (name, extra) in seen or name not in extras or len(seen) == MAX_ASKED:
                continue
            seen.add((name, extra))
            if name not in known:
                known[name] = of_extras(extras[name], environment)
            for need in known[name].values():
                if _holds_for(need, environment, extra):
                    plain = copy.copy(need)
                    plain.marker = None
                    left.append(plain)
                    found.setdefault(name, {})[f'{plain}; extra == "{extra}"'] = None
    return {name: tuple(texts) for name, texts in found.items()}


def _holds_for(need: Requirement, environment: Mapping[str, str], extra: str) -> bool:
    try:
        return holds(need, environment, extra)
    except InvalidRequirement:
        return False
