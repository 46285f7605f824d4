"""RFC 8785 vectors, strict parsing, and hashing that no two inputs share."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.canonical import (
    MAX_JSON_DEPTH,
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    length_prefixed,
    parse_canonical,
    parse_json,
)

# RFC 8785 appendix B: IEEE 754 bits and their JSON form.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_of_rfc_8785_appendix_b(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(value) == text.encode()


def test_keys_sort_by_utf16_units_as_in_rfc_8785_section_3_2_3() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical_json(dict.fromkeys(keys, 0)))) == expected


def test_strings_of_rfc_8785_section_3_2_2() -> None:
    text = "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/"
    assert canonical_json(text) == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()


_JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_canonical_form_is_a_fixed_point(value: Any) -> None:
    try:
        data = canonical_json(value)
    except CanonicalError:
        return
    assert canonical_json(parse_json(data)) == data
    assert parse_canonical(data) == parse_json(data)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        parse_json(data)
    except CanonicalError:
        return
    json.loads(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}', "NaN", "[Infinity]", "1e999", "9007199254740993", "[" * (MAX_JSON_DEPTH + 1),
        '{"a"', "", "\xff", "1 2", "-9007199254740993", "1" * 5000, '"\\',
    ],
)  # fmt: skip
def test_loose_json_is_refused(text: str) -> None:
    with pytest.raises(CanonicalError):
        parse_json(text.encode("latin-1"))


def test_brackets_inside_strings_are_not_depth() -> None:
    assert parse_json(json.dumps("[" * 1000 + '\\"' + "{" * 1000).encode())


def test_size_is_bounded() -> None:
    with pytest.raises(CanonicalError):
        parse_json(b'"' + b"a" * 100 + b'"', max_bytes=50)


@pytest.mark.parametrize("value", [1.5, [0.0], {"a": 2**53}])
def test_hashed_claims_refuse_floats_and_large_integers(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical_json(value, floats=False)


@pytest.mark.parametrize("value", [{1: 2}, object(), float("nan"), "\ud800", b"bytes"])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical_json(value)


@pytest.mark.parametrize("data", [b' {"a":1}', b'{"b":1,"a":2}', b"1.0", b'"\\u0041"', b"{}\n"])
def test_other_spellings_are_not_canonical(data: bytes) -> None:
    with pytest.raises(CanonicalError):
        parse_canonical(data)


@given(st.lists(st.binary(max_size=8), max_size=5), st.lists(st.binary(max_size=8), max_size=5))
def test_length_prefixes_keep_lists_apart(left: list[bytes], right: list[bytes]) -> None:
    assert (length_prefixed(left) == length_prefixed(right)) == (left == right)


@given(st.binary(max_size=64))
def test_base64url_round_trip(data: bytes) -> None:
    assert b64u_decode(b64u(data), size=len(data)) == data


@pytest.mark.parametrize("text", ["A", "AB=", "A B", "+/", "AB", "QUJD\n", "\u00e9"])
def test_loose_base64url_is_refused(text: str) -> None:
    with pytest.raises(CanonicalError):
        b64u_decode(text)
