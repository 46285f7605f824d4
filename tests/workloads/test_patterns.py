"""What .glasshouseignore leaves out, held against git itself; what a pattern of model.include means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glasshouse.workloads.patterns import Glob, IgnoreRules

# Small, so that patterns and names meet often.
_PART = st.text(alphabet="ab.-é", min_size=1, max_size=5).filter(lambda part: set(part) != {"."})
NAMES = st.lists(_PART, min_size=1, max_size=4).map("/".join)
# `**` as a whole part alone: what else it does in git depends on where the pattern's first wildcard stands.
# `?` and brackets beside é are bytes to git.
_PIECES = st.sampled_from(
    [
        *("a", "b", ".", "-", "é", "*", "?", "[ab]", "[!a]", "[^b]", "[a-b]", "[]a]", "[a-]", "[b-a]"),
        *("[[:alpha:]]", "[![:punct:]]", "\\a", "\\*", "\\!", " ", "[", "[:a]", "[\\]a]", "#", "!"),
    ]
)
_PATTERN_PART = st.one_of(
    st.just("**"),
    st.lists(_PIECES, min_size=1, max_size=5).map("".join).filter(lambda part: "**" not in part),
)
LINES = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "!", "#"]),
    st.sampled_from(["", "/"]),
    st.lists(_PATTERN_PART, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "/", "\\ ", "\\"]),
    st.sampled_from(["", " ", "\r", "  "]),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    return folder


def git(folder: Path, *words: str, sent: bytes = b"") -> bytes:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", "-C", folder, *words], input=sent, capture_output=True, check=False, env=environment
    )
    assert done.returncode in (0, 1), done.stderr  # 1: check-ignore found nothing
    return done.stdout


def ignored_by_git(folder: Path, names: list[str]) -> set[str]:
    """By the file `.gitignore` in the folder. git needs no files for it, but folders it tells by the disk."""
    sent = b"".join(name.encode() + b"\0" for name in names)
    found = git(folder, "check-ignore", "-z", "--stdin", "--no-index", sent=sent)
    return {os.fsdecode(name) for name in found.split(b"\0") if name}


def asks_bytes(line: str) -> bool:
    """Whether git's answer depends on its matching of bytes: see patterns.py."""
    return any(char in line for char in "?[")


@settings(max_examples=300)
@given(st.lists(LINES, min_size=1, max_size=4), st.lists(NAMES, min_size=1, max_size=12, unique=True))
@example(["a/**/b"], ["a/b", "a/a/b", "a/a/a/b", "b/a/b"])
@example(["a/**"], ["a", "a/b"])
@example(["**/b"], ["b", "a/b"])
@example(["/a"], ["a", "b/a"])
@example(["a/b"], ["a/b", "b/a/b"])
@example(["a", "!a/b"], ["a/b"])
@example(["a/*", "!a/b"], ["a/b", "a/a"])
@example(["*", "!*/"], ["a", "a/b"])
@example(["[a-b]\r", "\\#", "\\!a"], ["a", "#", "!a"])
def test_the_rules_are_gits(repository: Path, lines: list[str], names: list[str]) -> None:
    if any(asks_bytes(line) for line in lines):
        names = [name for name in names if name.isascii()]
    (repository / ".gitignore").write_bytes("\n".join(lines).encode())
    rules = IgnoreRules.read("\n".join(lines))
    ours = {name for name in names if rules.leaves_out(name)}
    assert ours == ignored_by_git(repository, names)


# What is tried anew at every asterisk does not end within a lifetime.
SLOW = """
from glasshouse.workloads.patterns import Glob, IgnoreRules
assert not IgnoreRules.read("a*" * 40 + "b").leaves_out("a" * 250)
assert not IgnoreRules.read("**/a/" * 40 + "b").leaves_out("/".join("a" * 250))
assert not Glob.of("**/" * 40 + "x").means("/".join("d" * 250))
assert not Glob.of("**/a*/" * 40 + "x").means("/".join("a" * 250))
assert IgnoreRules.read("a*" * 40).leaves_out("a" * 250)
assert Glob.of("**/a/" * 40 + "**").means("/".join("a" * 250))
"""


def test_many_asterisks_are_no_work() -> None:
    subprocess.run([sys.executable, "-c", SLOW], check=True, timeout=120)


@given(st.text(max_size=40), NAMES)
def test_no_text_ends_the_reading(text: str, name: str) -> None:
    IgnoreRules.read(text).leaves_out(name)
    if text.strip("/"):
        Glob.of(text).means(name)


@pytest.mark.parametrize(
    ("text", "means", "not_means"),
    [
        ("data/**", ["data/a", "data/a/b", "data/a b\nc"], ["data", "x/data/a", "database/a"]),
        ("data", ["data", "data/a/b"], ["x/data", "database"]),
        ("data/", ["data/a"], ["data"]),
        ("/data", ["data/a"], []),
        ("*.json", ["a.json"], ["a/b.json", "a.jsonl"]),
        ("**/*.json", ["a.json", "a/b.json", "a/b/c.json"], ["a.jsonl"]),
        ("a?c/[xy]*", ["abc/x1", "aéc/y"], ["ac/x", "abc/z", "a/c/x"]),
        (r"\[a\].txt", ["[a].txt"], ["a.txt"]),
        ("名/**", ["名/前"], ["名前"]),
    ],
)
def test_a_pattern_begins_at_the_top(text: str, means: list[str], not_means: list[str]) -> None:
    glob = Glob.of(text)
    assert [name for name in [*means, *not_means] if glob.means(name)] == means


@pytest.mark.parametrize(
    ("text", "name", "means"),
    [
        ("**", ".env", False),
        ("*", ".env", False),
        ("?env", ".env", False),
        ("[.]env", ".env", False),
        ("**/*.json", ".cache/a.json", False),
        ("data", "data/.cache/a", False),
        ("data/**", "data/.env", False),
        (".env", ".env", True),
        ("**/.env", ".env", True),
        ("**/.env", "a/.env", True),
        (".cfg/**", ".cfg/a", True),
        (".*", ".env", True),
    ],
)
def test_wildcards_match_no_hidden_name(text: str, name: str, means: bool) -> None:
    assert Glob.of(text).means(name) is means


def test_a_pattern_spells_the_folders_before_its_first_wildcard() -> None:
    glob = Glob.of("env/lib/*/x")
    assert [name for name in ("env", "env/lib", "env/lib/a", "en", "lib") if glob.names(name)] == [
        "env",
        "env/lib",
    ]
    assert not Glob.of("**").names("env")
