"""The second barrier before anything is published: search for what must never be.

The first barrier is the allow-list: artifact and bundle schemas have no field for a host, an account
or a key. This one looks at the values, wherever they stand: in JSON, inside signed envelopes and
tokens (decoded), and in plain text. A finding names the file and the field, never the value, and
fails the publication; nothing is edited out of what is signed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.errors import VerificationError
from glasshouse.secret_patterns import JWT, PATTERNS, SECRET_NAME, SECRET_VARIABLE

# Random bytes by their exact sizes: an Ed25519 signature, an X-Wing ciphertext, a public key. Some spell
# `sk-` where a word begins: about one bundle of twenty blocks in a hundred could not have been published.
_RANDOM: Final = re.compile(r"[A-Za-z0-9_\-]{86}\Z|[A-Za-z0-9_\-]{1494}\Z|[A-Za-z0-9_\-]{1622}\Z")
_SIGNED: Final = re.compile(
    r"(\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.)[A-Za-z0-9_\-]{86}(?![A-Za-z0-9_\-])"
)
# Where signed tokens belong: the recorded attestation exchange. Their contents are searched all the same.
TOKEN_FILES: Final = re.compile(r"(?:^|/)exchange\.json$")


@dataclass(frozen=True)
class Finding:
    """Something that must not be published: what kind, in which file, at which field. Never the value."""

    code: str
    where: str


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables that are named like secrets; none shorter than eight characters."""
    source = os.environ if environment is None else environment
    return tuple(
        sorted({value for name, value in source.items() if SECRET_VARIABLE.search(name) and len(value) >= 8})
    )


def holds_private_key(data: bytes) -> bool:
    """Whether a private key in a form that the scan knows stands anywhere in a file."""
    text = data.decode("latin-1")
    return any(pattern.search(text) for code, pattern in PATTERNS if code == "private-key")


def scan_file(name: str, data: bytes, *, known: Iterable[str] = ()) -> tuple[Finding, ...]:
    """Search one file; `known` are values that must not occur anywhere (secrets of the environment)."""
    known = tuple(known)
    found = [Finding("environment-secret", name) for value in known if value.encode() in data]
    lines = data.split(b"\n") if name.endswith(".jsonl") else [data]
    for number, line in enumerate(lines):
        if not line:
            continue
        place = f"{name}:{number}" if len(lines) > 1 else name
        try:
            value = parse_json(line)
        except CanonicalError:
            value = line.decode("utf-8", "replace")
        found += _scan(value, place, known, tokens=TOKEN_FILES.search(name) is not None, depth=0)
    return tuple(dict.fromkeys(found))


def require_clean(files: Mapping[str, bytes], *, known: Iterable[str] | None = None) -> None:
    """Raise VerificationError naming every finding's kind and field; silent when there is none."""
    values = environment_secrets() if known is None else tuple(known)
    found = [item for name, data in sorted(files.items()) for item in scan_file(name, data, known=values)]
    if found:
        first = found[0]
        raise VerificationError(
            f"nothing was published: {len(found)} finding{'s' if len(found) > 1 else ''} of the secret scan, "
            f"the first a {first.code} at {first.where}",
            codes=[f"{item.code}@{item.where}" for item in found],
            remedy="remove it at its source and run again; what is signed is never edited",
        )


def _scan(value: Any, where: str, known: tuple[str, ...], *, tokens: bool, depth: int) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            place = f"{where}.{key}"
            launch_token = tokens and isinstance(item, str) and JWT.match(item) is not None
            if SECRET_NAME.match(str(key)) and isinstance(item, str) and item and not launch_token:
                yield Finding("credential", place)
            yield from _scan_text(str(key), f"{place} (the name itself)", known, tokens=tokens, depth=depth)
            yield from _scan(item, place, known, tokens=tokens, depth=depth)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scan(item, f"{where}[{index}]", known, tokens=tokens, depth=depth)
    elif isinstance(value, str):
        yield from _scan_text(value, where, known, tokens=tokens, depth=depth)


def _scan_text(
    text: str, where: str, known: tuple[str, ...], *, tokens: bool, depth: int
) -> Iterator[Finding]:
    for code in _codes_of_short(text) if len(text) <= 64 else _codes(text):
        yield Finding(code, where)
    if any(value in text for value in known):
        yield Finding("environment-secret", where)
    if not tokens and depth == 0 and JWT.search(text):
        yield Finding("token", where)
    if depth < 3:
        for index, inner in enumerate(_decoded(text)):
            yield from _scan(inner, f"{where}~{index}", known, tokens=True, depth=depth + 1)


def _codes(text: str) -> tuple[str, ...]:
    """The kinds of secrets that a text looks like."""
    if _RANDOM.match(text):
        return ()
    text = _SIGNED.sub(r"\1", text)
    return tuple(code for code, pattern in PATTERNS if pattern.search(text))


_codes_of_short = functools.lru_cache(maxsize=4096)(_codes)  # a ledger says the same names in every line


def _decoded(text: str) -> Iterator[Any]:
    """JSON documents hidden in base64 or in the parts of a token."""
    if len(text) < 16:
        return
    for part in text.split("."):
        padded = part.replace("-", "+").replace("_", "/")
        padded += "=" * (-len(padded) % 4)
        try:
            inner = base64.b64decode(padded, validate=True)
            if inner[:1] in (b"{", b"["):
                yield json.loads(inner)
        except (binascii.Error, ValueError):
            continue
