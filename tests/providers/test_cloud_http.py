"""The HTTP client: where the key may go, what a provider's words become, TLS with a given bundle."""

from __future__ import annotations

import datetime
import email.utils
import http.server
import ipaddress
import logging
import pickle
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import UsageError
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud_http import (
    ApiError,
    CloudHttp,
    Credential,
    check_base_url,
    clean,
    retry_after,
)
from glasshouse.secret_patterns import PATTERNS, SCRUBBED
from tests.publishing.test_secrets import CANARIES

from .cloud_kit import FAST

KEY = "rpa_0123456789ABCDEFGHIJKLMNOP"


def credential() -> Credential:
    return Credential("RUNPOD_API_KEY", {"RUNPOD_API_KEY": KEY})


@pytest.mark.parametrize(
    "url", ["https://api.runpod.io/v2", "http://127.0.0.1:80/v2", "http://localhost:1", "http://[::1]:8/api"]
)
def test_base_urls_that_are_accepted(url: str) -> None:
    assert check_base_url(url).host


@pytest.mark.parametrize(
    "url",
    [
        "http://api.runpod.io/v2", "http://127.0.0.1.example.org", "http://10.0.0.1", "ftp://127.0.0.1",
        "https://user:pass@api.runpod.io", "https://api.runpod.io/v2?key=1", "https://api.runpod.io/#x", "https://",
        "http://localhost.example.org", "http://0.0.0.0",
    ],
)  # fmt: skip
def test_base_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_base_url(url)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["", " ", "short", "has space in it", "new\nline-in-key", "ünïcode-key-here"]
)
def test_keys_that_are_refused_without_showing_them(value: str) -> None:
    with pytest.raises(UsageError, match="RUNPOD_API_KEY") as caught:
        Credential("RUNPOD_API_KEY", {"RUNPOD_API_KEY": value})
    assert not value.strip() or value not in str(caught.value)


def test_a_credential_shows_and_pickles_nothing() -> None:
    key = credential()
    assert KEY not in f"{key!r} {key} {vars(key).keys()}"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after("12") == 12.0
    assert retry_after("999999") == 120.0
    date = email.utils.formatdate(1000.0, usegmt=True)
    assert retry_after(date, now=990.0) == 10.0
    assert retry_after(date, now=2000.0) == 0.0
    for word in ("soon", "\u00b2"):
        assert retry_after(word) is None
    assert retry_after(None) is None


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abcdef123456", "api_key=abcdef", '"token": "abcdef"', "password: hunter2", "203.0.113.7:22",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----",
        "GLASSHOUSE_HOST_KEY=xyz",
        "c2VjcmV0" * 12,
    ],
)  # fmt: skip
def test_clean_removes_secrets(secret: str) -> None:
    cleaned = clean(f"pull failed {secret} for image")
    assert "[removed]" in cleaned
    assert all(
        part not in cleaned for part in ("abcdef", "hunter2", "203.0.113", "BEGIN", "xyz", "c2VjcmV0c2")
    )


@pytest.mark.parametrize(("code", "text"), [case for case in CANARIES if case[0] in SCRUBBED])
def test_clean_removes_what_a_publication_is_searched_for(code: str, text: str) -> None:
    cleaned = clean(f"pull failed: {text} for image")
    assert "[removed]" in cleaned
    assert not any(pattern.search(cleaned) for name, pattern in PATTERNS if name == code)
    assert not any(part in cleaned for part in text.split() if len(part) > 20)


def test_clean_keeps_the_message_and_image_digests() -> None:
    text = "manifest for example/pytorch@sha256:" + "ab" * 32 + " not found"
    assert clean(text) == text


@given(st.text(max_size=500))
def test_clean_gives_one_bounded_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) <= 200
    assert cleaned.isprintable()


