"""A run whose payload key rests with a broker in a process and home of its own, as on another machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from glasshouse.attestation.http_message import OPENING
from tests.e2e.conftest import PACED, Program

pytestmark = [pytest.mark.slow]


@dataclasses.dataclass(frozen=True)
class Asking(Program):
    """The program, told of a broker's port."""

    port: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "GLASSHOUSE_BROKER": self.port}


def _list_each_other(*programs: Program) -> list[set[str]]:
    """Make keys in each home and list all of them in all; the key ids that each made."""
    rings = [json.loads(program("keys", "--make", "--json").stdout)["keys"] for program in programs]
    local = [[entry for entry in ring if entry["local"]] for ring in rings]
    document = json.dumps({"keys": [entry for ring in local for entry in ring]})
    for program in programs:
        (program.home / "keys" / "keyring.json").write_text(document)
    return [{entry["keyid"] for entry in ring} for ring in local]


class _Tap(socketserver.StreamRequestHandler):
    """Between run and broker: passes each connection on, and keeps the first line or two of it."""

    seen: ClassVar[list[bytes]] = []
    port: ClassVar[int] = 0

    def handle(self) -> None:
        first = self.rfile.readline()
        if first.startswith(OPENING):
            first += self.rfile.readline()
        self.seen.append(first)
        with socket.create_connection(("127.0.0.1", self.port)) as broker:
            broker.sendall(first)
            back = threading.Thread(target=self._back, args=(broker,))
            back.start()
            while data := self.rfile.read1():
                broker.sendall(data)
            back.join()

    def _back(self, broker: socket.socket) -> None:
        while data := broker.recv(65536):
            self.wfile.write(data)
        self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _tapped(port: int) -> Iterator[int]:
    _Tap.port = port
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Tap) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_run_uses_a_broker_of_another_process_and_home(program: Program, tmp_path: Path) -> None:
    far = Program(tmp_path / "far", program.runs)
    _, far_keys = _list_each_other(program, far)
    process = far.start("broker", "--port", "0", "--json")
    assert process.stdout is not None
    try:
        said = json.loads("".join(process.stdout.readline() for _ in range(6)))
        with _tapped(said["port"]) as port:
            asking = Asking(program.home, program.runs, port=str(port))
            words = ["order=protected-only", "duration=0.5", "provider.threads=1"]
            done = asking("run", "--json", "--out", str(program.runs), *PACED, *words)
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "verified"
    assert said["broker"] in far_keys
    exchange = (Path(record["folder"]) / "bundle/legs/s000-protected/exchange.json").read_text()
    assert json.loads(exchange)["grant"]
    assert (far.home / "state" / "broker.db").exists()
    assert not list(program.runs.rglob("broker.db*"))
    assert program("verify", record["folder"]).returncode == 0
    # Whatever comes from the machine is marked as carried by its forward, and what the operator asks is not.
    asked: dict[bool, set[bytes]] = {True: set(), False: set()}
    for first in _Tap.seen:
        asked[first.startswith(OPENING)].add(first.splitlines()[-1].split()[1])
    assert asked == {True: {b"/v1/challenge", b"/v1/attest"}, False: {b"/v1/card", b"/v1/operate"}}


def test_a_broker_that_is_not_there_ends_as_a_row(program: Program) -> None:
    asking = Asking(program.home, program.runs, port="1")
    done = asking("run", "--json", "--out", str(program.runs), *PACED, "order=protected-only", "duration=0.5")
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "excluded"
    assert "broker-unreachable" in done.stderr
