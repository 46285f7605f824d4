"""One HTTP/1.1 message each way: a request put together from pieces, and an answer's bytes. No I/O.

A request is one line, headers and a body of announced length; there is no second request behind it. What is
read is bounded before it is parsed: 16 KiB of head, 64 headers, 64 KiB of body. Anything that is not plainly
a request is refused with a status and a reason code, as soon as that is known.

In front of a request may stand one line of a forward (forwards.py), which says whose connection it is:

    GLASSHOUSE-FORWARD <64 hex digits> CRLF
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from glasshouse.canonical import canonical_json
from glasshouse.codes import Code

MAX_HEAD_BYTES = 16 << 10
MAX_HEADERS = 64
MAX_BODY_BYTES = 64 << 10
OPENING = b"GLASSHOUSE-FORWARD "
OPENING_BYTES = len(OPENING) + 64 + 2

_OPENING = re.compile(OPENING + rb"([0-9a-f]{64})\r\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,256}) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class Refused(Exception):
    """Not an error of the program: an answer."""

    def __init__(self, status: HTTPStatus, message: str, *, code: Code) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(frozen=True)
class Request:
    """A request as it came: names of headers in lower case, each with its values in order."""

    method: str
    path: str
    headers: Mapping[str, tuple[str, ...]]
    body: bytes

    def header(self, name: str) -> tuple[str, ...]:
        """The values of a header; none where it is missing."""
        return self.headers.get(name, ())

    def content_length(self) -> int:
        """The announced length in bytes. Raises Refused where it is not announced once, plainly and small."""
        if self.header("transfer-encoding"):
            raise Refused(
                HTTPStatus.LENGTH_REQUIRED, "chunked bodies are not taken", code=Code.LENGTH_REQUIRED
            )
        lengths = self.header("content-length")
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 9):
            raise Refused(
                HTTPStatus.LENGTH_REQUIRED, "one Content-Length is needed", code=Code.LENGTH_REQUIRED
            )
        length = int(lengths[0])
        if length > MAX_BODY_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {MAX_BODY_BYTES} bytes",
                code=Code.BODY_TOO_LARGE,
            )
        return length


def parse_head(head: bytes) -> Request:
    """Read a request's head, without the empty line that ends it; the body is empty. Raises Refused."""
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    asked = _REQUEST_LINE.fullmatch(first)
    if asked is None:
        raise malformed("no request line of HTTP/1.1")
    if len(lines) > MAX_HEADERS:
        raise Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"more than {MAX_HEADERS} headers",
            code=Code.MALFORMED_REQUEST,
        )
    headers: dict[str, tuple[str, ...]] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise malformed("a header that is none")
        name, value = found[1].decode("ascii").lower(), found[2].decode("latin-1").rstrip(" \t")
        headers[name] = (*headers.get(name, ()), value)
    return Request(asked[1].decode("ascii"), asked[2].decode("ascii"), headers, b"")


def malformed(what: str) -> Refused:
    """The refusal of what is not of its form."""
    return Refused(HTTPStatus.BAD_REQUEST, what, code=Code.MALFORMED_REQUEST)


class Incoming:
    """A request in the making: feed it what comes, in whatever pieces.

    label: of the forward, once its line has come; None where there is none. whole: nothing more is waited
    for; then request() gives the request or raises Refused. Whatever comes behind a whole one is dropped.
    """

    def __init__(self) -> None:
        self.label: str | None = None
        self.whole = False
        self._opened = False
        self._data = bytearray()
        self._head: Request | None = None
        self._refused: Refused | None = None
        self._length = 0

    @property
    def head_came(self) -> bool:
        """Whether everything before the body has come."""
        return self._head is not None or self.whole

    @property
    def nothing_came(self) -> bool:
        """Whether not a byte of a request has come."""
        return not (self._data or self.head_came)

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self.whole:
            return
        scanned = max(0, len(self._data) - 3)
        self._data += data
        if not self._opened:
            if len(self._data) < OPENING_BYTES and OPENING.startswith(bytes(self._data[: len(OPENING)])):
                return
            self._opened = True
            scanned = 0
            if (line := _OPENING.match(self._data)) is not None:
                self.label = line[1].decode("ascii")
                del self._data[: line.end()]
        if self._head is None:
            self._read_head(scanned)
        if self._head is not None and len(self._data) >= self._length:
            del self._data[self._length :]
            self.whole = True

    def _read_head(self, scanned: int) -> None:
        end = _HEAD_END.search(self._data, scanned)
        # Without its end, up to three bytes of which may have come: it is as long as what came before them.
        if (len(self._data) - 3 if end is None else end.start()) > MAX_HEAD_BYTES:
            self._refuse(
                Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"more than {MAX_HEAD_BYTES} bytes before the body",
                    code=Code.MALFORMED_REQUEST,
                )
            )
        elif end is not None:
            try:
                self._head = parse_head(bytes(self._data[: end.start()]))
            except Refused as refused:
                self._refuse(refused)
                return
            del self._data[: end.end()]
            try:
                self._length = self._head.content_length()
            except Refused:
                self._length = 0  # whoever needs a body refuses it by this length

    def end(self) -> None:
        """Nothing more will come: what is there is all there is."""
        if not self.head_came:
            self._refuse(malformed("the request ends before its body"))
        self.whole = True

    def _refuse(self, refused: Refused) -> None:
        self._refused, self.whole = refused, True
        self._data.clear()

    def request(self) -> Request:
        """The whole request; its body may be shorter than announced. Raises Refused."""
        if self._refused is not None:
            raise self._refused
        head = self._head
        if head is None or not self.whole:
            raise malformed("the request is not whole")
        return Request(head.method, head.path, head.headers, bytes(self._data))


def answer(status: HTTPStatus, document: object) -> bytes:
    """The bytes of a JSON answer, after which the connection ends. Raises CanonicalError."""
    body = canonical_json(document)
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Server: glasshouse",  # no versions, of us or of Python
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",  # one request a connection: nothing to smuggle behind
    )
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def refusal(refused: Refused) -> bytes:
    """The bytes of an answer that refuses."""
    return answer(refused.status, error(refused.code, refused.message, (refused.code,)))


def error(code: str, message: str, reason_codes: tuple[str, ...]) -> dict[str, dict[str, str | list[str]]]:
    """The document of a refusal."""
    return {"error": {"code": code, "reasonCodes": list(reason_codes), "message": message}}
