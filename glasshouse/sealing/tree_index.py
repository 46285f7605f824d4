"""The index of a tree of files in a sealed container: what it may say, and no file is touched here.

    files     tree.json: this index
    tensors   tree/0, tree/1, ...: the contents of all files one behind the other, in the index's order, cut
              every pieceBytes; uint8, of one dimension. A file has no offset of its own, so none can be wrong

The index is canonical JSON: format, pieceBytes, entries, skipped, skippedCount, changed. An entry is one of

    {"kind": "file", "path", "bytes", "mtimeUs", "executable"}     mtimeUs: microseconds since 1970
    {"kind": "folder", "path"}                                     one with nothing in it
    {"kind": "link", "path", "target"}                             symbolic, and it stays inside the tree

in ascending order of their paths' bytes, so that none stands twice. Folders with something in them follow
from the paths. A path is relative, in UTF-8; one that is no UTF-8 is written as "rawPath" (a target as
"rawTarget"), its bytes in base64url, and comes out with the same bytes. `skipped` says what was left out and
why, the first MAX_SKIPPED of them, and skippedCount how many there were; `changed` names files that were
carried although something changed them while they were read (as many at most).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from glasshouse.canonical import (
    MAX_SAFE_INTEGER,
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    parse_canonical,
)
from glasshouse.codes import Code
from glasshouse.sealing.layout import refuse

INDEX_NAME = "tree.json"
PIECE_PREFIX = "tree/"
FORMAT = "glasshouse/tree/v1"
PIECE_BYTES = 64 << 20  # what is held twice, when a tree is read and when it is written

MAX_PIECE_BYTES = 64 << 20
MAX_INDEX_BYTES = 128 << 20
MAX_PIECES = 1 << 16  # a container's manifest has no room for more
MAX_ENTRIES = 200_000
MAX_PATH_BYTES = 4096  # PATH_MAX, which a path is bound to anyway when it is opened
MAX_NAME_BYTES = 255
MAX_DEPTH = 128
MAX_SKIPPED = 1000
MAX_LINE = 1024  # characters of a path or a reason in `skipped` and `changed`; longer ones are cut

_ENTRY_KEYS = {
    "file": frozenset({"kind", "path", "bytes", "mtimeUs", "executable"}),
    "folder": frozenset({"kind", "path"}),
    "link": frozenset({"kind", "path", "target"}),
}


class Skipped(NamedTuple):
    """What was left out: its path as `shown` writes it, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """One entry of a tree; `path` and `target` are bytes, as the system takes them."""

    kind: str  # "file" | "folder" | "link"
    path: bytes
    nbytes: int = 0
    mtime_us: int = 0
    executable: bool = False
    target: bytes = b""

    def row(self) -> dict[str, Any]:
        """Return the entry as it stands in the index."""
        row: dict[str, Any] = {"kind": self.kind, **_text("path", self.path)}
        if self.kind == "file":
            row |= {"bytes": self.nbytes, "mtimeUs": self.mtime_us, "executable": self.executable}
        elif self.kind == "link":
            row |= _text("target", self.target)
        return row


