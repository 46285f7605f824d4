"""Outputs that a dead controller left sealed on a machine: fetched first, within bounds, whatever it does."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import spec as specs
from glasshouse.attestation.claims import Reference
from glasshouse.attestation.evidence import make_evidence
from glasshouse.canonical import parse_json, sha256_hex
from glasshouse.lifecycle import rescue
from glasshouse.lifecycle.leg import Leg
from glasshouse.lifecycle.live_run import LiveRun, reopen
from glasshouse.lifecycle.reap import Wishes, reap_all
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.money import rental_deadline_sec
from glasshouse.providers.ssh import SshProvider
from glasshouse.records import keys
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.sealing.grant import kem_public_bytes
from glasshouse.sealing.outputs import open_outputs, seal_outputs
from tests.e2e.conftest import processes_of, wait_until
from tests.lifecycle.test_reap import QUIET, intended, planned
from tests.records.factory import write_events
from tests.remote.conftest import embedded_endpoint, serving
from tests.specs import make_spec

FILE = os.urandom(3 << 20)
GRANT = "a-grant-of-the-broker"
SAID = "import os, sys, time\nargs = sys.argv[1:]\ndef say(text): os.write(1, text.encode())\n"


@dataclass
class Orphan:
    """A run whose controller died while its leg's outputs lay sealed on a machine behind SSH."""

    live: LiveRun
    leg: Leg
    pod: Path  # the leg's folder there
    digest: str

    @property
    def provider(self) -> SshProvider:
        assert isinstance(self.live.run.spec.provider, specs.SshProvider)
        return SshProvider(self.live.run.spec.provider)

    @property
    def outputs(self) -> Path:
        return self.live.folder.sealed("s000", 1, "outputs.sealed")

    def home(self, name: str) -> list[bytes]:
        return (self.live.folder.parts / self.leg.file(name)).read_bytes().splitlines(keepends=True)

    def rescued(self) -> bool:
        """As another process does it."""
        live = reopen(self.live.folder.path, self.live.screen)
        return rescue.bring_home(live, self.provider)

    def lies(self, program: str) -> None:
        """Another program answers where our sender should."""
        place = self.pod.parent
        (place / "liar.py").write_text(SAID + program)
        python = place / "python"
        python.write_text(f'#!/bin/sh\nshift 4\nexec {sys.executable} -I {place / "liar.py"} "$@"\n')
        python.chmod(0o755)
        self.recorded(python=str(python))

    def recorded(self, **changes: Any) -> None:
        endpoint = self.live.rental.endpoint
        assert endpoint is not None
        self.live.rental.endpoint = replace(endpoint, **changes)
        self.live.save()


