"""Every reason code stands once, is used, and has words: read from the source itself."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import glasshouse
from glasshouse import errors
from glasshouse.codes import Code, known
from glasshouse.judgement.caveats import CAVEATS
from glasshouse.judgement.rules import RULES
from glasshouse.reasons import GROUPS, REASONS, arising, reason
from glasshouse.reasons.entry import Place
from glasshouse.runtime.session import SESSION_PARTS

ROOT = Path(glasshouse.__file__).parent
# Where a code is given as an argument: the function's name, and which argument it is.
ARGUMENTS = {
    "Check": 0,
    "check": 0,
    "Rule": 0,
    "require": 0,
    "refuse": 1,
    "_refused": 0,
    "_Refused": 1,
    "_failed": 1,
    "fail": 0,
}
TARGETS = ("code", "phase")  # what a code is assigned to
LISTS = ("codes", "failures", "faults", "chain_codes", "strange", "found")  # what a code is added to
# Words that are made of a code and a variable part: Code(f"malformed-{what}").
PARTS = {"part": tuple(part.replace("_", "-") for part in SESSION_PARTS), "arm": ("raw", "protected")}


@dataclass(frozen=True)
class Use:
    """A code as it stands in the source."""

    code: str
    where: str
    literal: bool


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    """Every module that may raise a code, parsed once."""
    names = [(path, path.relative_to(ROOT).as_posix()) for path in sorted(ROOT.rglob("*.py"))]
    return [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for path, name in names
        if name != "codes.py" and not name.startswith(("reasons/", "providers/fakes/"))
    ]


def values(node: ast.expr) -> Iterator[ast.expr]:
    """What `node` may come to: both ends of an either-or, a list's elements, a tuple's first."""
    if isinstance(node, ast.IfExp):
        yield from values(node.body)
        yield from values(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for item in node.values:
            yield from values(item)
    elif isinstance(node, ast.List):
        for item in node.elts:
            yield from values(item)
    elif isinstance(node, ast.Tuple) and node.elts:
        yield from values(node.elts[0])
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        yield from values(node.elt)
    else:
        yield node


def literal(node: ast.expr) -> str | None:
    """The code that a string names, without what it is about; None for what is no string."""
    if isinstance(node, ast.JoinedStr):
        first = node.values[0]
        text = first.value if isinstance(first, ast.Constant) else None
        return str(text).partition(":")[0] if text is not None and ":" in str(text) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def at_raise_sites(tree: ast.Module) -> Iterator[tuple[ast.expr, int]]:
    """Every expression that gives a code: to an error, a rule, a check, a list of codes, a run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            at = ARGUMENTS.get(name)
            if at is not None and len(node.args) > (2 if name in ("check", "require") else at):
                yield node.args[at], node.lineno
            if name == "append" and getattr(getattr(node.func, "value", None), "id", "") in LISTS:
                yield node.args[0], node.lineno
            for keyword in node.keywords:
                if keyword.arg in ("code", "codes"):
                    yield keyword.value, node.lineno
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                attribute = getattr(target, "attr", "") or getattr(target, "id", "")
                key = target.slice.value if _by_name(target) else ""  # type: ignore[attr-defined]
                added = isinstance(node, ast.AugAssign) and attribute in LISTS
                if attribute in TARGETS or key in TARGETS or added:
                    yield node.value, node.lineno


def _by_name(target: ast.expr) -> bool:
    return isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)


@functools.cache
def literals() -> list[Use]:
    """Codes that are written as strings where one is raised. A disturbance has words of its own."""
    found = []
    for name, tree in sources():
        if name.startswith("measurement/"):
            continue
        for given, line in at_raise_sites(tree):
            texts = [text for node in values(given) if (text := literal(node))]
            found += [Use(text, f"{name}:{line}", literal=True) for text in texts]
    return found


def _is_code(node: ast.expr) -> bool:
    """Whether this is the enum: `Code`, or `codes.Code`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "Code" and isinstance(node.value, ast.Name) and node.value.id == "codes"
    return isinstance(node, ast.Name) and node.id == "Code"


@functools.cache
def members() -> set[str]:
    """Names of every member of Code that the source uses, also those it makes of a word and a part."""
    used: set[str] = set()
    whats = {
        keyword.value.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "what" and isinstance(keyword.value, ast.Constant)
    }
    parts = {**PARTS, "what": tuple(whats)}
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _is_code(node.value):
                used.add(node.attr)
            made = isinstance(node, ast.Call) and _is_code(node.func) and node.args
            if made and isinstance(node.args[0], ast.JoinedStr):  # type: ignore[attr-defined]
                used |= set(_made(node.args[0], parts))  # type: ignore[attr-defined]
    return used


def _made(text: ast.JoinedStr, parts: dict[str, tuple[str, ...]]) -> Iterator[str]:
    pieces = [piece.value if isinstance(piece, ast.Constant) else None for piece in text.values]
    names = [ast.unparse(piece) for piece in text.values if isinstance(piece, ast.FormattedValue)]
    variable = next(name for name in parts if any(name in given for given in names))
    for part in parts[variable]:
        code = known("".join(part if piece is None else str(piece) for piece in pieces), None)
        if code is not None:
            yield code.name


def test_the_reading_finds_codes_wherever_they_are_given() -> None:
    text = """
