"""One gzipped tar of plain files, written one way only; whatever else a file may hold is refused.

What comes back from a borrowed machine is read as hostile input. Only what `write_archive` can have
written is accepted: USTAR headers of plain files with fixed owner, mode and time, in the order of their
names. So there are no links, no folders, no second file of a name, and nothing to extract: contents stay
in memory, bounded.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from glasshouse.codes import Code
from glasshouse.errors import VerificationError

MAX_ARCHIVE_BYTES = 16 << 20  # compressed
MAX_CONTENT_BYTES = 96 << 20
MAX_MEMBERS = 8192
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*){0,5}\Z")
MAX_NAME = 100  # what a USTAR header holds without its prefix field

_BLOCK = 512
_SIZE = re.compile(rb"[0-7]{11}\0")
_END = bytes(2 * _BLOCK)


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """Pack files by name. Equal files give the same tar; ValueError for a name that no archive may hold."""
    parts = []
    for name, data in sorted(files.items()):
        if not may_hold(name):
            raise ValueError(f"no archive holds a file of this name: {name!r}")
        parts += [_header(name, len(data)), data, bytes(-len(data) % _BLOCK)]
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(b"".join([*parts, _END])) + packer.flush()


def may_hold(name: str) -> bool:
    """Whether a file of this name can be packed."""
    return len(name) <= MAX_NAME and NAME.match(name) is not None


def read_archive(data: bytes) -> dict[str, bytes]:
    """Return the files by name.

    Raises VerificationError: archive-too-large, archive-cut, archive-malformed, archive-member,
    archive-name, archive-order.
    """
    tar = _unzipped(data)
    files: dict[str, bytes] = {}
    at, last = 0, ""
    while tar[at : at + _BLOCK].strip(b"\0"):
        header = tar[at : at + _BLOCK]
        name, size = _member(header)
        body = tar[at + _BLOCK : at + _BLOCK + size]
        padding = -size % _BLOCK
        if len(header) < _BLOCK or len(body) < size:
            raise _refused(Code.ARCHIVE_CUT, f"{name} is cut short")
        if name <= last:
            raise _refused(Code.ARCHIVE_ORDER, f"{name} does not come after {last}")
        if len(files) >= MAX_MEMBERS:
            raise _refused(Code.ARCHIVE_TOO_LARGE, f"more than {MAX_MEMBERS} files")
        files[name] = body
        at, last = at + _BLOCK + size + padding, name
        if tar[at - padding : at].strip(b"\0"):
            raise _refused(Code.ARCHIVE_MALFORMED, f"bytes behind the end of {name}")
    if tar[at:] != _END:
        raise _refused(Code.ARCHIVE_CUT, "it does not end as it was written")
    return files


def _unzipped(data: bytes) -> bytes:
    if len(data) > MAX_ARCHIVE_BYTES:
        raise _refused(Code.ARCHIVE_TOO_LARGE, f"more than {MAX_ARCHIVE_BYTES} bytes")
    unpacker = zlib.decompressobj(31)
    try:
        tar = unpacker.decompress(data, MAX_CONTENT_BYTES)
    except zlib.error as error:
        raise _refused(Code.ARCHIVE_MALFORMED, "not gzip, or damaged") from error
    if not unpacker.eof and (unpacker.unconsumed_tail or len(tar) >= MAX_CONTENT_BYTES):
        raise _refused(Code.ARCHIVE_TOO_LARGE, f"unpacks to more than {MAX_CONTENT_BYTES} bytes")
    if not unpacker.eof:
        raise _refused(Code.ARCHIVE_CUT, "the file ends too early")
    if unpacker.unused_data:
        raise _refused(Code.ARCHIVE_MALFORMED, "bytes behind its end")
    return tar


def _member(header: bytes) -> tuple[str, int]:
    """Name and size of a plain file; whatever a header says besides must be what we write."""
    name = header[:MAX_NAME].rstrip(b"\0").decode("ascii", "replace")
    shown = ascii(name)[1:-1]
    if header[156:157] != b"0":
        raise _refused(Code.ARCHIVE_MEMBER, f"{shown} is not a plain file")
    if not may_hold(name):
        raise _refused(Code.ARCHIVE_NAME, f"{shown} is not a name that an archive may hold")
    if _SIZE.match(header[124:136]) is None:
        raise _refused(Code.ARCHIVE_MALFORMED, f"{shown} has no size")
    size = int(header[124:135], 8)
    if header != _header(name, size):
        raise _refused(Code.ARCHIVE_MALFORMED, f"{shown} was not packed by this software")
    return name, size


def _header(name: str, size: int) -> bytes:
    """A USTAR header (POSIX.1-1988): mode 0644, owner 0, time 0."""
    before = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    before += b"%011o\0" % size + b"00000000000\0"
    after = b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    total = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % total + after


def _refused(code: Code, detail: str) -> VerificationError:
    return VerificationError(
        f"the archive cannot be read: {detail}",
        codes=[code],
        remedy="take the file once more from the machine that packed it",
    )
