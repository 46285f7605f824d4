"""Private keys at rest under a passphrase: one form for signing keys, owner's keys and a backup of all.

    glasshouse-locked-v1 SALT NONCE CIPHERTEXT      base64url; scrypt (RFC 7914) to AES-256-GCM (RFC 5116)

scrypt takes 128 MiB and about half a second a guess. The passphrase is asked for on a terminal, or is the
first line of the file that GLASSHOUSE_PASSPHRASE_FILE names, of mode 0600 and its user's own. It is never an
argument, and no variable holds it. What was opened stays open for the life of the process.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from glasshouse.canonical import CanonicalError, b64u, b64u_decode
from glasshouse.errors import UsageError

LABEL: Final = b"glasshouse-locked-v1"
VARIABLE: Final = "GLASSHOUSE_PASSPHRASE_FILE"
MIN_CHARS: Final = 12
MAX_LOCKED: Final = 1 << 20
_N, _R, _P = 2**17, 8, 1
_opened: dict[bytes, bytes] = {}
_typed: list[bytes] = []
_keys: dict[tuple[bytes, bytes], bytes] = {}


def is_locked(data: bytes) -> bool:
    """Whether a key file's bytes are under a passphrase."""
    return data.startswith(LABEL + b" ")


def lock(data: bytes, passphrase: bytes) -> bytes:
    """Put bytes under a passphrase; two calls give different bytes."""
    nonce = os.urandom(12)
    salt = next((salt for words, salt in _keys if words == passphrase), None) or os.urandom(16)
    sealed = AESGCM(_derived(passphrase, salt)).encrypt(nonce, data, LABEL)
    return b" ".join((LABEL, *(b64u(part).encode() for part in (salt, nonce, sealed)))) + b"\n"


def unlock(data: bytes, name: str, passphrase: bytes | None = None) -> bytes:
    """Return what is under the passphrase; bytes that are under none come back as they are.

    passphrase: None takes the one of the file or the terminal. Raises UsageError: no passphrase to be had, a
    wrong one, or bytes that were altered.
    """
    if not is_locked(data):
        return data
    if data in _opened:
        return _opened[data]
    try:
        if len(data) > MAX_LOCKED:
            raise CanonicalError("too large")
        _, salt, nonce, sealed = data.rstrip(b"\n").split(b" ")
        parts = [b64u_decode(part.decode("ascii")) for part in (salt, nonce, sealed)]
        if len(parts[0]) != 16 or len(parts[1]) != 12:
            raise CanonicalError("salt or nonce")
    except (ValueError, UnicodeDecodeError) as error:  # CanonicalError is a ValueError
        raise UsageError(
            "key file is damaged", field="key", value=name,
            remedy="restore it: glasshouse keys --restore FILE",
        ) from error  # fmt: skip
    given = known_passphrase(name) if passphrase is None else passphrase
    try:
        plain = AESGCM(_derived(given, parts[0])).decrypt(parts[1], parts[2], LABEL)
    except InvalidTag as error:
        _typed.clear()
        raise UsageError(
            "the passphrase does not open it", field="key", value=name,
            remedy=f"type it again, or look at the first line of the file that {VARIABLE} names",
        ) from error  # fmt: skip
    _opened[data] = plain
    return plain


def known_passphrase(name: str) -> bytes:
    """The passphrase of what there is: of the file, of this process, or typed now. UsageError: none."""
    if (path := os.environ.get(VARIABLE)) is not None:
        return _of_file(Path(path))
    if _typed:
        return _typed[0]
    if not sys.stdin.isatty():
        raise UsageError(
            "it is under a passphrase, and nobody is there to type it", field="key", value=name,
            remedy=f"set {VARIABLE} to a file of mode 600 whose first line is the passphrase",
        )  # fmt: skip
    _typed.append(getpass.getpass(f"passphrase for {name}: ", stream=sys.stderr).encode())
    return _typed[0]


def new_passphrase(what: str) -> bytes:
    """A passphrase to put something under: of the file, or typed twice. UsageError for a short one."""
    if (path := os.environ.get(VARIABLE)) is not None:
        given = _of_file(Path(path))
    elif sys.stdin.isatty():
        given = getpass.getpass(f"new passphrase for {what}: ", stream=sys.stderr).encode()
        if getpass.getpass("once more: ", stream=sys.stderr).encode() != given:
            raise UsageError("the two differ", field="passphrase", value="(hidden)", remedy="type it again")
    else:
        raise UsageError(
            "nobody is there to type a passphrase", field="passphrase", value="none",
            remedy=f"set {VARIABLE} to a file of mode 600 whose first line is the passphrase",
        )  # fmt: skip
    if len(given.decode("utf-8", "replace")) < MIN_CHARS:
        raise UsageError(
            "the passphrase is too short", field="passphrase", value="(not shown)",
            remedy=f"take {MIN_CHARS} characters or more: four words that nobody else would put together",
        )  # fmt: skip
    _typed[:] = [given]
    return given


def forget() -> None:
    """Forget what was typed and opened in this process."""
    _typed.clear()
    _opened.clear()
    _keys.clear()


def _of_file(path: Path) -> bytes:
    """The first line of a private file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"the passphrase's file cannot be read: {error.strerror}", field=VARIABLE, value=path,
            remedy="name a file of mode 600, and no link",
        ) from error  # fmt: skip
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise UsageError(
                "the passphrase's file is not private", field=VARIABLE, value=path,
                remedy="make it a regular file of yours, of mode 600",
            )  # fmt: skip
        line = os.read(descriptor, 4096).split(b"\n", 1)[0].rstrip(b"\r")
    finally:
        os.close(descriptor)
    if not line:
        raise UsageError(
            "the passphrase's file is empty", field=VARIABLE, value=path,
            remedy="its first line is the passphrase",
        )  # fmt: skip
    return line


def _derived(passphrase: bytes, salt: bytes) -> bytes:
    """The key of a passphrase, derived once a process: all keys of a folder have one salt."""
    if (passphrase, salt) not in _keys:
        _keys[passphrase, salt] = Scrypt(salt=salt, length=32, n=_N, r=_R, p=_P).derive(passphrase)
    return _keys[passphrase, salt]
