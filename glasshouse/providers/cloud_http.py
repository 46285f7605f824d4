"""One thin HTTPS client for the paid providers: one credential, bounded replies, retries by status.

The credential is added at the moment of sending and appears in nothing else: not in a repr, an exception or a
log line. Redirects are never followed, so it cannot be carried to another host. Whatever text a provider
sends back is cut and cleaned before it reaches a person (`clean`).
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import httpx

from glasshouse import __version__
from glasshouse.cutting import Cutter
from glasshouse.errors import UsageError
from glasshouse.providers.clock import Clock
from glasshouse.retry import RetryPolicy, retry
from glasshouse.secret_patterns import scrub

FAKE_HEADER: Final = "x-glasshouse-fake"
MAX_REPLY_BYTES: Final = 8 << 20
MAX_RETRY_AFTER_SEC: Final = 120.0
WHOLE_ANSWER: Final = 4.0  # times the time-out: by then an answer has come whole
_LOST: Final = 0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Timing:
    """How long to wait between looks, in seconds. The tests and the fake providers use short ones."""

    poll_sec: float = 5.0  # between two looks at a booting machine; RunPod grants 60 requests a minute
    watch_sec: float = 15.0  # between two looks while a doubt lasts, for minutes
    backoff_sec: float = 1.0  # first pause after a failure; doubles up to backoff_max_sec
    backoff_max_sec: float = 30.0
    settle_sec: float = 10.0  # how long what an unanswered create made is waited for before the next create
    missing_sec: float = 60.0  # how long a machine may be missing while it boots: lists and look-ups lag
    proof_gap_sec: float = 5.0  # between the two looks of a zero-left proof
    release_sec: float = 180.0  # how long a release insists before it says nonzero or unknown
    quick_sec: float = 10.0  # what one look-up or delete by id may take in a release: others wait behind it
    look_sec: float = 60.0  # what one reading of the whole list may take in a release
    doubt_sec: float = math.inf  # at most this instead of the settings provider.doubt_sec ...
    lag_sec: float = math.inf  # ... and provider.lag_sec
    key_grace_sec: float = 30.0  # how long our own host key may take to be installed
    log_sec: float = 5.0  # how long one look at a log stream may take
    reads: int = 6  # attempts of one read
    creates: int = 4  # attempts of one create

    def retries(self, tries: int) -> RetryPolicy:
        """How one request is tried again: `tries` in all, each wait twice the one before."""
        return RetryPolicy.doubling(tries, self.backoff_sec, self.backoff_max_sec)


# A fake provider answers at once; waiting as for a real one would only make its user wait.
FAKE_TIMING: Final = Timing(
    poll_sec=0.1, watch_sec=0.1, backoff_sec=0.02, backoff_max_sec=0.3, settle_sec=0.4, missing_sec=0.3,
    proof_gap_sec=0.1, release_sec=2.5, quick_sec=2.0, look_sec=2.0, doubt_sec=1.0, lag_sec=0.5,
    key_grace_sec=1.0, log_sec=1.0, reads=5,
)  # fmt: skip


class ApiError(Exception):
    """A request that did not end in 2xx. `status` is 0 when no whole answer came: the outcome is unknown.

    `message` is the provider's own, cleaned. `created_id` is set when the refusal itself names a machine that
    it created all the same.
    """

    def __init__(
        self, status: int, message: str, *, retry_after: float | None = None, created_id: str | None = None
    ) -> None:
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.created_id = created_id
        super().__init__(f"{status or 'no answer'}: {message}")

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.status in (_LOST, 408, 425, 429) or self.status >= 500


@dataclass(frozen=True)
class Reply:
    """A 2xx answer: its status and parsed JSON (None for an empty body).

    `continued`: whether its header says that it is a part or that more follows (RFC 8288 rel=next; RFC 9110
    Content-Range; X-Next-Page). `total`: how many rows X-Total-Count says there are, "" where it does not.
    """

    status: int
    body: Any
    continued: bool = False
    total: str = ""


class Credential(httpx.Auth):
    """An API key from the environment, sent as a bearer token and shown to nobody."""

    def __init__(self, variable: str, environ: Mapping[str, str] | None = None) -> None:
        value = (os.environ if environ is None else environ).get(variable, "").strip()
        if not value:
            raise UsageError(
                "no API key", field="environment", value=variable, remedy=f"export {variable} with a key"
            )
        if not re.fullmatch(r"[\x21-\x7e]{8,512}", value):
            raise UsageError(
                "not an API key", field="environment", value=variable, remedy="check what it holds"
            )
        self.variable = variable
        self._value = value

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the bearer token to one request (httpx's hook)."""
        request.headers["Authorization"] = f"Bearer {self._value}"
        yield request

    def hide(self, text: str) -> str:
        """Return `text` without the key."""
        return text.replace(self._value, "[key]")

    def __repr__(self) -> str:
        return f"<key from {self.variable}>"

    __str__ = __repr__

    def __reduce__(self) -> Literal[""]:
        raise TypeError("a credential is not pickled")


