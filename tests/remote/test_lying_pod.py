"""A pod whose programs lie in a transfer: the controller ends with a clear error, or with a right file.

The SSH server is real; `python` there is a program of the test's in place of our receiver or sender. What no
transfer can see is whether a pod keeps what it says it took: who opens the file there finds that out (a
package is authenticated chunk by chunk, the runtime is measured).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from glasshouse.codes import Code
from glasshouse.errors import OutcomeUnknown, RemoteError
from glasshouse.lifecycle.collect import MAX_OUTPUT_BYTES, sealed_outputs
from glasshouse.lifecycle.follow import CARRY
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import upload
from glasshouse.providers.pod_server import PodServer
from glasshouse.remote import connection, transfer
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.remote.pod import Pod
from glasshouse.remote.receive_script import digest_of_upload
from tests.remote.conftest import embedded_endpoint

DATA = os.urandom(24 << 20)  # more than what lies on the way, so that an end that stops reading is noticed
SMALL = DATA[: 1 << 20]
LINE = "import os, sys, time\nargs = sys.argv[1:]\ndef say(text): os.write(1, text.encode())\n"
TAKE = "def take(count):\n while count and (got := os.read(0, min(count, 1 << 20))): count -= len(got)\n"


def digest(data: bytes) -> str:
    hasher = digest_of_upload()
    hasher.update(data)
    return hasher.hexdigest()


@contextmanager
def lying(server: PodServer, place: Path, program: str) -> Iterator[Pod]:
    """A pod whose interpreter runs `program` in place of our script, with the script's arguments."""
    source, python = place / "liar.py", place / "python"
    source.write_text(LINE + TAKE + program)
    python.write_text(f'#!/bin/sh\nshift 4\nexec {sys.executable} -I {source} "$@"\n')
    python.chmod(0o755)
    with Pod(replace(embedded_endpoint(server), python=str(python))) as pod:
        yield pod


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 1.5)
    monkeypatch.setattr(transfer, "SLOWEST", 1e9)


def test_one_that_holds_more_than_there_is_gets_nothing_for_it(pod_server: PodServer, tmp_path: Path) -> None:
    """Gain: nothing of the file is sent, and its upload counts as done. It knows the digest from an earlier
    try, whose bytes it threw away."""
    program = f"say('{len(SMALL) + 1} {digest(SMALL)}\\n'); os.read(0, 1); say('done\\n')"
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(RemoteError, match="more of the file"):
        pod.put(SMALL, "file", checked=False)


@pytest.mark.parametrize("have", ["len(data)", "len(data) - 5", "7"])
@pytest.mark.parametrize("checked", [True, False])
def test_one_that_holds_other_bytes_is_sent_all_of_them(
    pod_server: PodServer, tmp_path: Path, have: str, checked: bool
) -> None:
    """Gain: a file with its own bytes in front of ours, which we would have vouched for."""
    program = (
        f"data = bytes({len(SMALL)})\nsay(f'{{{have}}} {'0' * 64}\\n')\n"
        "assert os.read(0, 1) == b'r'\n"
        f"got = open(args[0], 'wb')\nleft = {len(SMALL)}\n"
        "while left: piece = os.read(0, left); got.write(piece); left -= len(piece)\n"
        "got.close(); say('done\\n')"
    )
    with lying(pod_server, tmp_path, program) as pod:
        pod.put(SMALL, f"{tmp_path}/file", checked=checked)
    assert (tmp_path / "file").read_bytes() == SMALL


