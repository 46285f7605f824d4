"""Signed notes and checkpoints, as transparency logs exchange them.

A note is text and signature lines (https://c2sp.org/signed-note); a checkpoint is a note whose
text is origin, tree size and root (https://c2sp.org/tlog-checkpoint); a witness adds a timestamped
line of its own (https://c2sp.org/tlog-cosignature). Ed25519 only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.records.keys import KeyEntry, public_bytes

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE_BYTES = 64 << 10
MAX_SIGNATURES = 32
_DASH = "\u2014"
_NAME = re.compile(r"[^\s+]{1,200}\Z")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}\Z")


@dataclass(frozen=True)
class Checkpoint:
    """A log's tree head: its identity, how many leaves, and the 32-byte root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the note text: three lines, each ended."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Return a note key's 4-byte id."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + bytes([kind]) + public).digest()[:4]


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """Return the note with one Ed25519 signature line by `name`."""
    if not text.endswith("\n") or _NAME.match(name) is None:
        raise ValueError("a note's text ends with a newline; a key name has no spaces and no plus")
    blob = key_id(name, ED25519, public_bytes(key)) + key.sign(text.encode("utf-8"))
    return f"{text}\n{_DASH} {name} {base64.b64encode(blob).decode('ascii')}\n"


def cosign(note: str, name: str, key: Ed25519PrivateKey, timestamp: int) -> str:
    """Append a witness's timestamped line (cosignature/v1) to a checkpoint note."""
    text, _ = _split_note(note)
    blob = (
        key_id(name, COSIGNATURE, public_bytes(key))
        + timestamp.to_bytes(8, "big")
        + key.sign(_cosigned(text, timestamp))
    )
    return f"{note}{_DASH} {name} {base64.b64encode(blob).decode('ascii')}\n"


def _cosigned(text: str, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


@dataclass(frozen=True)
class OpenedNote:
    """Text of a note with the keys whose lines verified: the log's, and the witnesses'."""

    text: str
    signer: KeyEntry
    witnesses: tuple[KeyEntry, ...]


def open_note(
    note: str, name: str, signers: Sequence[KeyEntry], witnesses: Sequence[KeyEntry] = ()
) -> OpenedNote:
    """Check a note signed as `name` by one of `signers`; lines of unknown keys are ignored.

    A witness's key name is its label in the keyring. A known key's wrong signature refuses the
    whole note. Raises VerificationError: note-malformed, note-signature, note-unsigned.
    """
    text, lines = _split_note(note)
    found: list[KeyEntry] = []
    seen: list[KeyEntry] = []
    for line_name, blob in lines:
        for entry in signers:
            if line_name == name and blob[:4] == key_id(name, ED25519, entry.public):
                _require(len(blob) == 68 and entry.check(blob[4:], text.encode("utf-8")))
                found.append(entry)
        for entry in witnesses:
            if line_name == entry.label and blob[:4] == key_id(line_name, COSIGNATURE, entry.public):
                stamp = int.from_bytes(blob[4:12], "big")
                _require(len(blob) == 76 and entry.check(blob[12:], _cosigned(text, stamp)))
                seen.append(entry)
    if not found:
        raise VerificationError("no key of the keyring signed the note", codes=[Code.NOTE_UNSIGNED])
    return OpenedNote(text, found[0], tuple(dict.fromkeys(seen)))


def _require(good: bool) -> None:
    if not good:
        raise VerificationError(
            "a signature line of a known key does not verify", codes=[Code.NOTE_SIGNATURE]
        )


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse a note's text strictly as a checkpoint; raises VerificationError(note-malformed)."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or _SIZE.match(lines[1]) is None:
        raise _malformed("a checkpoint is origin, size and root")
    checkpoint = Checkpoint(lines[0], int(lines[1]), _b64(lines[2]))
    if len(checkpoint.root) != 32 or checkpoint.text() != text:
        raise _malformed("the root is not 32 bytes")
    return checkpoint


def _split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    encoded = len(note.encode("utf-8", "surrogatepass"))
    if encoded > MAX_NOTE_BYTES or any(char < " " and char != "\n" for char in note):
        raise _malformed("too large, or control characters")
    cut = note.rfind("\n\n")
    if cut < 1 or not note.endswith("\n"):
        raise _malformed("no signatures")
    lines = note[cut + 2 :].split("\n")[:-1]
    if not 1 <= len(lines) <= MAX_SIGNATURES:
        raise _malformed("no or too many signatures")
    parsed = []
    for line in lines:
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != _DASH or _NAME.match(parts[1]) is None:
            raise _malformed("a line that is no signature")
        blob = _b64(parts[2])
        if len(blob) < 5:
            raise _malformed("a signature is too short")
        parsed.append((parts[1], blob))
    return note[: cut + 1], parsed


def _b64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("not base64") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise _malformed("base64 with stray bits")
    return data


def _malformed(what: str) -> VerificationError:
    return VerificationError(f"note: {what}", codes=[Code.NOTE_MALFORMED])