def clean(text: str, limit: int = 200) -> str:
    """Make a provider's text fit for a terminal and a record: one line, no control characters, no secrets."""
    text = scrub(text)
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_base_url(url: str) -> httpx.URL:
    """Accept https, and http for loopback only; no credentials, query or fragment. Raises UsageError."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise UsageError("not a URL", field="provider.base_url", value=clean(url)) from None
    if not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            "needs a host, and no credentials or query", field="provider.base_url", value=clean(url),
            remedy="keys come from the environment only",
        )  # fmt: skip
    if parsed.scheme != "https" and not (parsed.scheme == "http" and is_loopback(parsed.host)):
        raise UsageError(
            "http would send the API key in the clear", field="provider.base_url", value=clean(url),
            remedy="use https; http is accepted for loopback only",
        )  # fmt: skip
    return parsed


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's loopback, by address or as `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds to wait by Retry-After (RFC 9110 section 10.2.3: seconds or a date), at most two minutes."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value.strip()[:6]), MAX_RETRY_AFTER_SEC)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return None
    return min(max(0.0, moment - (time.time() if now is None else now)), MAX_RETRY_AFTER_SEC)


def _certificates(tls: bool) -> ssl.SSLContext:
    """Whom to trust: the bundle in SSL_CERT_FILE when there is one, else httpx's. Raises UsageError."""
    if not tls:
        # Plain loopback: loading certificates would take longer than the requests.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bundle = os.environ.get("SSL_CERT_FILE")
    if not bundle:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            "cannot read the certificate bundle",
            field="SSL_CERT_FILE",
            value=bundle,
            remedy="point it at a PEM file, or unset it",
        ) from error


def again(request: Callable[[int], _T], policy: Callable[[], RetryPolicy], clock: Clock) -> _T:
    """Send a request until it goes well, where its failures are transient: Retry-After goes before `policy`.

    The policy is asked for after each failure, since the first answer says whether this is a fake.
    """
    return retry(
        request,
        policy,
        on=ApiError,
        when=lambda error: error.transient,
        asked=lambda error: error.retry_after,
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    )