def orphan(endpoint: Endpoint, out: Path, screen: Screen = QUIET) -> Orphan:
    provider = {
        "kind": "ssh", "host": endpoint.host, "port": endpoint.port, "user": endpoint.user,
        "key": str(endpoint.key_path), "python": endpoint.python, "workdir": endpoint.workdir,
        "known_hosts": str(endpoint.key_path.with_name("known_hosts")),
    }  # fmt: skip
    Path(provider["known_hosts"]).write_text("".join(f"{line}\n" for line in endpoint.host_key.lines or ()))
    live = replace(planned(make_spec(provider=provider, order="protected-only"), out), screen=screen)
    leg = Leg(live.run.schedule[0], 1, f"{endpoint.workdir}/{live.run.allocation}", "")
    reference = Reference(
        run=live.run.id, leg="s000", launch=1, allocation_id="pod-1", container_id=sha256_hex(b"c"),
        manifest_hash=sha256_hex(b"m"), runtime_sha256=sha256_hex(b"r"),
        interpreter_sha256=sha256_hex(b"i"), boot_id="9c1f0a52-5f2e-4a0e-9a53-5e8a7f8d2c11",
        pid_namespace="4026531836", image_digest="", host_key="pinned",
    )  # fmt: skip
    context = {"run": live.run.id, "leg": "s000", "launch": "1", "manifestHash": reference.manifest_hash}
    pod = Path(leg.pod_folder)
    pod.mkdir(parents=True)
    sealed = {}
    for name, files in (("outputs.sealed", {"file": FILE}), ("log.sealed", {"trainer.log": b"said\n"})):
        made = io.BytesIO()
        owner = kem_public_bytes(keys.owner_key())
        sealed[name] = seal_outputs(made, owner_public=owner, context=context, files=files, tensors=())
        (pod / name).write_bytes(made.getvalue())
    key = Ed25519PrivateKey.generate()
    digests = {
        "plaintextSha256": sealed["outputs.sealed"].plaintext_sha256,
        "ciphertextSha256": sealed["outputs.sealed"].ciphertext_sha256,
    }
    events = write_events(
        key, GRANT,
        [("released", {}), ("unsealed", {}), ("trainer-hardened", {}), ("progress", {"phase": "job"}),
         ("trained", {}), ("sealed-outputs", digests), ("failed", {"code": "process-died"})],
    )  # fmt: skip
    (pod / "events.jsonl").write_bytes(events)
    (pod / "result.json").write_text("{}")
    live.folder.write_json(leg.file("reference.json"), reference.to_dict())
    live.folder.write_json(
        leg.file("exchange.json"),
        {"ticketSha256": "0" * 64, "challenge": "c", "launchToken": "l", "ear": "e", "grant": GRANT,
         "evidence": make_evidence({}, key), "reasonCodes": []},
    )  # fmt: skip
    # Killed while it wrote the fourth event down.
    home = events[: len(b"".join(events.splitlines(keepends=True)[:3])) + 40]
    live.folder.write_bytes(leg.file("events.jsonl"), home)
    live.rental.endpoint = endpoint
    live.save()
    return Orphan(live, leg, pod, digests["ciphertextSha256"])


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path: Path) -> Iterator[None]:
    """What a machine does without end outlives its connection, as it does there."""
    yield
    for pid in processes_of(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def left(endpoint: Endpoint, tmp_path: Path) -> Orphan:
    return orphan(endpoint, tmp_path / "runs", Screen())


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "RESCUE_SEC", 5.0)
    monkeypatch.setattr(rescue, "ANSWER_SEC", 3.0)
    monkeypatch.setattr(rescue, "_CLOSE_SEC", 1.0)


def test_they_come_home_with_the_rest_of_the_events_countersigned(left: Orphan) -> None:
    assert left.rescued()
    assert hashlib.sha256(left.outputs.read_bytes()).hexdigest() == left.digest
    context = {
        "run": left.live.run.id, "leg": "s000", "launch": "1", "manifestHash": sha256_hex(b"m"),
    }  # fmt: skip
    with open_outputs(left.outputs, keys.owner_key(), context=context) as opened:
        assert bytes(opened.files["file"]) == FILE
    assert left.live.folder.sealed("s000", 1, "log.sealed").exists()
    assert b"".join(left.home("events.jsonl")) == (left.pod / "events.jsonl").read_bytes()
    (head,) = map(parse_json, left.home("heads.jsonl"))  # as the chain stood when this side saw it
    assert (head["seq"], head["head"]) == (6, sha256_hex(left.home("events.jsonl")[6][:-1]))
    assert not rescue.left_behind(left.live)  # nobody fetches them twice


def test_a_leg_that_goes_on_has_nothing_to_fetch(left: Orphan, capsys: pytest.CaptureFixture[str]) -> None:
    events = (left.pod / "events.jsonl").read_bytes().splitlines(keepends=True)
    (left.pod / "events.jsonl").write_bytes(b"".join(events[:5]))
    assert not left.rescued()
    assert "no outputs were sealed on its machine yet" in capsys.readouterr().err
    assert not left.live.folder.outputs.exists()
    assert left.home("events.jsonl") == events[:5]


def _tampered(left: Orphan) -> None:
    path = left.pod / "outputs.sealed"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _forged(left: Orphan) -> None:
    body = {"ciphertextSha256": hashlib.sha256(b"theirs").hexdigest()}
    (left.pod / "outputs.sealed").write_bytes(b"theirs")
    forged = write_events(Ed25519PrivateKey.generate(), GRANT, [("sealed-outputs", body)] * 7)
    events = (left.pod / "events.jsonl").read_bytes().splitlines(keepends=True)
    (left.pod / "events.jsonl").write_bytes(b"".join(events[:5]) + forged.splitlines(keepends=True)[5])


def _other_host_key(left: Orphan) -> None:
    endpoint = left.live.rental.endpoint
    assert endpoint is not None
    public = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()
    line = f"{endpoint.known_hosts_name} {public[0]} {public[1]}"
    left.recorded(host_key=HostKey("created", (line,)))


