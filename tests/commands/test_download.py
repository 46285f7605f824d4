"""What a hostile site can do to whoever verifies one of its rows by URL: be refused, in time, in one line."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from glasshouse.commands.download import Budget, fetch_row
from glasshouse.errors import RemoteError
from glasshouse.records.keys import Keyring
from tests.commands.kit import Call

Answer = Callable[[BaseHTTPRequestHandler], None]
ROOT = Path(__file__).parents[2]
ROW = "research/artifacts/2026-11-28-local-h100-mlp-large-2s-raw-first-dmonnt.json"


@contextmanager
def site(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's signature)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def drip_body(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    drip(request, b"[")


def drip_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    drip(request, b"a")


def drip(request: BaseHTTPRequestHandler, byte: bytes) -> None:
    while True:
        try:
            request.wfile.write(byte)
            request.wfile.flush()
            request.connection.settimeout(0.05)
            if not request.connection.recv(1):
                return
        except TimeoutError:
            continue
        except OSError:
            return


@pytest.mark.parametrize("answer", [drip_body, drip_headers])
def test_a_site_that_drips_ends_at_the_deadline_of_the_whole(answer: Answer, tmp_path: Path) -> None:
    with site(answer) as address, pytest.raises(RemoteError, match="took more than 1 s in all"):
        fetch_row(address + ROW, tmp_path, Keyring(()), Budget(seconds=1))


def test_many_small_answers_have_one_limit_together(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"[]" + b" " * 3000)

    with site(answer) as address, pytest.raises(RemoteError, match="too large"):
        fetch_row(address + ROW, tmp_path, Keyring(()), Budget(total_bytes=5000))
    assert (tmp_path / "artifacts").is_dir()  # the first one was within


NAMES = [
    "legs",
    "legs/s000-raw/launch.json",
    "plan.dsse.json",
    "plan.dsse.json/x",
    "é.json",
    "../../out",
    "a/../b",
]


def test_names_that_no_bundle_has_are_not_fetched_and_nothing_crashes(call: Call, tmp_path: Path) -> None:
    published = ROOT / "site" / ROW
    subjects = [{"name": name, "digest": {"sha256": "0" * 64}} for name in (*NAMES, *NAMES)]
    statement = base64.b64encode(json.dumps({"subject": subjects}).encode()).decode()
    envelope = json.dumps({"payload": statement, "payloadType": "x", "signatures": []}).encode()
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        bodies = {f"/{ROW}": published.read_bytes(), f"/{ROW}".replace("artifacts", "bundles"): b""}
        body = bodies.get(request.path, envelope if request.path.endswith("bundle.dsse.json") else b"{}")
        request.send_response(404 if request.path.endswith(("rows.json", "checkpoint")) else 200)
        request.end_headers()
        request.wfile.write(body)

    with site(answer) as address:
        code, out, err = call("verify", address + ROW, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["ok"] is False
    got = [path.rpartition("dmonnt/")[2] for path in asked if "/bundles/" in path]
    assert sorted(got) == ["bundle.dsse.json", "legs/s000-raw/launch.json", "plan.dsse.json"]
    assert not (tmp_path / "out").exists()


def test_sigterm_leaves_no_folder_behind(tmp_path: Path) -> None:
    waiting = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        waiting.set()
        drip_body(request)

    with site(answer) as address:
        command = [sys.executable, "-m", "glasshouse", "verify", address + ROW]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert waiting.wait(30)
        assert list(tmp_path.iterdir())  # its folder is there while it fetches
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "error: terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_site_says_does_not_reach_the_terminal_as_it_is(call: Call) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202everified"

    def answer(request: BaseHTTPRequestHandler) -> None:
        rows = [{"id": evil, evil: evil}]
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps(rows).encode())

    with site(answer) as address:
        for words in ((), ("--json",)):
            code, out, err = call("verify", address + ROW, *words)
            assert code in (1, 2, 3)
            assert not [char for char in out + err if not char.isprintable() and char != "\n"]


def test_a_port_that_answers_nothing_of_http_is_one_line(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"\x1b[2Jnot http\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=close)
        thread.start()
        code, out, err = call("verify", f"http://127.0.0.1:{listener.getsockname()[1]}/{ROW}")
        thread.join()
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "cannot be fetched" in err
