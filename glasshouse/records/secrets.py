"""The barrier before whatever becomes public or is entered for ever: search for what must never be.

What stands before it is the allow-list: artifact and bundle schemas have no field for a host, an account
or a key, and each string of a pod has a form (pod_strings.py). This one looks at the values, wherever they
stand: in JSON, inside signed envelopes and tokens (decoded), and in plain text. A finding names the file and
the field, never the value, and stops what was about to be written; nothing is edited out of what is signed.

It opens no connection: nothing that is found is shown to anybody to be checked.
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
from glasshouse.errors import UsageError, VerificationError
from glasshouse.random_looking import looks_random
from glasshouse.records.pod_strings import strangers
from glasshouse.secret_patterns import JWT, PATTERNS, SECRET_NAME, SECRET_VARIABLE

# Random bytes by their exact sizes: an Ed25519 signature, an X-Wing ciphertext, a public key. Some spell
# `sk-` where a word begins: about one bundle of twenty blocks in a hundred could not have been published.
_RANDOM: Final = re.compile(
    r"[A-Za-z0-9_\-]{86}\Z|[A-Za-z0-9_\-]{1494}\Z|[A-Za-z0-9_\-]{1558}\Z|[A-Za-z0-9_\-]{1622}\Z"
    r"|withheld[:\-][0-9a-f]{64}(?:\.py:Withheld)?\Z"  # what stands in place of a value: runtime/blinding.py
)
_SIGNED: Final = re.compile(
    r"((?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.)[A-Za-z0-9_\-]{86}(?![A-Za-z0-9_\-])"
)
# Where signed tokens belong: the recorded attestation exchange. Their contents are searched all the same.
TOKEN_FILES: Final = re.compile(r"(?:^|/)exchange\.json$")
# Fields that hold random bytes or digests by their nature, and in which form; anywhere else what looks random
# is a finding. By the last name on the way to the value, an index in a list left out.
_HEX = r"(?:sha256:|withheld:)?[0-9a-f]{64}"
_DIGESTS = (
    r".*[sS]ha256|.*[dD]igest|.*_hash|.*Hash|head|prev|root|proof|keyid|kid|iss|signer|allocation|container_id"
    r"|commitment|eventsHead|events_head|.*\.safetensors|withheld-\d{1,3}"
)
_NOTE = (
    r"glasshouse/ledger/[0-9a-f]{16}\n\d{1,12}\n[A-Za-z0-9+/]{43}=\n\n"
    r"(?:\N{EM DASH} \S{1,120} [A-Za-z0-9+/]{60,200}={0,2}\n){1,16}"
)
_B64 = r"[A-Za-z0-9_\-]{43}"
_UUID = r"(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NATURES: Final[tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]] = tuple(
    (re.compile(names), re.compile(form))
    for names, form in (
        (_DIGESTS, _HEX),
        (r"image", r"[a-z0-9][a-z0-9./_:\-]{0,200}@sha256:[0-9a-f]{64}"),
        (r"sig", r"[A-Za-z0-9_\-]{86}|[A-Za-z0-9+/]{86}=="),
        (r"publicKey|event_key|jkt|eat_nonce|nonce|info|matchSalt", _B64),
        (r"kem_key|ct|enc|sealedSalt|sealed_salt", r"[A-Za-z0-9_\-]{40,1622}"),
        (r"bootId|boot_id|gpuUuids|uuids", _UUID),
        (r"aud", r"[0-9a-f]{32}"),
        (r"revision", r"[0-9a-f]{40}"),
        (r"payload", r"[A-Za-z0-9+/]{4,}={0,2}"),  # of an envelope: opened and searched
        (r"checkpoint", _NOTE),
        (r"ear\.appraisal-policy-id", r"tag:glasshouse,2026:policy/[a-z]{1,20}#[0-9a-f]{16}"),
        (r"path|gpuName|provider_instance_id|providerInstanceId|instanceId", r"[a-z0-9]{1,30}"),
    )
)  # fmt: skip
# Sentences and names that this program writes, with what would be taken for a host or a path.
_OURS: Final = re.compile(
    r"https://in-toto\.io/Statement/v1|https://withheld\.invalid|tag:github\.com,2023:veraison/ear"
)


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
        found += [Finding(code, f"{place}{field}") for code, field in strangers(name, value)]
    return tuple(dict.fromkeys(found))


def scan_words(text: str) -> tuple[str, ...]:
    """The kinds of secrets that words of a person's look like, in the patterns' order; () where none."""
    return tuple(dict.fromkeys(item.code for item in _scan_text(text, "", (), "", tokens=False, depth=0)))


def require_public(text: str, field: str) -> str:
    """Return words that a person typed for the public; UsageError, which does not repeat them, for others."""
    found = scan_words(text)
    known = environment_secrets()
    if any(value in text for value in known):
        found = ("environment-secret", *found)
    if found:
        raise UsageError(
            f"it looks as if it held what must not become public: {', '.join(found)}",
            field=field,
            value="(not repeated)",
            remedy="say it without addresses, hosts, paths, keys and digests; it is published for ever",
        )
    return text


def require_clean(
    files: Mapping[str, bytes], *, known: Iterable[str] | None = None, undone: str = "nothing was published"
) -> None:
    """Raise VerificationError naming every finding's kind and field; silent when there is none.

    undone: what did not happen, in words.
    """
    values = environment_secrets() if known is None else tuple(known)
    found = [item for name, data in sorted(files.items()) for item in scan_file(name, data, known=values)]
    if found:
        first = found[0]
        raise VerificationError(
            f"{undone}: {len(found)} finding{'s' if len(found) > 1 else ''} of the secret scan, "
            f"the first a {first.code} at {first.where}",
            codes=[f"{item.code}@{item.where}" for item in found],
            remedy="remove it at its source and run again; what is signed is never edited",
        )


def _scan(
    value: Any, where: str, known: tuple[str, ...], name: str = "", *, tokens: bool, depth: int
) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            place = f"{where}.{key}"
            launch_token = tokens and isinstance(item, str) and JWT.match(item) is not None
            if SECRET_NAME.match(str(key)) and isinstance(item, str) and item and not launch_token:
                yield Finding("credential", place)
            yield from _scan_text(
                str(key), f"{place} (the name itself)", known, "", tokens=tokens, depth=depth
            )
            yield from _scan(item, place, known, str(key), tokens=tokens, depth=depth)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scan(item, f"{where}[{index}]", known, name, tokens=tokens, depth=depth)
    elif isinstance(value, str):
        yield from _scan_text(value, where, known, name, tokens=tokens, depth=depth)


def _scan_text(
    text: str, where: str, known: tuple[str, ...], name: str, *, tokens: bool, depth: int
) -> Iterator[Finding]:
    codes = _codes_of_short(text, name) if len(text) <= 64 else _codes(text, name)
    for code in codes:
        yield Finding(code, where)
    if any(value in text for value in known):
        yield Finding("environment-secret", where)
    if not tokens and depth == 0 and JWT.search(text):
        yield Finding("token", where)
    if depth < 3:
        for index, inner in enumerate(_decoded(text)):
            yield from _scan(inner, f"{where}~{index}", known, tokens=True, depth=depth + 1)


def _codes(text: str, name: str) -> tuple[str, ...]:
    """The kinds of secrets that a text looks like, in a field of this name."""
    if _RANDOM.match(text) or _natural(name, text):
        return ()
    text = _OURS.sub(" ", _SIGNED.sub(r"\1", text))
    found = tuple(dict.fromkeys(code for code, pattern in PATTERNS if pattern.search(text)))
    return found or (("random-looking",) if looks_random(JWT.sub(" ", text)) else ())


_codes_of_short = functools.lru_cache(maxsize=8192)(_codes)  # a ledger says the same names in every line


def _natural(name: str, text: str) -> bool:
    """Whether what looks random is what such a field holds."""
    return any(names.fullmatch(name) and form.fullmatch(text) for names, form in _NATURES)


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
