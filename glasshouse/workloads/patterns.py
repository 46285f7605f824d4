r"""Which names a pattern means: a .glasshouseignore, by the rules of gitignore(5), and model.include.

`#` begins a comment, `!` takes back, a slash at the end means folders, one elsewhere ties the pattern to the
top; `*` and `?` stop at slashes, `**/` and `/**` do not; `[a-z]`, `[!a-z]`, `[[:digit:]]`; `\` before what is
meant as it stands. The last line that matches decides, and nothing inside a folder that is left out can be
taken back. Unlike git's, a `?` is one character and not one byte, capitals always count, two asterisks mean
folders only as a whole part, and no file but the one at the top of the folder is read.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

_NEVER: Final = r"(?!)"
_SPECIAL: Final = frozenset("*?[\\")
_CLASS: Final = re.compile(r"\[:([^\]]*):\]")
_CLASSES: Final = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": re.escape(string.punctuation),
    "space": r" \t\n\r\f\v",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


@dataclass(frozen=True)
class Glob:
    """A pattern tied to the top of the folder; a folder that it means is meant with what is in it.

    As in a shell, no wildcard matches a name that begins with a dot, and a folder is meant without its hidden
    ones. Names are relative POSIX paths without a slash at the end. `literal` is what the pattern says before
    its first special character, whole parts only: `data/raw` of `data/raw/*.bin`.
    """

    text: str
    literal: str
    _regex: re.Pattern[str] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> Glob:
        """Read one pattern, such as `data/**`, `*.json` (at the top alone) or `**/*.json`."""
        body = text.removeprefix("/").rstrip("/")
        inside = r"(?:/(?!\.)[^/]+)" + ("+" if text.endswith("/") else "*")
        return cls(text, _literal(body), re.compile(_translate(body, dots=False) + inside, re.DOTALL))

    def means(self, name: str) -> bool:
        """Whether the file of this name is meant, by itself or with a folder around it."""
        return self._regex.fullmatch(name) is not None

    def names(self, folder: str) -> bool:
        """Whether the pattern itself spells this folder, or something in it: no wildcard led there."""
        return f"{self.literal}/".startswith(f"{folder}/")


@dataclass(frozen=True)
class _Line:
    regex: re.Pattern[str]
    whole: bool  # held against the whole path, else against its last part
    folders: bool
    takes_back: bool

    def matches(self, name: str, is_folder: bool) -> bool:
        if self.folders and not is_folder:
            return False
        return self.regex.fullmatch(name if self.whole else name.rpartition("/")[2]) is not None


class IgnoreRules:
    """What the lines of one .glasshouseignore leave out."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = [line for text in lines if (line := _ignore_line(text)) is not None]
        self._folders: dict[str, bool] = {}

    @classmethod
    def read(cls, text: str) -> IgnoreRules:
        """Read a file's text: UTF-8, with or without a byte order mark, lines ending in LF or CR LF."""
        lines = text.removeprefix("\ufeff").split("\n")
        return cls(line.removesuffix("\r") for line in lines)

    def leaves_out(self, name: str) -> bool:
        """Whether the file of this name, or a folder around it, is left out."""
        return self.leaves_out_folder(name.rpartition("/")[0]) or self._decides(name, is_folder=False)

    def leaves_out_folder(self, name: str) -> bool:
        """Whether this folder, or one around it, is left out; the top itself ("") never is."""
        if not name or not self._lines:
            return False
        known = self._folders.get(name)
        if known is None:
            known = self.leaves_out_folder(name.rpartition("/")[0]) or self._decides(name, is_folder=True)
            self._folders[name] = known
        return known

    def _decides(self, name: str, *, is_folder: bool) -> bool:
        for line in reversed(self._lines):
            if line.matches(name, is_folder):
                return not line.takes_back
        return False


def _ignore_line(text: str) -> _Line | None:
    if text.startswith("#"):
        return None
    text = _without_spaces(text)
    takes_back = text.startswith("!")
    body = text[1:] if takes_back else text
    folders = body.endswith("/")
    body = body[:-1] if folders else body
    if not body:
        return None
    whole = "/" in body
    regex = re.compile(_translate(body.removeprefix("/") if whole else body), re.DOTALL)
    return _Line(regex, whole, folders, takes_back)


def _without_spaces(text: str) -> str:
    r"""Without the spaces at the end, but for one behind a `\`."""
    kept = text.rstrip(" ")
    backslashes = len(kept) - len(kept.rstrip("\\"))
    return kept + " " if len(kept) < len(text) and backslashes % 2 else kept