def test_one_that_is_done_before_it_has_all_is_not_believed(pod_server: PodServer, tmp_path: Path) -> None:
    """Gain: an upload that counts as done at no cost of disk."""
    program = f"say('0 {digest(b'')}\\n'); take(1000); say('done\\n')"
    with lying(pod_server, tmp_path, program) as pod:

        def wait(done: int, _total: int) -> None:
            until = time.monotonic() + 30
            transport: Any = pod._link.transport if pod._link else None
            while done and transport._channels.values() and time.monotonic() < until:
                time.sleep(0.01)  # until the pod's end has ended

        with pytest.raises(RemoteError, match=r"a file of which it took a part.*path=file"):
            pod.put(DATA, "file", checked=False, progress=wait)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("say('-1 ' + '0' * 64 + '\\n')", "answered with something else"),
        ("say('9' * 99 + ' ' + '0' * 64 + '\\n')", "answered with something else"),
        ("say('0 ' + 'g' * 64 + '\\n')", "answered with something else"),
        ("say('0\\n')", "answered with something else"),
        ("say('\\n')", "answered with something else"),
        ("os.write(1, b'\\xff\\xd9\\xa1 \\x1b]0;owned\\x07\\n')", "answered with something else"),
        ("say('Welcome to this machine, which greets whoever comes\\n')", "answered with something else"),
        ("say('0 ' + '0' * 64)", "ended well and did not say so"),
        ("sys.stderr.write('\\x1b]0;owned\\x07' * 100); sys.exit(9)", "could not take a file"),
        ("while True: say('0' * 65536)", "answered with something else"),
        (f"say('0 {digest(b'')}\\n'); take({len(SMALL) + 65}); say('well\\n')", "something else"),
        (f"say('0 {digest(b'')}\\n'); take({len(SMALL) + 65}); say('done\\ndone\\n')", "after its last word"),
        (
            f"say('0 {digest(b'')}\\n'); take({len(SMALL) + 65}); say('done\\n')\nwhile True: say('0' * 999)",
            "after its last word",
        ),
        (
            f"say('0 {digest(b'')}\\n'); take({len(SMALL) + 65}); say('done\\n'); sys.exit(7)",
            "could not take a file",
        ),
        (f"say('0 {digest(b'')}\\n'); take({len(SMALL) + 65}); sys.exit(4)", "arrived damaged"),
    ],
)
def test_no_answer_to_an_upload_but_its_own_is_one(
    pod_server: PodServer, tmp_path: Path, program: str, words: str
) -> None:
    """Gain: our time or memory, our terminal, or an upload that counts as done without being it."""
    with lying(pod_server, tmp_path, program) as pod:
        with pytest.raises(RemoteError, match=words) as raised:
            pod.put(SMALL, "file")
        assert not isinstance(raised.value, OutcomeUnknown)  # which would be tried again
        assert raised.value.line().isprintable()
        assert pod.connected


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "program",
    [
        "time.sleep(60)",
        "while True: say('0'); time.sleep(.2)",  # a hundred of these are a minute of the rental, and more
        f"say('0 {digest(b'')}\\n'); time.sleep(60)",
        f"say('0 {digest(b'')}\\n'); take(1)\nfor _ in range(3000): take(1000); time.sleep(.02)",
        f"say('0 {digest(b'')}\\n'); take({len(DATA) + 65}); time.sleep(60)",
        f"say('0 {digest(b'')}\\n'); take({len(DATA) + 65}); say('done\\n'); time.sleep(60)",
    ],
)
def test_one_that_takes_no_end_of_time_is_not_waited_for(
    pod_server: PodServer, tmp_path: Path, program: str
) -> None:
    """Gain: rented minutes, as long as it gives now and then a sign of life."""
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(OutcomeUnknown):
        pod.put(DATA, "file", checked=True)


def test_one_that_takes_a_byte_a_try_is_given_up(pod_server: PodServer, tmp_path: Path) -> None:
    """Gain: the rental, paid for until its deadline: each try brings something, so another is worth it."""
    (tmp_path / "package").write_bytes(SMALL)
    program = (
        "import hashlib\n"
        "held = open(args[0] + '.held', 'a+b'); held.seek(0); data = held.read()\n"
        "say(f'{len(data)} {hashlib.blake2b(data, digest_size=32).hexdigest()}\\n'); os.read(0, 1)\n"
        "held.write(os.read(0, 1)); held.close(); sys.exit(3)"
    )

    class Counting(Screen):
        warned = 0

        def warn(self, text: str) -> None:
            self.warned += 1
            assert self.warned < 2 * CARRY.tries, "it goes on"

    screen = Counting(quiet=True)
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(OutcomeUnknown):
        upload(pod, tmp_path / "package", f"{tmp_path}/file", screen)
    assert screen.warned == CARRY.tries - 1


