"""The package reaches the pod whole, also over a connection that dies on the way."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.errors import OutcomeUnknown
from glasshouse.lifecycle.follow import CARRY
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import upload
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod

SIZE = 24_000_000


class Cutting(Screen):
    """Cuts the pod's connection when it is told of progress, `times` times."""

    def __init__(self, pod: Pod, times: int) -> None:
        super().__init__(quiet=True)
        self._pod = pod
        self._left = times
        self.warned: list[str] = []
        self.told: list[str] = []

    def progress(self, text: str, *, plain: bool = True) -> None:
        self.told.append(text)
        if self._left and self._pod.connected:
            self._left -= 1
            self._pod.drop_transport()

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_it_goes_on_from_what_arrived(endpoint: Endpoint, tmp_path: Path) -> None:
    source, target = tmp_path / "package", Path(endpoint.workdir) / "pod" / "package"
    source.write_bytes(os.urandom(SIZE))
    with Pod(endpoint) as pod:
        screen = Cutting(pod, 1)
        upload(pod, source, str(target), screen)
    assert target.read_bytes() == source.read_bytes()
    assert len(screen.warned) == 1
    assert screen.told[-1].startswith("uploading 24 of 24 MB")


def test_it_gives_up_in_the_end(endpoint: Endpoint, tmp_path: Path) -> None:
    source, target = tmp_path / "package", Path(endpoint.workdir) / "pod" / "package"
    source.write_bytes(os.urandom(SIZE))
    with Pod(endpoint) as pod:
        screen = Cutting(pod, CARRY.tries)
        with pytest.raises(OutcomeUnknown):
            upload(pod, source, str(target), screen)
    assert len(screen.warned) == CARRY.tries - 1
    assert not target.exists()


class Relay:
    """Stands between us and a pod: counts what goes there, and cuts every connection after so many bytes."""

    def __init__(self, host: str, port: int, cut_every: int) -> None:
        self._to, self._every = (host, port), cut_every
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent = self.cuts = 0

    def serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                threading.Thread(target=self._up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while piece := near.recv(1 << 16):
                far.sendall(piece)
                self.sent += len(piece)
                if self.sent > (self.cuts + 1) * self._every:
                    self.cuts += 1
                    break
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @staticmethod
    def _down(far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while piece := far.recv(1 << 16):
                near.sendall(piece)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def relayed(endpoint: Endpoint, cut_every: int) -> Iterator[tuple[Endpoint, Relay]]:
    """The endpoint, behind a relay; its host key is pinned under the relay's port."""
    relay = Relay(endpoint.host, endpoint.port, cut_every)
    name = f"[127.0.0.1]:{relay.port}"
    lines = tuple(line.replace(endpoint.known_hosts_name, name) for line in endpoint.host_key.lines or ())
    thread = threading.Thread(target=relay.serve, daemon=True)
    thread.start()
    try:
        yield (
            replace(
                endpoint, host="127.0.0.1", port=relay.port, host_key=replace(endpoint.host_key, lines=lines)
            ),
            relay,
        )
    finally:
        relay.close()


def check_cuts(endpoint: Endpoint, place: Path, size: int, at_most: float) -> None:
    source, target = place / "package", Path(endpoint.workdir) / "pod" / "package"
    with source.open("wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))
    with relayed(endpoint, size // 5) as (behind, relay), Pod(behind) as pod:
        screen = Screen(quiet=True)
        upload(pod, source, str(target), screen)
        assert relay.cuts >= 5  # one more than one upload may fail without bringing anything
        assert relay.sent < at_most * size
    with source.open("rb") as sent, target.open("rb") as arrived:
        while piece := sent.read(1 << 20):
            assert arrived.read(1 << 20) == piece
        assert not arrived.read(1)
    shutil.rmtree(target.parent)


def test_five_cuts_are_survived(endpoint: Endpoint, tmp_path: Path) -> None:
    check_cuts(endpoint, tmp_path, 40 << 20, 2.0)  # what was on its way is sent again: much, of so few


@pytest.mark.soak
def test_five_cuts_cost_a_large_package_a_tenth_at_most(endpoint: Endpoint, tmp_path: Path) -> None:
    check_cuts(endpoint, tmp_path, 2 << 30, 1.1)
