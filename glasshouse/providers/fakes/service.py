"""What stands between a request and a fake API: the key check, the faults that any provider can have.

It knows no socket: server.py serves it over HTTP, transport.py inside the client's own process. Besides the
API it has an inspection API:

GET  /_fake/state                       what exists, what was billed, which faults struck (no key needed)
POST /_fake/faults {"kind","times"}     plan a fault
POST /_fake/exit   {"id"}               let a pod's container exit
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import re
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

from glasshouse.providers.cloud_http import FAKE_HEADER
from glasshouse.providers.fakes.state import Exchange, FakeCloud, FakePod

STALL_SEC: Final = 4.0  # how long a hanging request hangs: longer than a test client waits
HANG_SEC: Final = 600.0  # the same for any client
PIECES: Final = 20  # of an answer that drips
SLOW_SEC: Final = 0.3  # how long a slow create takes
RUNPOD_PREFIX: Final = "/v2"
VAST_PREFIX: Final = "/api"
_CREATE: Final = re.compile(r"/pods\Z|/v0/asks/[^/]+/?\Z")
_LIST: Final = re.compile(r"/(pods|v1/instances)/?\Z")
_ONE: Final = re.compile(r"/(pods|v0/instances)/[^/]+/?\Z")
_HTML: Final = "<!DOCTYPE html><html><head><title>Please wait</title></head><body></body></html>"
_STRANGE: Final = {"xRegion": {"tier": None, "weights": [1, 2.5]}, "deprecated": "see the changelog"}


@dataclass(frozen=True)
class Request:
    """One request, after the key check. `path` is relative to the API's prefix.

    `late`: seconds until what it creates is there.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    late: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What goes back: JSON (`body`), plain text (`text`), or lines of a stream.

    It comes after `delay` seconds and takes `drips` more; where it is `cut`, nothing of it comes. `made` is
    the machine that the request made.
    """

    status: int
    body: Any = None
    text: str | None = None
    stream: Iterable[str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    delay: float = 0.0
    drips: float = 0.0
    made: FakePod | None = None


@dataclass(frozen=True)
class Wire:
    """An answer as it is sent: status line, header fields, and its body, each piece after so many seconds."""

    status: int
    headers: dict[str, str]
    data: bytes
    pieces: Sequence[tuple[float, bytes]]


class FakeApi(Protocol):
    """One provider's routes over a FakeCloud."""

    cloud: FakeCloud
    prefix: str
    error_type: str

    @abstractmethod
    def route(self, request: Request) -> Answer:
        """Answer one request."""

    @abstractmethod
    def refuse(self, status: int) -> Answer:
        """This provider's own error document with that status (402, 404, 410)."""

    @abstractmethod
    def refuse_key(self) -> Answer:
        """What a bad key gets."""


