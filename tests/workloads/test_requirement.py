"""Requirement strings that a project or a machine gives: none does harm, whatever it says."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import InvalidRequirement, Requirement

from glasshouse.workloads import requirement
from glasshouse.workloads.pip import Target
from glasshouse.workloads.requirement import MAX_NEEDS, asked_of_any, for_extras, holds, of_extras, parsed

ENVIRONMENT = Target("3.12").environment
_NAMES = [
    "os_name",
    "python_version",
    "platform_release",
    "platform_version",
    "extra",
    "extras",
    "sys_platform",
]
_VALUES = st.sampled_from([*_NAMES, "'a'", "'1.0'", "''", "'3.12'", "'x'"])
_OPERATORS = st.sampled_from(["==", "~=", "===", "<", ">=", "!=", " in ", " not in "])
_COMPARISONS = st.builds("{}{}{}".format, _VALUES, _OPERATORS, _VALUES)
MARKERS = st.recursive(
    _COMPARISONS, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
)
TEXTS = st.text(max_size=60) | st.builds("a{} ; {}".format, st.sampled_from(["", "[x]", ">=1"]), MARKERS)


@given(TEXTS, st.text(max_size=3))
@example("a;" + "(" * 5000 + "os_name=='x'" + ")" * 5000, "")
@example("a;" + "(" * 5000, "")
@example("a" + " " * 2_000_000 + "!", "")
@example("a; os_name ~= 'a'", "")
@example("a; 'x' in extras", "")
def test_no_text_ends_otherwise(text: str, extra: str) -> None:
    with contextlib.suppress(InvalidRequirement):
        holds(parsed(text), ENVIRONMENT, extra)
    of_extras([text], ENVIRONMENT)
    for_extras([Requirement("p[x]")], {"p": (text,)}, ENVIRONMENT)


@given(TEXTS)
def test_what_was_read_can_be_asked_of_every_machine(text: str) -> None:
    with contextlib.suppress(InvalidRequirement):
        found = asked_of_any(parsed(text))
        for target in (Target("3.11"), Target("3.13", "aarch64", 0, 7)):
            holds(found, target.environment)


@pytest.mark.parametrize(
    "text",
    ["internal", "internal; python_version > '3'", "internal; extra == 'x' or os_name == 'posix'",
     "internal; extra == ''", "internal; extra != 'y'", "internal @ file:///x.whl ; extra == 'x'",
     "internal; extra ~= 'x'", "internal===${HOME} ; extra == 'x'", "internal\n-r /x ; extra == 'x'",
     "internal===1\u2028--index-url ; extra == 'x'", "internal===1\x1b[31m ; extra == 'x'"],
)  # fmt: skip
def test_a_machine_names_nothing_but_what_an_extra_needs(text: str) -> None:
    assert of_extras([text], ENVIRONMENT) == {}
    assert for_extras([Requirement("p[x]")], {"p": (text,)}, ENVIRONMENT) == {}


def test_extras_that_somebody_asks_for_are_followed() -> None:
    extras = {
        "p": ("p[x,z]; extra == 'all'", "one>=1; extra == 'x' and python_version >= '3.12'",
              "old; extra == 'x' and python_version < '3.12'", "two; extra == 'y'",
              "q[More_of]; extra == 'z'"),
        "q": ("three; extra == 'more-of'", "four; extra == 'other'"),
        "r": ("five; extra == 'x'",),
    }  # fmt: skip
    assert for_extras([Requirement("p"), Requirement("other[x]")], extras, ENVIRONMENT) == {}
    assert for_extras([Requirement("P[X]")], extras, ENVIRONMENT) == {"p": ('one>=1; extra == "x"',)}
    found = for_extras([Requirement("p[all]")], extras, ENVIRONMENT)
    assert {name: set(items) for name, items in found.items()} == {
        "p": {'p[x,z]; extra == "all"', 'one>=1; extra == "x"', 'q[More_of]; extra == "z"'},
        "q": {'three; extra == "more-of"'},
    }


def test_how_much_of_an_answer_is_looked_at_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"a{number}; extra == 'x'" for number in range(MAX_NEEDS + 1)]
    assert len(of_extras(many, ENVIRONMENT)) == MAX_NEEDS
    chain = {"p": tuple(f"p[e{number + 1}]; extra == 'e{number}'" for number in range(10))}
    monkeypatch.setattr(requirement, "MAX_ASKED", 4)
    assert len(for_extras([Requirement("p[e0]")], chain, ENVIRONMENT)["p"]) == 4