@pytest.mark.parametrize("change", ["shorter", "longer", "another"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_part_that_changes_while_it_grows_is_not_renamed_into_place(
    pod_server: PodServer, tmp_path: Path, change: str, checked: bool
) -> None:
    """Gain: a file with a hole, or somebody else's, under the name that the next step opens."""
    part, changed = tmp_path / "file.part", list[int]()

    def alter(done: int, total: int) -> None:
        if 0 < done < total and not changed:
            changed.append(done)
            until = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
                time.sleep(0.01)
            if change == "shorter":
                os.truncate(part, 1000)
            elif change == "longer":
                os.truncate(part, len(DATA) + 1)
            else:
                part.unlink()
                part.write_bytes(b"other")

    with Pod(embedded_endpoint(pod_server)) as pod:
        with pytest.raises(RemoteError) as raised:
            pod.put(DATA, f"{tmp_path}/file", checked=checked, progress=alter)
        assert raised.value.code == Code.FILE_DAMAGED
    assert changed
    assert not (tmp_path / "file").exists()


# Fetching.


def fetch(pod: Pod, target: Path, **words: object) -> None:
    pod.fetch_file("file", target, max_bytes=words.pop("max_bytes", 64 << 20), **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "program"),
    [
        (0, f"say('100 50\\n' + 'x' * 50 + '{digest(b'x' * 50)}')"),
        (40, f"say('100 50\\n' + 'x' * 50 + '{digest(b'x' * 50)}')"),
        (40, f"say('10 40\\n{digest(b'x' * 40)}')"),
        (40, f"say('40 41\\n{digest(b'x' * 40)}')"),
    ],
)
def test_one_that_begins_elsewhere_makes_no_file(
    pod_server: PodServer, tmp_path: Path, there: int, program: str
) -> None:
    """Gain: a file that is shorter or longer than it says, and counts as verified."""
    target = tmp_path / "target"
    if there:
        target.with_name("target.part").write_bytes(b"x" * there)
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(RemoteError, match="nobody asked it to"):
        fetch(pod, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("say('-5 0\\n')", "answered with something else"),
        ("say('5\\n')", "answered with something else"),
        ("say('5 0 0\\n')", "answered with something else"),
        ("say('9' * 30 + ' 0\\n')", "answered with something else"),
        ("say('99999999999999999999 0\\n')", "larger than allowed"),
        ("while True: say('0' * 65536)", "answered with something else"),
        ("say('5 0')", "ended well and did not say so"),
        ("say('5 0\\nabc')", "became shorter"),
        ("say('5 0\\nabcde' + '0' * 63)", "became shorter"),
        ("say('5 0\\nabcde' + '0' * 64)", "came back damaged"),
        ("say('5 0\\nabcde' + '\\x1b' * 64)", "came back damaged"),
        ("say('5 0\\nabcde')\nwhile True: say('0' * 65536)", "came back damaged"),
        ("say('5 0\\nabc'); sys.stderr.write('worn out'); sys.exit(5)", r"could not give a file \(worn out"),
    ],
)
def test_no_answer_to_a_fetch_but_its_own_is_one(
    pod_server: PodServer, tmp_path: Path, program: str, words: str
) -> None:
    """Gain: our time, memory or disk, or a file that counts as verified without being it."""
    target = tmp_path / "target"
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(RemoteError, match=words) as raised:
        fetch(pod, target)
    assert not isinstance(raised.value, OutcomeUnknown)
    assert (raised.value.code == Code.FILE_DAMAGED) == ("shorter" in words or "damaged" in words)
    assert not target.exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "program",
    [
        "time.sleep(60)",
        "while True: say('0'); time.sleep(.2)",
        "say('5 0\\n'); time.sleep(60)",
        "say('1000000 0\\n')\nwhile True: say('0'); time.sleep(.01)",
        "say('5 0\\nabcde'); time.sleep(60)",
        "say('5 0\\n')\nwhile True: os.write(2, bytes(65536))",  # stderr, which nobody reads here
    ],
)
def test_one_that_gives_next_to_nothing_is_not_waited_for(
    pod_server: PodServer, tmp_path: Path, program: str
) -> None:
    """Gain: rented minutes; or memory, where what nobody reads is kept."""
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(OutcomeUnknown):
        fetch(pod, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("signed", [True, False])
def test_a_file_that_shrinks_while_it_is_fetched_makes_none(
    pod_server: PodServer, tmp_path: Path, signed: bool
) -> None:
    """Gain: outputs cut off, whose end is a digest in place of data."""
    source, target, told = tmp_path / "source", tmp_path / "target", hashlib.sha256(DATA).hexdigest()
    source.write_bytes(DATA)

    def shrink(_done: int, _total: int) -> None:
        os.truncate(source, len(DATA) - 1)

    with Pod(embedded_endpoint(pod_server)) as pod:
        with pytest.raises(RemoteError, match="became shorter") as raised:
            pod.fetch_file(
                str(source), target, max_bytes=1 << 30, sha256=told if signed else None, progress=shrink
            )
        assert raised.value.code == Code.FILE_DAMAGED
        assert not target.exists()
        source.write_bytes(DATA)
        pod.fetch_file(str(source), target, max_bytes=1 << 30, sha256=told if signed else None)
    assert target.read_bytes() == DATA


def test_signed_outputs_that_change_while_they_are_fetched_make_none(
    pod_server: PodServer, tmp_path: Path
) -> None:
    """Gain: other outputs than the leg signed."""
    source, target, told = tmp_path / "source", tmp_path / "target", hashlib.sha256(DATA).hexdigest()
    source.write_bytes(DATA)

    def alter(_done: int, _total: int) -> None:
        with source.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([DATA[-1] ^ 1]))

    with Pod(embedded_endpoint(pod_server)) as pod, pytest.raises(RemoteError, match="damaged") as raised:
        pod.fetch_file(str(source), target, max_bytes=1 << 30, sha256=told, progress=alter)
    assert raised.value.code == Code.FILE_DAMAGED
    assert list(tmp_path.glob("target*")) == []