class CloudHttp:
    """Requests to one provider's API. Not thread-safe; close it."""

    def __init__(
        self,
        base_url: str,
        credential: Credential,
        *,
        message_of: Callable[[Any], str],
        timeout_sec: float,
        timing: Timing | None = None,
        clock: Clock | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open no connection yet. `transport` takes the place of the network, `clock` of this machine's."""
        url = check_base_url(base_url)
        self._credential = credential
        self._message_of = message_of
        self._fixed_timing = timing
        self.clock = clock or Clock()
        self._timeout_sec = timeout_sec
        self._cutter = Cutter(armed=transport is None)
        self._ends = math.inf  # monotonic seconds, when everything asked within `within` is over
        self.simulated = False  # set for good by the first reply that says so
        self._client = httpx.Client(
            base_url=url,
            auth=credential,
            verify=_certificates(url.scheme == "https"),
            timeout=timeout_sec,
            follow_redirects=False,
            trust_env=not is_loopback(url.host),  # a proxy from the environment cannot reach our loopback
            transport=transport,
            headers={"User-Agent": f"glasshouse/{__version__}", "Accept": "application/json"},
        )

    def __repr__(self) -> str:
        return f"<CloudHttp {self._credential!r}>"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def timing(self) -> Timing:
        """The waiting times in force: the given ones, else short ones at a fake provider."""
        return self._fixed_timing or (FAKE_TIMING if self.simulated else Timing())

    def clean(self, text: str, limit: int = 200) -> str:
        """`clean`, with this client's key removed first."""
        return clean(self._credential.hide(text), limit)

    def send(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str | int] | None = None
    ) -> Reply:
        """Send one request once. Raises ApiError for everything but 2xx with a whole JSON (or no) body."""
        left = self._ends - self.clock.monotonic()
        if left <= 0:
            raise ApiError(_LOST, "no time is left to ask")
        timeout, whole = min(self._timeout_sec, left), min(WHOLE_ANSWER * self._timeout_sec, left)
        end = self.clock.monotonic() + whole
        traced = {"trace": self._cutter.trace}
        try:
            with (
                self._cutter.after(whole) as cut,
                self._client.stream(
                    method, path, json=body, params=params, timeout=timeout, extensions=traced
                ) as response,
            ):
                self._note_fake(response)
                chunks = bytearray()
                for chunk in response.iter_bytes():
                    chunks += chunk
                    if self.clock.monotonic() > end:
                        break
                    if len(chunks) > MAX_REPLY_BYTES:
                        raise ApiError(_LOST, f"an answer of more than {MAX_REPLY_BYTES} bytes")
                if cut.is_set() or self.clock.monotonic() > end:
                    raise ApiError(_LOST, f"no whole answer in {whole:.0f} s")
                status, wait = response.status_code, response.headers.get("retry-after")
                headers, continued = response.headers, "next" in response.links
                continued = continued or bool(headers.get("content-range") or headers.get("x-next-page"))
                total = headers.get("x-total-count", "")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # `from None`: the chained exception holds the request, and with it the key.
            raise ApiError(_LOST, f"no answer ({type(error).__name__})") from None
        value, readable = _parse(bytes(chunks))
        if 200 <= status < 300:
            if not readable:
                raise ApiError(_LOST, "an answer that is not JSON")
            return Reply(status, value, continued, total)
        said = self._message_of(value) if readable else chunks.decode("utf-8", "replace")
        raise ApiError(
            status, self.clean(said) or f"status {status}", retry_after=retry_after(wait, self.clock.now()),
            created_id=_contract(value),
        )  # fmt: skip

    def read(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str | int] | None = None
    ) -> Reply:
        """Send a request that is harmless to repeat, again after transient failures. Raises ApiError."""
        return again(
            lambda _: self.send(method, path, body=body, params=params),
            lambda: replace(self.timing.retries(self.timing.reads), deadline=self._ends),
            self.clock,
        )

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let all that is asked inside end within so many seconds, retries and dripping answers too."""
        before = self._ends
        self._ends = min(before, self.clock.monotonic() + seconds)
        try:
            yield
        finally:
            self._ends = before

    def stream_lines(self, path: str, params: Mapping[str, str | int]) -> list[str]:
        """Read lines of an endless text stream for at most `timing.log_sec`. Raises ApiError."""
        text = ""
        end = self.clock.monotonic() + self.timing.log_sec
        try:
            with self._client.stream(
                "GET",
                path,
                params=params,
                timeout=self.timing.log_sec,
                headers={"Accept": "text/event-stream"},
            ) as response:
                self._note_fake(response)
                if not 200 <= response.status_code < 300:
                    raise ApiError(response.status_code, "the log cannot be read")
                for part in response.iter_text():
                    text += part
                    if self.clock.monotonic() > end or len(text) > 1 << 18:
                        break
        except httpx.ReadTimeout:
            pass  # the history has been sent; what would follow has not happened yet
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if not text:
                raise ApiError(_LOST, f"no answer ({type(error).__name__})") from None
        return text.splitlines()

    def _note_fake(self, response: httpx.Response) -> None:
        if FAKE_HEADER in response.headers:
            self.simulated = True


def _parse(data: bytes) -> tuple[Any, bool]:
    if not data.strip():
        return None, True
    try:
        # Not canonical.parse_json: its limits on numbers are ours, not a provider's.
        return json.loads(data, parse_constant=_no_number), True
    except (ValueError, RecursionError):
        return None, False


def _no_number(word: str) -> float:
    raise ValueError(word)  # NaN: a price that is never above any ceiling


def _contract(body: Any) -> str | None:
    """The machine that an answer names although it is an error (Vast.ai's `new_contract`)."""
    contract = body.get("new_contract") if isinstance(body, dict) else None
    return str(contract) if isinstance(contract, int) and not isinstance(contract, bool) else None