class FakeService:
    """One fake API behind its key."""

    def __init__(self, api: FakeApi, key: str | None = None) -> None:
        self.api = api
        self.cloud = api.cloud
        self.key = key or f"fake-{secrets.token_hex(16)}"

    def answer(self, method: str, target: str, authorization: str, raw: bytes) -> Answer:
        """Check the key, let faults strike, route, and keep the exchange."""
        parts = urlsplit(target)
        try:
            body = json.loads(raw) if raw.strip() else None
        except ValueError:
            return Answer(400, text="not JSON")
        if parts.path.startswith("/_fake/"):
            return self._inspect(method, parts.path, body)
        if not parts.path.startswith(self.api.prefix + "/"):
            return Answer(404, text="nothing here")
        request = Request(method, parts.path[len(self.api.prefix) :], dict(parse_qsl(parts.query)), body)
        given = authorization.removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self.key.encode()) or self.cloud.take("auth"):
            answer = self.api.refuse_key()
        else:
            answer = self._routed(request)
        self.cloud.exchanges.append(
            Exchange(method, request.path, dict(request.query), body, answer.status, answer.body)
        )
        return answer

    def wire(self, answer: Answer) -> Wire:
        """The answer's bytes."""
        if answer.stream is not None:
            data, kind = "".join(f"{line}\n" for line in answer.stream).encode(), "text/event-stream"
        elif answer.text is not None:
            data, kind = answer.text.encode(), "text/plain; charset=utf-8"
        elif answer.body is None:
            data, kind = b"", ""
        else:
            data = json.dumps(answer.body).encode()
            kind = self.api.error_type if answer.status >= 400 else "application/json"
        headers = {FAKE_HEADER: "1", **({"Content-Type": kind} if kind else {}), **answer.headers}
        if not answer.drips:
            return Wire(answer.status, headers, data, [(0.0, data)])
        size = max(1, -(-len(data) // PIECES))
        parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
        wait = answer.drips / max(1, len(parts))
        return Wire(answer.status, headers, data, [(wait, part) for part in parts])

    def _routed(self, request: Request) -> Answer:
        if request.method in ("POST", "PUT") and _CREATE.match(request.path):
            return self._create(request)
        if request.method == "DELETE":
            return self._delete(request)
        answer = self._misread(request) or self.api.route(request)
        if answer.status == 200 and isinstance(answer.body, dict) and self.cloud.take("unknown-keys"):
            answer = dataclasses.replace(answer, body=_strange(answer.body))
        drips = self.cloud.take("answer-drips")
        return dataclasses.replace(answer, drips=drips.amount) if drips else answer

    def _create(self, request: Request) -> Answer:
        take = self.cloud.take
        if take("create-slow"):
            self.cloud.clock.sleep(SLOW_SEC)
        if (fails := take("create-fails")) is not None:
            return self._formed(fails.form, Answer(201, {}))
        made, hangs = take("create-made"), take("create-hangs")
        late = (made.amount if made else 0.0) + (hangs.amount if hangs else 0.0)
        answer = self.api.route(dataclasses.replace(request, late=late))
        if answer.made is not None and (made or hangs):
            answer.made.answered = made.form if made else "hang"
        if answer.made is not None and made:
            answer = self._formed(made.form, answer)
        return dataclasses.replace(answer, delay=answer.delay + (hangs.amount if hangs else 0.0))

    def _delete(self, request: Request) -> Answer:
        take = self.cloud.take
        if (fails := take("delete-fails")) is not None:
            return self._formed(fails.form, Answer(204))
        answer = self.api.route(request)
        done = take("delete-done")
        return answer if done is None else self._formed(done.form, answer)

    def _misread(self, request: Request) -> Answer | None:
        """What a reading request gets in the place of its answer."""
        take = self.cloud.take
        if request.method != "GET":
            return None
        if take("read-5xx"):
            return Answer(503, text="upstream connect error or disconnect/reset before headers")
        if take("read-429"):
            return Answer(429, text="API requests too frequent: endpoint threshold=2.0")
        if take("read-drop"):
            return Answer(0, cut=True)
        one = _ONE.match(request.path)
        if one and take("read-one-5xx"):
            return Answer(503, text="upstream connect error or disconnect/reset before headers")
        fault = take("read-answers")
        if fault is None and one:
            fault = take("look-answers")
        if fault is None and _LIST.match(request.path):
            fault = take("list-answers")
        if fault is None:
            return None
        return self._formed(fault.form, self.api.route(request) if fault.form == "truncated" else Answer(200))

    def _formed(self, form: str, answer: Answer) -> Answer:
        """What comes in the place of `answer`: one of faults.FORMS."""
        match form:
            case "402" | "404" | "410":
                return self.api.refuse(int(form))
            case "cut":
                return Answer(0, cut=True)
            case "hang":
                return Answer(0, cut=True, delay=HANG_SEC)
            case "html":
                return Answer(200, text=_HTML, headers={"Content-Type": "text/html"})
            case "truncated":
                return Answer(answer.status, text=json.dumps(answer.body)[:-7] or "{")
        words = {"429": "API requests too frequent", "500": "Internal Server Error"}
        return Answer(int(form), text=words.get(form, "upstream request timeout"))

    def _inspect(self, method: str, path: str, body: Any) -> Answer:
        try:
            if (method, path) == ("GET", "/_fake/state"):
                return Answer(200, self.cloud.snapshot())
            if (method, path) == ("POST", "/_fake/faults"):
                self.cloud.faults.add(str(body["kind"]), int(body.get("times", 1)))
                return Answer(200, {"ok": True})
            if (method, path) == ("POST", "/_fake/exit"):
                self.cloud.exit_pod(str(body["id"]))
                return Answer(200, {"ok": True})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Answer(400, {"ok": False, "error": str(error)})
        return Answer(404, {"ok": False})


def _strange(value: Any) -> Any:
    """The same document, with keys that nobody knows in each of its objects."""
    if isinstance(value, dict):
        return {key: _strange(each) for key, each in value.items()} | _STRANGE
    return [_strange(each) for each in value] if isinstance(value, list) else value