def test_one_that_never_gives_the_signed_bytes_is_asked_twice_at_most(
    pod_server: PodServer, tmp_path: Path
) -> None:
    """Gain: our line, for ever: a part that does not match is fetched again."""
    (tmp_path / "target.part").write_bytes(b"x" * 5)
    program = (
        f"open({str(tmp_path / 'asked')!r}, 'a').write(args[1] + ' ')\n"
        "say(f'10 {args[1]}\\n' + 'y' * (10 - int(args[1])))"
    )
    with lying(pod_server, tmp_path, program) as pod, pytest.raises(RemoteError, match="damaged"):
        fetch(pod, tmp_path / "target", sha256="0" * 64)
    assert (tmp_path / "asked").read_text() == "5 0 "
    assert list(tmp_path.glob("target*")) == []


def test_what_the_leg_signed_bounds_what_is_fetched(tmp_path: Path) -> None:
    """Gain: the controller's disk. The pod may offer any size for outputs whose size a leg has signed."""
    events = tmp_path / "events.jsonl"
    for body, expected in (
        ({"ciphertextSha256": "0" * 64, "bytes": 5}, ("0" * 64, 5)),
        ({"ciphertextSha256": "0", "bytes": -5}, (None, MAX_OUTPUT_BYTES)),
        ({"bytes": True}, (None, MAX_OUTPUT_BYTES)),
        ({"bytes": 1 << 50}, (None, MAX_OUTPUT_BYTES)),
    ):
        events.write_text(json.dumps({"type": "sealed-outputs", "body": body}) + "\n")
        assert sealed_outputs(events) == expected


class _Flooding(paramiko.ServerInterface):
    """Lets anyone in and, asked for a command, sends past the window that it was given."""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def flood() -> None:
            channel.out_window_size = 1 << 40
            send = channel.sendall_stderr if b"stderr" in command else channel.sendall
            with suppress(OSError, EOFError, paramiko.SSHException):
                send(b"1000000000 0\n")
                for _ in range(1000):
                    send(bytes(1 << 16))

        threading.Thread(target=flood, daemon=True).start()
        return True


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Endpoint]:
    """A server that pays no heed to windows."""
    host = paramiko.ECDSAKey.generate()
    key = tmp_path / "key"
    paramiko.RSAKey.generate(2048).write_private_key_file(str(key))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        sock, _ = listener.accept()
        transports.append(paramiko.Transport(sock))
        transports[0].add_server_key(host)
        transports[0].start_server(server=_Flooding())

    threading.Thread(target=serve, daemon=True).start()
    line = f"[127.0.0.1]:{port} {host.get_name()} {host.get_base64()}"
    yield Endpoint("127.0.0.1", port, "anyone", key, HostKey("pinned", (line,)), sys.executable, ".")
    for transport in transports:
        transport.close()
    listener.close()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_server_that_sends_past_its_window_is_cut_off(
    flooded: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """Gain: our memory. The window says how much may lie here unread, and only the server heeds it."""
    monkeypatch.setattr(transfer, "STALL_SECONDS", 20.0)
    with Pod(flooded) as pod:

        def slow(_done: int, _total: int) -> None:
            link = pod._link
            if link is not None:
                link.transport.join(5.0)  # as a slow disk would: nothing is read meanwhile

        with pytest.raises(OutcomeUnknown):
            pod.fetch_file(stream, tmp_path / "target", max_bytes=1 << 40, progress=slow)
        assert not pod.connected
    assert connection.RECEIVE_WINDOW < 32 << 20  # else the flood of this test is none
