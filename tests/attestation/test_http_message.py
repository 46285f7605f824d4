"""One HTTP message each way: whatever comes, in whatever pieces, is a request or a refusal, within bounds."""

from __future__ import annotations

import http.client
import io
import itertools
import json
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.attestation.forwards import Forwards, forward_label, opening_line
from glasshouse.attestation.http_message import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    OPENING_BYTES,
    Incoming,
    Refused,
    Request,
    answer,
    refusal,
)
from glasshouse.codes import Code

LINE = opening_line(bytes(32))
LABEL = forward_label(bytes(32))
PLAIN = b"POST /v1/attest HTTP/1.1\r\nContent-Length: 4\r\nA: b\r\na:c \r\n\r\n{  }"


def fed(*pieces: bytes) -> Incoming:
    made = Incoming()
    for piece in pieces:
        made.feed(piece)
    return made


def outcome(made: Incoming) -> object:
    """What a request came to: itself, or why it is none; with its forward's label."""
    if not made.whole:
        made.end()
    try:
        return made.label, made.request()
    except Refused as refused:
        return made.label, refused.status, refused.code, refused.message


def test_a_request_is_read_with_what_stands_in_front_of_it() -> None:
    for front, label in ((b"", None), (LINE, LABEL)):
        made = fed(front + PLAIN)
        assert made.whole
        assert made.label == label
        assert made.request() == Request(
            "POST", "/v1/attest", {"content-length": ("4",), "a": ("b", "c")}, b"{  }"
        )


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\n\r\n", 400),
        (b"\r\nGET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", 400),
        (b"GET /" + b"x" * 256 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"x" * MAX_HEAD_BYTES, 431),  # and no end of it
        (b"x" * (MAX_HEAD_BYTES + 4), 431),
        (LINE + LINE + PLAIN, 400),  # one line of a forward, and no second that counts
        (LINE[:-2] + b"\n" + PLAIN, 400),
        (LINE.upper() + PLAIN, 400),
        (b"GLASSHOUSE-FORWARD x\r\n" + PLAIN, 400),
    ],
)
def test_what_is_no_plain_request_is_refused_at_once(raw: bytes, status: int) -> None:
    made = fed(raw)
    assert made.whole
    with pytest.raises(Refused) as refused:
        made.request()
    assert (refused.value.status, refused.value.code) == (status, Code.MALFORMED_REQUEST)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (b"", "length-required"),
        (b"Content-Length: 4\r\nContent-Length: 4\r\n", "length-required"),
        (b"Content-Length: 4, 4\r\n", "length-required"),
        (b"Content-Length: +4\r\n", "length-required"),
        (b"Content-Length: 0x4\r\n", "length-required"),
        (b"Content-Length: \xb2\r\n", "length-required"),
        (b"Content-Length: 4\r\nTransfer-Encoding: identity\r\n", "length-required"),
        (b"Content-Length: %d\r\n" % (MAX_BODY_BYTES + 1), "body-too-large"),
        (b"Content-Length: 999999999\r\n", "body-too-large"),
        (b"Content-Length: 1000000000000\r\n", "length-required"),
    ],
)
def test_no_body_is_waited_for_that_would_be_refused(headers: bytes, code: str) -> None:
    made = fed(b"POST / HTTP/1.1\r\n" + headers + b"\r\n")
    assert made.whole
    with pytest.raises(Refused) as refused:
        made.request().content_length()
    assert refused.value.code == code


def test_limits_are_reached_and_not_passed() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\na: " % MAX_BODY_BYTES
    head += b"x" * (MAX_HEAD_BYTES - len(head))
    for pieces in (
        (head + b"\r\n\r\n",),
        (head + b"\r\n\r", b"\n"),
        (head, b"\r", b"\n\r\n"),
        (head, b"\n\n"),
    ):
        made = fed(*pieces)
        assert made.head_came
        assert not made.whole
        made.feed(b"y" * (MAX_BODY_BYTES - 1))
        assert not made.whole
        made.feed(b"yz")
        assert made.request().body == b"y" * MAX_BODY_BYTES