def _gone(left: Orphan) -> None:
    (left.pod / "outputs.sealed").unlink()


def _endless_events(left: Orphan) -> None:
    (left.pod / "events.jsonl").unlink()
    (left.pod / "events.jsonl").symlink_to("/dev/zero")


def _no_events(left: Orphan) -> None:
    (left.pod / "events.jsonl").unlink()
    os.mkfifo(left.pod / "events.jsonl")  # whoever reads waits for ever


def _says(program: str) -> Callable[[Orphan], None]:
    return lambda left: left.lies(program)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("does", "words"),
    [
        (_tampered, "a file came back damaged"),
        (_forged, "event signature does not verify"),
        (_other_host_key, "a stranger answers in its machine's place, nothing is fetched: wrong host key"),
        (_gone, "has no outputs where its leg said that it left them"),
        (_endless_events, "too large|did not give what it sealed in time"),
        (_no_events, "did not give what it sealed in time"),
        (_says("time.sleep(600)"), "did not give what it sealed in time"),
        (_says("say('3000000 0\\n')\nwhile True: say('x'); time.sleep(.05)"), "did not give what it sealed"),
        (_says("say('3000000 0\\n')\nwhile True: say('x' * 65536)"), "came back damaged"),
        (_says("say(f'{1 << 50} 0\\n')\nwhile True: say('x' * 65536)"), "is larger than allowed"),
        (_says("say(f'{60 << 30} 0\\n')\nwhile True: say('x' * 65536)"), "did not give|larger than allowed"),
        (_says("say('7 0\\nfurther')"), "came back damaged"),
    ],
)
def test_a_machine_that_does_otherwise_keeps_nobody_and_nothing_of_it_is_kept(
    left: Orphan, does: Callable[[Orphan], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    does(left)
    began = time.monotonic()
    assert not left.rescued()
    assert time.monotonic() - began < 60  # of what would never end
    told = " ".join(capsys.readouterr().err.split())
    assert any(word in told for word in words.split("|")), told
    assert not list(left.live.folder.outputs.glob("*outputs*"))  # nor a part, which fills the disk
    if does is _forged:
        assert not (left.live.folder.parts / left.leg.file("heads.jsonl")).exists()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("drip", [b"", b"S", b"SSH-2.0-x\r\n"])
def test_one_that_takes_connections_and_never_gets_on_is_given_up(
    left: Orphan, drip: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(near: socket.socket) -> None:
        near.settimeout(0.1)
        with near, contextlib.suppress(ConnectionError):
            gone = False
            while not gone:
                near.sendall(drip)
                with contextlib.suppress(TimeoutError):
                    gone = not near.recv(4096)

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        left.recorded(port=listening.getsockname()[1])
        began = time.monotonic()
        assert not left.rescued()
        assert time.monotonic() - began < 60
        listening.shutdown(socket.SHUT_RDWR)
    joined()
    told = capsys.readouterr().err
    assert "given up" in told or "could not be fetched" in told


def joined() -> None:
    """Wait for what nobody waited for."""
    for thread in threading.enumerate():
        if thread.name.startswith("rescue-"):
            thread.join()


@pytest.mark.usefixtures("hurried")
def test_what_hangs_on_this_side_keeps_no_machine_either(
    left: Orphan, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()

    class Hangs(SshProvider):
        def reopen(self, name: str, endpoint: Endpoint) -> Endpoint:
            over.wait(600)
            return super().reopen(name, endpoint)

    assert isinstance(left.live.run.spec.provider, specs.SshProvider)
    assert not rescue.bring_home(left.live, Hangs(left.live.run.spec.provider))
    over.set()
    joined()
    assert "is given up after 5 s" in capsys.readouterr().err


def test_past_the_budgeted_rental_nothing_is_asked(left: Orphan, capsys: pytest.CaptureFixture[str]) -> None:
    left.live.rental.rented_at = time.time() - rental_deadline_sec(left.live.run.spec) + 5
    left.live.save()
    assert not left.rescued()
    assert "the time that was budgeted for its rental is over" in capsys.readouterr().err
    left.live.rental.rented_at = time.time() - rental_deadline_sec(left.live.run.spec) + 60
    assert 0 < rescue.seconds_left(left.live) <= 60


def test_a_fault_in_it_ends_nothing_else(left: Orphan, capsys: pytest.CaptureFixture[str]) -> None:
    (left.live.folder.path / "outputs").write_text("a file where a folder should be")
    assert not left.rescued()
    assert "could not be fetched: unexpected" in capsys.readouterr().err


@contextlib.contextmanager
def reaping() -> Iterator[list[Any]]:
    """`reap` in another thread; what it found stands in the list afterwards."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(reap_all(QUIET)))
    thread.start()
    yield found
    thread.join()


def test_others_are_destroyed_meanwhile_and_nobody_else_fetches_or_destroys_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        it = orphan(embedded_endpoint(server), tmp_path / "runs")
        intended(it.live)
        other = planned(make_spec(), tmp_path / "runs")
        intended(other)
        events = (it.pod / "events.jsonl").read_bytes()
        _no_events(it)  # its events do not come before the test lets them
        with reaping() as found:
            wait_until((other.folder.bundle / "record.json").exists, 60, "the other one's end")
            wait_until(lambda: not other.folder.parts.exists(), 60, "the other one's end")
            (beside,) = reap_all(QUIET)
            assert (beside.name, beside.state) == (it.live.run.allocation, "live")
            assert beside.detail == "another process is finishing it"
            assert it.pod.exists()
            assert not it.live.folder.bundle.exists()
            (it.pod / "events.jsonl").rename(it.pod / "fifo")
            (it.pod / "events.jsonl").write_bytes(events)
            offset = len(b"".join(events.splitlines(keepends=True)[:3]))
            (it.pod / "fifo").write_bytes(b"x" * offset + events[offset:])
        states = {reaped.name: (reaped.state, reaped.proof) for reaped in found}
        assert states == dict.fromkeys(states, ("reaped", "zero"))
        assert len(states) == 2
        assert hashlib.sha256(it.outputs.read_bytes()).hexdigest() == it.digest
        assert not it.pod.exists()
        record = parse_json((it.live.folder.bundle / "record.json").read_bytes())
        assert {"controller-killed", "outputs-fetched-late"} <= set(record["exclusion"]["codes"])


@pytest.mark.parametrize("wishes", [Wishes(now=True), Wishes(dry_run=True)])
def test_it_is_not_asked_where_nobody_wants_that(wishes: Wishes, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        it = orphan(embedded_endpoint(server), tmp_path / "runs")
        intended(it.live)
        (found,) = reap_all(QUIET, wishes)
        assert not it.live.folder.outputs.exists()
        assert it.pod.exists() == wishes.dry_run
        said = "its controller is gone; sealed outputs would be looked for first"
        assert (found.detail == said) == wishes.dry_run


def test_a_machine_that_could_not_be_ended_then_is_asked_for_them_once_more(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        it = orphan(embedded_endpoint(server), tmp_path / "runs")
        intended(it.live)
        server_key = it.live.rental.endpoint
        assert server_key is not None
        server_key.key_path.rename(tmp_path / "away")  # nobody can be asked anything
        (found,) = reap_all(QUIET)
        assert found.proof == "unknown"
        assert it.live.folder.bundle.exists()
        (tmp_path / "away").rename(server_key.key_path)
        (found,) = reap_all(QUIET)
        assert found.proof == "zero"
        assert hashlib.sha256(it.outputs.read_bytes()).hexdigest() == it.digest


def test_ctrl_c_does_not_cut_a_fetch_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as server:
        it = orphan(embedded_endpoint(server), tmp_path / "runs")
        intended(it.live)
        events = (it.pod / "events.jsonl").read_bytes()
        _no_events(it)

        def interrupt() -> None:
            fifo = it.pod / "events.jsonl"
            with fifo.open("wb") as out:  # opens once somebody reads there
                while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    time.sleep(0.01)  # until reap waits for it
                os.kill(os.getpid(), signal.SIGINT)
                fifo.rename(it.pod / "fifo")
                (it.pod / "events.jsonl").write_bytes(events)
                offset = len(b"".join(events.splitlines(keepends=True)[:3]))
                out.write(b"x" * offset + events[offset:])

        sender = threading.Thread(target=interrupt)
        sender.start()
        (found,) = reap_all(Screen())
        sender.join()
        assert (found.state, found.proof) == ("reaped", "zero")
        assert hashlib.sha256(it.outputs.read_bytes()).hexdigest() == it.digest
        said = " ".join(capsys.readouterr().err.split())
        assert f"run {it.live.run.id}: its sealed outputs are fetched first, 5 min at most" in said