class _Talker(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        if self.path.endswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/v2/elsewhere")
            self.end_headers()
            return
        if self.path.endswith("/echo"):
            data, status = f"bad key {KEY} for {KEY}".encode(), 403
        elif self.path.endswith("/drip"):
            self.send_response(200)
            self.end_headers()
            for _ in range(40):  # far longer than is waited, each byte well within the time-out
                self.wfile.write(b" ")
                time.sleep(0.02)
            return
        elif self.path.endswith("/head"):
            for _ in range(100):  # headers of a good answer, five times as long as is waited
                self.wfile.write(b"HTTP/1.1 200 OK\r\n" if not _ else b"x: y\r\n")
                time.sleep(0.02)
            self.wfile.write(b"Content-Length: 2\r\n\r\n{}")
            return
        elif self.path.endswith("/nan"):
            data, status = b'{"cost": NaN}', 200
        elif self.path.endswith("/huge"):
            data, status = b" " * (9 << 20), 200
        else:
            data, status = b'{"ok": true}', 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass


@pytest.fixture
def talker() -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("Handler", (_Talker,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(server: http.server.ThreadingHTTPServer, scheme: str = "http") -> CloudHttp:
    url = f"{scheme}://127.0.0.1:{server.server_address[1]}/v2"
    return CloudHttp(url, credential(), message_of=str, timeout_sec=2.0, timing=FAST)


def test_the_key_is_sent_and_never_logged_or_raised(
    talker: http.server.ThreadingHTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    http_client = client(talker)
    assert http_client.send("GET", "pods").body == {"ok": True}
    with pytest.raises(ApiError) as caught:
        http_client.send("GET", "echo")
    with pytest.raises(ApiError) as lost:
        CloudHttp("http://127.0.0.1:1/", credential(), message_of=str, timeout_sec=0.5).send("GET", "x")
    http_client.close()
    assert talker.RequestHandlerClass.seen == [f"Bearer {KEY}"] * 2  # type: ignore[attr-defined]
    shown = f"{caught.value!r} {caught.value} {lost.value!r} {http_client!r} {caplog.text}"
    assert KEY not in shown
    assert caught.value.message == "bad key [key] for [key]"
    assert lost.value.status == 0
    assert lost.value.__cause__ is None
    assert lost.value.__suppress_context__


def test_redirects_are_not_followed(talker: http.server.ThreadingHTTPServer) -> None:
    with pytest.raises(ApiError) as caught:
        client(talker).send("GET", "moved")
    assert caught.value.status == 302
    assert len(talker.RequestHandlerClass.seen) == 1  # type: ignore[attr-defined]


def test_an_endless_answer_is_cut(talker: http.server.ThreadingHTTPServer) -> None:
    with pytest.raises(ApiError, match="more than"):
        client(talker).send("GET", "huge")


def test_an_answer_that_drips_in_is_given_up_and_a_log_that_does_is_cut(
    talker: http.server.ThreadingHTTPServer,
) -> None:
    url = f"http://127.0.0.1:{talker.server_address[1]}/v2"
    timing = replace(FAST, log_sec=0.1)
    slow = CloudHttp(url, credential(), message_of=str, timeout_sec=0.1, timing=timing)
    with pytest.raises(ApiError, match="no whole answer") as caught:
        slow.send("GET", "drip")
    assert caught.value.status == 0
    with pytest.raises(ApiError) as caught:
        slow.send("GET", "head")
    assert caught.value.status == 0
    assert len("".join(slow.stream_lines("drip", {}))) < 20
    slow.close()


class Stopped(Clock):
    """A clock that stands still: whatever ends by it does not end."""

    def monotonic(self) -> float:
        return 0.0


def test_a_cut_answer_is_never_taken_for_a_whole_one(
    talker: http.server.ThreadingHTTPServer,
) -> None:
    url = f"http://127.0.0.1:{talker.server_address[1]}/v2"
    slow = CloudHttp(url, credential(), message_of=str, timeout_sec=0.1, timing=FAST, clock=Stopped())
    with pytest.raises(ApiError, match="no whole answer"):
        slow.send("GET", "drip")  # blanks and then the end, which by themselves are an empty answer
    slow.close()


def test_a_price_that_is_no_number_is_no_answer(talker: http.server.ThreadingHTTPServer) -> None:
    with pytest.raises(ApiError, match="not JSON"):
        client(talker).send("GET", "nan")


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "glasshouse test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_path, key_path


def test_tls_needs_a_known_certificate_and_honours_ssl_cert_file(
    talker: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    talker.socket = context.wrap_socket(talker.socket, server_side=True)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(ApiError, match="no answer"):
        client(talker, "https").send("GET", "pods")
    assert talker.RequestHandlerClass.seen == []  # type: ignore[attr-defined]
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert client(talker, "https").send("GET", "pods").status == 200


def test_an_unreadable_ssl_cert_file_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(UsageError, match="SSL_CERT_FILE"):
        CloudHttp("https://127.0.0.1:1/", credential(), message_of=str, timeout_sec=1.0)