def test_a_request_that_ends_early_says_so() -> None:
    short = fed(PLAIN[:-1])
    assert not short.whole
    short.end()
    assert short.request().body == b"{  "  # shorter than announced: its reader refuses it
    for part in (PLAIN[:40], LINE[:30], LINE + b"G"):
        made = fed(part)
        assert not made.nothing_came
        made.end()
        with pytest.raises(Refused):
            made.request()
    assert fed().nothing_came
    assert fed(b"").nothing_came
    assert fed(LINE).nothing_came


# Bytes of which requests are made, and bytes that are none, so that many inputs come close to a request.
_BITS = st.sampled_from(
    [LINE, LINE[:9], b"POST /v1/attest HTTP/1.1", b"GET / HTTP/1.0", b"\r\n", b"\n", b"\r", b" ", b":", b"{}",
     b"Content-Length: 5", b"Content-Length:1", b"Transfer-Encoding: chunked", b"A: b", b"\x00", b"\xff"]
)  # fmt: skip
_BYTES = st.lists(_BITS | st.binary(max_size=6), max_size=14).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(_BYTES, st.lists(st.integers(0, 400), max_size=6))
def test_the_same_bytes_come_to_the_same_in_whatever_pieces(raw: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = [raw[begin:end] for begin, end in itertools.pairwise(ends)]
    whole = outcome(fed(raw))
    assert outcome(fed(*pieces)) == whole
    assert outcome(fed(*(raw[at : at + 1] for at in range(len(raw))))) == whole


@settings(max_examples=80, deadline=None)
@given(_BYTES)
def test_what_is_kept_is_bounded_and_nothing_but_a_refusal_is_raised(raw: bytes) -> None:
    made = fed(raw)
    outcome(made)
    assert len(made._data) <= OPENING_BYTES + MAX_HEAD_BYTES + MAX_BODY_BYTES


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text("abcXYZ-_", min_size=1, max_size=8), st.text("abc XYZ;=/\u00e9", max_size=12), max_size=5
    ),
    st.binary(max_size=200),
)
def test_what_a_client_of_the_standard_library_writes_is_read(headers: dict[str, str], body: bytes) -> None:
    class Written:
        def __init__(self) -> None:
            self.raw = io.BytesIO()

        def sendall(self, data: bytes) -> None:
            self.raw.write(data)

    headers = {name: value for name, value in headers.items() if "length" not in name.lower()}
    connection = http.client.HTTPConnection("127.0.0.1", 1)
    connection.sock = written = Written()  # type: ignore[assignment]
    connection.request("POST", "/v1/card", body, headers)
    made = fed(written.raw.getvalue())
    assert made.whole
    read = made.request()
    assert (read.method, read.path, read.body) == ("POST", "/v1/card", body)
    assert read.content_length() == len(body)
    for name, value in headers.items():
        assert value.strip(" \t") in read.header(name.lower())


def test_an_answer_is_what_a_client_of_the_standard_library_reads() -> None:
    class Read:
        def __init__(self, raw: bytes) -> None:
            self.raw = raw

        def makefile(self, *_: object) -> io.BytesIO:
            return io.BytesIO(self.raw)

    why = Refused(HTTPStatus.FORBIDDEN, "no", code=Code.TICKET_USED)
    for raw, status, document in (
        (answer(HTTPStatus.OK, {"a": ["\u20ac"]}), 200, {"a": ["\u20ac"]}),
        (refusal(why), 403,
         {"error": {"code": "ticket-used", "reasonCodes": ["ticket-used"], "message": "no"}}),
    ):  # fmt: skip
        response = http.client.HTTPResponse(Read(raw))  # type: ignore[arg-type]
        response.begin()
        assert response.status == status
        assert json.loads(response.read()) == document
        assert response.will_close
        assert response.headers["Date"].endswith(" GMT")


def test_labels_are_of_the_ticket_and_known_while_there_is_room() -> None:
    known = Forwards(most=3)
    tickets = [bytes([number]) * 32 for number in range(5)]
    for ticket in tickets:
        known.add(ticket, "run", "machine")
    assert len({forward_label(ticket) for ticket in tickets}) == 5
    found = [known.find(forward_label(ticket)) for ticket in tickets]
    assert found == [None, None, "run machine", "run machine", "run machine"]
    assert known.find("0" * 64) is None
    assert tickets[4] not in opening_line(tickets[4])