@dataclass(frozen=True)
class Index:
    """A tree's index, as it was checked: see this module."""

    entries: tuple[Entry, ...]
    piece_bytes: int = PIECE_BYTES
    skipped: tuple[Skipped, ...] = ()
    skipped_count: int = 0
    changed: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Entry, ...]:
        """The entries that are files."""
        return tuple(entry for entry in self.entries if entry.kind == "file")

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def pieces(self) -> list[int]:
        """How many bytes each tensor has, in order."""
        whole, rest = divmod(self.nbytes, self.piece_bytes)
        return [self.piece_bytes] * whole + [rest] * bool(rest)

    def files_in(self, pieces: Collection[str]) -> tuple[str, ...]:
        """Return, as `shown`, the files of which some bytes lie in one of `pieces`, tensors by their name."""
        found, at = list[str](), 0
        for entry in self.files:
            numbers = range(at // self.piece_bytes, -(-(at + entry.nbytes) // self.piece_bytes))
            if entry.nbytes and any(f"{PIECE_PREFIX}{number}" in pieces for number in numbers):
                found.append(shown(entry.path))
            at += entry.nbytes
        return tuple(found)

    def pack(self) -> bytes:
        """Return the index's bytes. Raises SealError: tree-malformed, where it is larger than its bounds."""
        data = canonical_json(
            {
                "format": FORMAT,
                "pieceBytes": self.piece_bytes,
                "entries": [entry.row() for entry in self.entries],
                "skipped": [{"path": item.path, "reason": item.reason} for item in self.skipped],
                "skippedCount": self.skipped_count,
                "changed": list(self.changed),
            }
        )
        if len(data) > MAX_INDEX_BYTES or len(self.entries) > MAX_ENTRIES:
            raise refuse(
                f"a tree has more than {MAX_ENTRIES} entries, or {MAX_INDEX_BYTES >> 20} MiB of their names",
                Code.TREE_MALFORMED,
                "pack what has many files into one",
            )
        if self.nbytes > self.piece_bytes * MAX_PIECES:
            raise refuse(
                f"a tree has more than {self.piece_bytes * MAX_PIECES >> 30} GiB", Code.TREE_MALFORMED
            )
        return data


def parse_index(data: bytes | bytearray | memoryview) -> Index:
    """Parse an index strictly. Raises SealError: tree-malformed."""
    if len(data) > MAX_INDEX_BYTES:
        raise refuse("a tree's index is too large", Code.TREE_MALFORMED)
    try:
        table = parse_canonical(bytes(data), max_bytes=MAX_INDEX_BYTES)
        keys = {"format", "pieceBytes", "entries", "skipped", "skippedCount", "changed"}
        if set(table) != keys or table["format"] != FORMAT:
            raise ValueError("format")
        if len(table["entries"]) > MAX_ENTRIES or any(
            len(table[key]) > MAX_SKIPPED for key in ("skipped", "changed")
        ):
            raise ValueError("too many")
        skipped = tuple(Skipped(_line(row["path"]), _line(row["reason"])) for row in table["skipped"])
        index = Index(
            tuple(_entry(row) for row in table["entries"]),
            _whole(table["pieceBytes"], 1, MAX_PIECE_BYTES),
            skipped,
            _whole(table["skippedCount"], len(skipped), MAX_SAFE_INTEGER),
            tuple(_line(name) for name in table["changed"]),
        )
        _whole(index.nbytes, 0, index.piece_bytes * MAX_PIECES)
    except (CanonicalError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise refuse("a tree's index is not what the format says", Code.TREE_MALFORMED) from error
    if (fault := entries_fault(index.entries)) is not None:
        raise refuse(fault, Code.TREE_MALFORMED)
    return index


def _entry(row: Any) -> Entry:
    kind = row["kind"]
    keys = {{"rawPath": "path", "rawTarget": "target"}.get(key, key) for key in row}
    if keys != _ENTRY_KEYS[kind] or len(row) != len(keys):
        raise ValueError("entry")
    path = _bytes(row, "path")
    if kind == "link":
        return Entry(kind, path, target=_bytes(row, "target"))
    if kind == "folder":
        return Entry(kind, path)
    if type(row["executable"]) is not bool:
        raise ValueError("executable")
    size = _whole(row["bytes"], 0, MAX_SAFE_INTEGER)
    mtime = _whole(row["mtimeUs"], -MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    return Entry(kind, path, size, mtime, row["executable"])


def entries_fault(entries: Sequence[Entry]) -> str | None:
    """Say what is wrong with entries as a tree; None where nothing is.

    Each path and each link alone, their order, and that nothing lies below what is no folder.
    """
    last = None
    for entry in entries:
        fault = path_fault(entry.path)
        if fault is None and entry.kind == "link":
            fault = link_fault(entry.path, entry.target)
        if fault is not None:
            return f"a tree names {shown(entry.path)}: {fault}"
        if last is not None and entry.path <= last:
            return f"a tree names {shown(entry.path)} twice, or out of order"
        last = entry.path
    no_folders = {entry.path for entry in entries if entry.kind != "folder"}
    seen = set[bytes]()
    for entry in entries:
        for parent in ancestors(entry.path):
            if parent in seen:
                break  # its own ancestors were looked at with it
            seen.add(parent)
            if parent in no_folders:
                return f"a tree names {shown(entry.path)} below {shown(parent)}, which is no folder"
    return None


def ancestors(path: bytes) -> Iterable[bytes]:
    """Yield every folder that a path lies in, from the nearest up, without the tree's own."""
    while (cut := path.rfind(b"/")) > 0:
        path = path[:cut]
        yield path


def path_fault(path: bytes) -> str | None:
    """Say why a path cannot be carried; None where it can."""
    if len(path) > MAX_PATH_BYTES:
        return f"the path is longer than {MAX_PATH_BYTES} bytes"
    names = path.split(b"/")
    if len(names) > MAX_DEPTH:
        return f"it lies deeper than {MAX_DEPTH} folders"
    if b"\0" in path or any(name in (b"", b".", b"..") for name in names):
        return "the path is not a plain relative one"
    if any(len(name) > MAX_NAME_BYTES for name in names):
        return f"a name is longer than {MAX_NAME_BYTES} bytes"
    return None


def link_fault(path: bytes, target: bytes) -> str | None:
    """Say why a symbolic link cannot be carried; None where it can.

    It may go up from its own folder, no further than the tree's, and then down. After a name it goes up no
    more: that name may be another link, and up from where that one leads could be outside.
    """
    if not target or len(target) > MAX_PATH_BYTES or b"\0" in target:
        return "the link has no target that can be carried"
    if target.startswith(b"/"):
        return "the link leads to an absolute path"
    names = [name for name in target.split(b"/") if name not in (b"", b".")]
    up = next((at for at, name in enumerate(names) if name != b".."), len(names))
    if up > path.count(b"/"):
        return "the link leads out of the folder"
    if b".." in names[up:]:
        return "the link goes up again after it went down"
    return None


def shown(path: bytes) -> str:
    r"""Return a path as a person can read it: printable, in one line, and no two alike.

    What is no UTF-8 or cannot be printed is written as \xNN or \uNNNN, and a backslash twice.
    """
    text = path.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def as_path(name: str) -> bytes:
    """Return the bytes of a path as Python gives names, those that are no UTF-8 included."""
    return os.fsencode(name)


def _text(key: str, value: bytes) -> dict[str, str]:
    try:
        return {key: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"raw{key.capitalize()}": b64u(value)}


def _bytes(row: dict[str, Any], key: str) -> bytes:
    if key in row:
        return str.encode(row[key], "utf-8")
    value = b64u_decode(row[f"raw{key.capitalize()}"])
    if key in _text(key, value):
        raise ValueError("two ways to write one path")
    return value


def _line(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_LINE or not value.isprintable():
        raise ValueError("line")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("number")
    return value