raise LegError("x", code="one")
raise AttestationError("x", codes=[f"two:{item}", Code.AUTH])
Check("three", False, "x"); reader.check("four", True, "x"); Rule("five", find)
codes.append("six"); failures += [f"seven:{item}" for item in items]
leg.code = "eight" if late else error.code; outcome["code"] = "nine"; context.phase = "ten"
self.code: str | None = "eleven"
faults.append(("twelve", "words"))
"""
    given = [node for value, _ in at_raise_sites(ast.parse(text)) for node in values(value)]
    found = {text for node in given if (text := literal(node))}
    assert found == {
        *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    }


def test_every_code_that_is_raised_is_one_of_the_catalogue() -> None:
    used = members()
    assert used <= set(Code.__members__)
    assert len(used) > 300
    assert [use for use in literals() if known(use.code, None) is None] == []
    assert {rule.code for rule in RULES} <= set(REASONS)


def test_no_code_is_a_loose_string_where_it_is_raised() -> None:
    assert literals() == []


def spelt_on_the_pod() -> set[str]:
    """Names of codes that stand as strings in what is run on a pod by itself, and imports nothing of ours."""
    tree = ast.parse((ROOT / "lifecycle/pod_probe.py").read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {code.name for code in Code if code in strings}


def test_every_code_of_the_catalogue_can_arise() -> None:
    used = members() | spelt_on_the_pod()
    idle = {code for code in Code if code.name not in used}
    early = {code for code, entry in REASONS.items() if entry.waits_for}
    late = {code for code, entry in REASONS.items() if entry.until}
    assert idle == early | late
    assert not early & late
    assert all(REASONS[code].waits_for.startswith(("issue ", "method ")) for code in early)
    assert all(REASONS[code].until.startswith("decision ") for code in late)


def test_every_code_has_one_entry() -> None:
    assert set(REASONS) == set(Code)
    assert sum(len(group) for _, group in GROUPS) == len(REASONS)
    assert not set(Code) & {item.code for item in CAVEATS}  # a code means one thing


def test_titles_and_paragraphs_read_well() -> None:
    titles = [entry.title for entry in REASONS.values()]
    texts = [entry.text for entry in REASONS.values()]
    assert len(set(titles)) == len(titles)
    assert len(set(texts)) == len(texts)
    for code, entry in REASONS.items():
        assert 3 < len(entry.title) <= 50, code
        assert not entry.title.endswith((".", " ")), code
        assert entry.title[0].isupper() or entry.title.startswith("torch"), code
        assert len(entry.text) > 20, code
        assert entry.text[0].isupper(), code
        assert entry.text.endswith("."), code
        assert "  " not in entry.text, code
        assert "\n" not in entry.text, code


def test_every_entry_says_where_it_arises_and_with_which_exit_status() -> None:
    for code, entry in REASONS.items():
        assert entry.places, code
        assert len(set(entry.places)) == len(entry.places), code
        assert entry.exit_status in (1, 3, 4), code
    assert {place for entry in REASONS.values() for place in entry.places} == set(Place)
    assert Code.NO_CAPACITY in arising(Place.PROVIDER)
    assert Code.HOST_KEY_MISMATCH in arising(Place.BOOT) & arising(Place.CONNECTION)


def test_what_a_provider_refuses_exits_as_the_catalogue_says() -> None:
    """Read from the source: each error with a code of its own has the exit status of the code's entry."""
    wrong = []
    for name, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in (
                "ProviderError",
                "RemoteError",
            ):
                continue
            kind = getattr(errors, ast.unparse(node.func))
            for code in (keyword.value for keyword in node.keywords if keyword.arg == "code"):
                if isinstance(code, ast.Attribute):
                    status = REASONS[Code[code.attr]].exit_status
                    wrong += [] if status == kind.exit_code else [f"{name}:{node.lineno} {code.attr}"]
    assert wrong == []
    for kind in (errors.HostKeyMismatch, errors.RentalOver):
        assert REASONS[kind.code].exit_status == kind.exit_code


@pytest.mark.parametrize("code", ["a-code-of-a-later-version", "", "Auth", "auth\n"])
def test_a_code_of_another_version_still_has_words(code: str) -> None:
    assert reason(code).text == "A code that this version does not know."
    assert reason(code).title == "Unknown to this version"


def test_what_a_code_is_about_may_stand_behind_it() -> None:
    assert reason("signed-row-edited:2026-11-03-row") is REASONS[Code.SIGNED_ROW_EDITED]


def test_an_error_carries_its_code_and_prints_it_once() -> None:
    plain = errors.ProviderError("no such GPU", code=Code.GPU_UNKNOWN, remedy="name another")
    assert (plain.code, plain.line()) == (Code.GPU_UNKNOWN, "no such GPU (code=gpu-unknown): name another")
    at_a_field = errors.HostKeyMismatch("wrong host key", field="host", value="h:22")
    assert (at_a_field.code, at_a_field.line()) == (Code.HOST_KEY_MISMATCH, "wrong host key (host=h:22)")
    assert errors.UsageError("no", field="a", value=1).code is None
    several = errors.VerificationError("no", codes=["signed-row-edited:row", "bundle-missing:row"])
    assert several.code is Code.SIGNED_ROW_EDITED
    assert several.line() == "no (failed=signed-row-edited:row,bundle-missing:row)"
    assert errors.SealError("no", codes=[]).code is None


def test_what_a_pod_calls_a_code_and_is_none_is_a_fault_without_one() -> None:
    assert errors.LegError("it failed", code="anything-at-all").code is Code.RUNTIME_ERROR
    assert errors.LegError("it failed", code="leg-deadline").code is Code.LEG_DEADLINE