def _literal(body: str) -> str:
    parts = body.split("/")
    plain = next((count for count, part in enumerate(parts) if _SPECIAL & set(part)), len(parts))
    return "/".join(parts[:plain])


def _translate(pattern: str, *, dots: bool = True) -> str:
    """Return a regular expression for the whole of a name, to be used with DOTALL.

    dots: wildcards also match the dot that a name begins with. What stands between two wildcards has one
    length, in characters or in parts, and where it is found first is as good as anywhere later; so nothing
    that was matched is tried anew (`(?>...)`), and the time grows with the lengths' product alone.
    """
    wild = "" if dots else r"(?!\.)"
    groups: list[list[str]] = [[]]  # whole parts, between those that mean any number of folders
    chunks = [""]  # of this part, between its asterisks
    place, end, open_end = 0, len(pattern), False
    while place < end:
        char = pattern[place]
        begins = place == 0 or pattern[place - 1] == "/"
        if char == "/" or pattern.startswith("\\/", place):
            groups[-1].append(_part(chunks))
            chunks = [""]
            place += 1 if char == "/" else 2
        elif char == "*":
            after = place
            while after < end and pattern[after] == "*":
                after += 1
            if after - place > 1 and begins and (after == end or pattern[after] == "/"):
                groups.append([])
                open_end = after == end
                after += 1
            else:
                chunks[-1] += wild if begins else ""
                chunks.append("")
            place = after
        elif char == "?":
            chunks[-1] += f"{wild if begins else ''}[^/]"
            place += 1
        elif char == "[":
            piece, place = _bracket(pattern, place + 1)
            chunks[-1] += (wild if begins else "") + piece
        elif char == "\\":
            if place + 1 == end:
                return _NEVER
            chunks[-1] += re.escape(pattern[place + 1])
            place += 2
        else:
            chunks[-1] += re.escape(char)
            place += 1
    if not open_end:
        groups[-1].append(_part(chunks))
    return _joined(groups, "[^/]*" if dots else r"(?!\.)[^/]+", open_end=open_end)


def _part(chunks: list[str]) -> str:
    """One part of a name: all of it, of which each asterisk means what lies between two chunks."""
    first, *middle = chunks
    if not middle:
        return first
    last = middle.pop()
    found = "".join(f"(?>[^/]*?{chunk})" for chunk in middle)
    return f"(?>{first}{found}[^/]*{last}(?![^/]))"


def _joined(groups: list[list[str]], part: str, *, open_end: bool) -> str:
    """The whole: between two groups lie any number of parts, and after an open end one or more."""
    *before, last = ["".join(f"{item}/" for item in group) for group in groups[:-1]] + ["/".join(groups[-1])]
    if open_end:
        last = part
    found = "".join(f"(?>(?:{part}/)*?{group})" if at else group for at, group in enumerate(before))
    return f"{found}(?:{part}/)*{last}" if before else last


def _bracket(pattern: str, place: int) -> tuple[str, int]:
    """Return what a bracket means and where it ends; one without an end, or unknown to git, means nothing."""
    negated = pattern[place : place + 1] in ("!", "^")
    place += negated
    first, items, before = True, list[str](), ""
    while first or pattern[place : place + 1] != "]":
        first = False
        if place >= len(pattern):
            return _NEVER, len(pattern)
        if (named := _CLASS.match(pattern, place)) is not None:
            if named[1] not in _CLASSES:
                return _NEVER, len(pattern)
            items.append(_CLASSES[named[1]])
            before, place = "", named.end()
            continue
        char, after = _bracket_char(pattern, place)
        if char == "-" and pattern[place] == "-" and before and pattern[after : after + 1] not in ("", "]"):
            last, after = _bracket_char(pattern, after)
            if before <= last:
                items.append(f"{re.escape(before)}-{re.escape(last)}")
            before = ""
        else:
            items.append(re.escape(char))
            before = char
        if not char:
            return _NEVER, len(pattern)
        place = after
    inside = "".join(items)
    if not inside:  # of a range that runs backwards, alone
        return "[^/]" if negated else _NEVER, place + 1
    return f"(?!/)[{'^' if negated else ''}{inside}]", place + 1


def _bracket_char(pattern: str, place: int) -> tuple[str, int]:
    if pattern[place] == "\\":
        return pattern[place + 1 : place + 2], place + 2
    return pattern[place], place + 1
