"""Canonical bytes: RFC 8785 JSON, strict bounded JSON parsing, length-prefixed hashing, base64url.

Everything that is hashed or signed passes through here, so that two parties can never disagree
about the bytes. Part of the archive that runs on the pod: standard library only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

MAX_SAFE_INTEGER = 2**53 - 1  # RFC 8785 section 3.2.2.3: beyond it, IEEE doubles lose integers
MAX_JSON_BYTES = 8 << 20
MAX_JSON_DEPTH = 32
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once: `json.dumps` would make one for every string


class CanonicalError(ValueError):
    """A value has no canonical form, or bytes are not one strict JSON document."""


def canonical_json(value: Any, *, floats: bool = True) -> bytes:
    """Serialise `value` by RFC 8785 (JCS), as UTF-8 bytes.

    floats=False refuses floats, the rule for claims that are hashed:
    number formatting is where canonicalisers differ. Raises CanonicalError.
    """
    return _render(value, floats, 0).encode("utf-8")


def _render(value: Any, floats: bool, depth: int) -> str:
    if depth > MAX_JSON_DEPTH:
        raise CanonicalError(f"nested deeper than {MAX_JSON_DEPTH}")
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        if abs(value) > MAX_SAFE_INTEGER:
            raise CanonicalError("integer beyond 2^53-1")
        return str(int(value))
    if isinstance(value, float):
        if not floats:
            raise CanonicalError("float in a hashed claim")
        return _number(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise CanonicalError("object key is not a string")
        # RFC 8785 section 3.2.3: keys sort by UTF-16 code units, not by code points.
        ascii_only = all(map(str.isascii, value))
        keys = sorted(value) if ascii_only else sorted(value, key=_utf16)
        inner = ",".join(f"{_string(key)}:{_render(value[key], floats, depth + 1)}" for key in keys)
        return "{" + inner + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_render(item, floats, depth + 1) for item in value) + "]"
    raise CanonicalError(f"no JSON form for {type(value).__name__}")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _string(text: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CanonicalError("lone surrogate in a string") from error
    return _ENCODER.encode(text)


def _number(value: float) -> str:
    """Format as ECMAScript's Number::toString (ECMA-262 section 6.1.6.1.20), as JCS demands."""
    if not math.isfinite(value):
        raise CanonicalError("NaN or infinity")
    if value == 0:
        return "0"
    # repr is the shortest round-trip digit string, as ECMAScript's; only the layout differs, and where it has
    # no exponent (1e-4 to 1e16) it is the same but for a trailing ".0".
    shortest = repr(float(value))
    if "e" not in shortest:
        return shortest.removesuffix(".0")
    sign = "-" if value < 0 else ""
    mantissa, _, exponent_text = shortest.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent_text or 0)
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    exponent = point - 1
    tail = f"e{'+' if exponent >= 0 else '-'}{abs(exponent)}"
    return sign + digits[0] + ("." + digits[1:] if count > 1 else "") + tail


def record_json(record: Any) -> Any:
    """JSON data of a frozen dataclass, through and through: `elapsed_sec` is written elapsedSec.

    A field whose metadata has `json` is written under that name; one whose metadata has `optional` is left
    out where it is None.
    """
    if is_dataclass(record) and not isinstance(record, type):
        found = {}
        for item in fields(record):
            value = getattr(record, item.name)
            if value is None and item.metadata.get("optional"):
                continue
            found[item.metadata.get("json") or _camel(item.name)] = record_json(value)
        return found
    if isinstance(record, Mapping):
        return {name: record_json(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [record_json(value) for value in record]
    return record


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def parse_json(data: bytes | str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse one JSON document strictly: bounded size and depth, no duplicate keys, no NaN.

    Raises CanonicalError. Integers beyond 2^53-1 are read only in the form in which a double is
    written, so that what is parsed can always be rendered again.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if len(raw) > max_bytes:
        raise CanonicalError(f"larger than {max_bytes} bytes")
    _check_depth(raw)
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except CanonicalError:
        raise
    except (ValueError, RecursionError) as error:
        raise CanonicalError("not one UTF-8 JSON document") from error


def parse_canonical(data: bytes, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON and refuse bytes that are not exactly its canonical form."""
    value = parse_json(data, max_bytes=max_bytes)
    if canonical_json(value) != data:
        raise CanonicalError("not in canonical form")
    return value


# A whole string (its brackets do not count), an unterminated one, or a bracket.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\Z)|[\[\]{}]', re.DOTALL)


def _check_depth(raw: bytes) -> None:
    """Bound the nesting before the parser recurses into it."""
    depth = 0
    for match in _STRUCTURE.finditer(raw):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise CanonicalError(f"nested deeper than {MAX_JSON_DEPTH}")
        elif token in (b"]", b"}"):
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CanonicalError("duplicate key in an object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise CanonicalError(f"{name} is not JSON")


def _bounded_int(text: str) -> int | float:
    if len(text) > 24:
        raise CanonicalError("integer beyond 2^53-1")
    value = int(text)
    if abs(value) <= MAX_SAFE_INTEGER:
        return value
    # Beyond, digits may only be what a double is written as; hashed claims refuse it as a float.
    if _number(float(value)) != text:
        raise CanonicalError("integer beyond 2^53-1 that no double is written as")
    return float(value)


def _finite_float(text: str) -> float:
    if len(text) > 64:
        raise CanonicalError("number longer than 64 characters")
    value = float(text)
    if not math.isfinite(value):
        raise CanonicalError("number out of range")
    return value


def length_prefixed(parts: Iterable[bytes]) -> bytes:
    """Join byte strings, each behind its length as 8 bytes big-endian: no two lists collide."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def domain_hash(domain: str, parts: Iterable[bytes]) -> bytes:
    """SHA-256 over a domain label and length-prefixed parts (32 bytes)."""
    return hashlib.sha256(length_prefixed([domain.encode("ascii"), *parts])).digest()


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def b64u(data: bytes | bytearray) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_B64U = re.compile(r"[A-Za-z0-9_-]*\Z")


def b64u_decode(text: str, *, size: int | None = None) -> bytes:
    """Decode base64url strictly: no padding, no stray characters, canonical trailing bits.

    `size`, when given, is the exact number of bytes. Raises CanonicalError.
    """
    if not isinstance(text, str) or _B64U.match(text) is None or len(text) % 4 == 1:
        raise CanonicalError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise CanonicalError("not base64url") from error
    if b64u(data) != text:
        raise CanonicalError("base64url with stray trailing bits")
    if size is not None and len(data) != size:
        raise CanonicalError(f"expected {size} bytes")
    return data
