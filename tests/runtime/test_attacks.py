"""Attacks on a leg from outside it: through the forwarded port, on the package, on its processes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.evidence import make_evidence
from glasshouse.attestation.server import serve
from glasshouse.attestation.stage import honest_claims
from glasshouse.attestation.ticket import sign_request
from glasshouse.attestation.tokens import verify_challenge
from glasshouse.canonical import b64u_decode
from glasshouse.errors import AttestationError
from glasshouse.remote.sweep_script import sweep
from glasshouse.sealing.container import fresh_payload_key, seal_package
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from tests.runtime.rig import POLICY, Launched, Rig, alive, forms, processes_of, rig, wait_until

# --- through the port -----------------------------------------------------------------------


@contextmanager
def hijacked(answer: Callable[[str, bytes], bytes]) -> Iterator[int]:
    """The forwarded port in someone else's hands: answer(path, body) -> body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's signature)
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _relay(port: int, path: str, body: bytes) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
        return connection.getresponse().read()
    finally:
        connection.close()


def _refused(made: Rig, leg: Launched) -> list[str]:
    result = leg.wait()
    assert (result["status"], result["code"]) == ("failed", "attestation-refused")
    assert leg.events() == []
    assert leg.log == ""
    assert leg.processes() == []
    assert made.scratch() == []
    assert not (leg.folder / "outputs.sealed").exists() or not (leg.folder / "outputs.sealed").stat().st_size
    return list(result["reasonCodes"])


def test_an_unsigned_answer_is_refused() -> None:
    with rig() as made, hijacked(lambda *_: b'{"challenge":"e30.e30.AAAA"}') as port:
        assert _refused(made, made.launch(broker_port=port))
        assert made.broker.store.unwrap_calls == 0


def test_a_broker_with_another_key_is_refused() -> None:
    with rig() as made, serve(Broker(made.broker.store, Ed25519PrivateKey.generate())) as other:
        assert _refused(made, made.launch(broker_port=other.port))
        assert made.broker.store.unwrap_calls == 0


def test_a_stolen_ticket_ends_the_launch_and_a_new_one_works() -> None:
    with rig() as made:
        ticket = made.ticket()
        where = (made.run, "s000", 1)
        own = bytes(32)  # the thief's event key
        made.broker.challenge(sign_request(bytearray(ticket), where, broker_id=made.broker.id, event_key=own))
        assert _refused(made, made.launch(ticket=ticket)) == ["ticket-used"]
        assert made.broker.store.unwrap_calls == 0
        assert made.launch(2).wait()["status"] == "complete"


def test_a_thief_on_the_port_gets_a_request_and_no_key() -> None:
    """He keeps the request, passes it on when he reaches the broker, and answers with keys of his own."""
    taken: list[str] = []

    def answer(_path: str, body: bytes) -> bytes:
        taken.append(json.loads(body)["request"])
        return b"{}"

    with rig() as made:
        ticket = made.ticket()
        with hijacked(answer) as port:
            assert _refused(made, made.launch(ticket=ticket, broker_port=port)) == ["malformed-answer"]
        (sent,) = taken
        inner = b"".join(b64u_decode(part) for part in sent.split("."))
        assert not any(secret in inner + sent.encode() for secret in forms(ticket))
        said = json.loads(_relay(made.port, "/v1/challenge", json.dumps({"request": sent}).encode()))
        challenge = verify_challenge(said["challenge"], made.broker.public_bytes)
        claims = honest_claims(
            made.reference(),
            POLICY,
            nonce=challenge.binding.nonce,
            iat=challenge.token.times.iat,
            kem_key=kem_public_bytes(generate_kem_key()),
        ).to_json()
        evidence = make_evidence(claims, Ed25519PrivateKey.generate())
        with pytest.raises(AttestationError) as caught:
            made.broker.attest(evidence, challenge.launch_token.token.jws)
        assert caught.value.codes == ("event-key-mismatch",)
        assert made.broker.store.unwrap_calls == 0
        assert made.launch(2).wait()["status"] == "complete"


def test_a_replayed_grant_is_refused() -> None:
    with rig() as made:
        assert made.launch(1).wait()["status"] == "complete"
        old = made.broker.exchange(made.run, "s000", 1)

        def answer(path: str, body: bytes) -> bytes:
            if path == "/v1/challenge":
                return _relay(made.port, path, body)
            return json.dumps({"ear": old.ear, "grant": old.grant}).encode()

        with hijacked(answer) as port:
            assert _refused(made, made.launch(2, broker_port=port))


def test_an_interpreter_with_other_packages_than_the_controller_listed_is_refused() -> None:
    with rig() as made:
        reference = made.reference(distributions_sha256="0" * 64)
        leg = made.launch(ticket=made.broker.issue_ticket(reference, POLICY))
        assert _refused(made, leg) == ["distributions-mismatch"]
        assert made.broker.store.unwrap_calls == 0


# --- the package ----------------------------------------------------------------------------


def _another(path: Path) -> None:
    with path.open("wb") as out:
        seal_package(
            out, payload_key=fresh_payload_key(), files={"workload.py": b"evil()"}, tensors=(), extra={}
        )


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("swap", "code"),
    [
        (_another, "manifest-hash-mismatch"),
        (_flip, "chunk-authentication-failed"),
        (_cut, "container-truncated"),
        (_fifo, "container-unreadable"),
    ],
)
def test_a_swapped_package_is_refused_by_name(swap: Callable[[Path], None], code: str) -> None:
    with rig() as made:
        swap(made.package)
        leg = made.launch()
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", code)
        assert [event["type"] for event in leg.events()] == ["released", "failed"]
        assert leg.processes() == []
        assert made.scratch() == []
        assert leg.log == ""


# --- its processes --------------------------------------------------------------------------

DAEMON = """
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)  # holds every descriptor and all memory that the trainer had
            os._exit(0)
        os.wait()
"""
STUCK_AT_THE_END = """
class Workload(Tiny):
    def buffers(self):
        time.sleep(600)
"""


def _no_answer() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


# Far beyond what any test waits: whoever notices a death only when the leg's time is over fails.
LONG = 600


def _launched(made: Rig, stage: str, deaf: socket.socket) -> Launched:
    """Launch a leg and wait until it is in `stage`."""
    if stage == "attesting":
        leg = made.launch(broker_port=deaf.getsockname()[1], deadline_sec=LONG)
        wait_until(lambda: len(leg.children()) == 1, 10, "the custodian")
    else:
        leg = made.launch(seconds=0.1 if stage == "zeroizing" else LONG, deadline_sec=LONG)
        leg.until("sealed-outputs" if stage == "zeroizing" else "progress")
    assert leg.children()
    assert leg.guard
    return leg


# Its plaintext lies deeper than Python's own removal goes.
DEEP = """
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        home = os.getcwd()
        os.chdir(os.environ["TMPDIR"])
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        with open("leaf", "w") as file:
            file.write("plaintext")
        os.chdir(home)
"""
STAGES = ["attesting", "training", "zeroizing", "daemon", "deep"]
SOURCES = {"zeroizing": STUCK_AT_THE_END, "daemon": DAEMON, "deep": DEEP}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_supervisor_leaves_no_process_and_no_scratch_folder(stage: str) -> None:
    with rig(SOURCES.get(stage, "")) as made, _no_answer() as deaf:
        leg = _launched(made, stage, deaf)
        os.kill(leg.pid, signal.SIGKILL)
        wait_until(lambda: leg.processes() == [], 20, "the end of all processes")
        assert made.scratch() == []
        assert not (leg.folder / "result.json").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_guard_ends_the_leg_with_a_result(stage: str) -> None:
    with rig(SOURCES.get(stage, "")) as made, _no_answer() as deaf:
        leg = _launched(made, stage, deaf)
        os.kill(leg.guard, signal.SIGKILL)
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", "process-died")
        assert leg.processes() == []
        assert made.scratch() == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_left_where_guard_and_supervisor_are_killed_at_once_goes_with_the_sweep(stage: str) -> None:
    with rig(SOURCES.get(stage, "")) as made, _no_answer() as deaf:
        leg = _launched(made, stage, deaf)
        os.kill(leg.guard, signal.SIGSTOP)
        os.kill(leg.pid, signal.SIGKILL)
        os.kill(leg.guard, signal.SIGKILL)
        # A daemon has its own session, and init as its parent.
        wait_until(lambda: len(leg.processes()) == (stage == "daemon"), 20, "the trainer's end")
        assert made.scratch()  # nobody was left to remove it
        report = sweep(made.allocation, str(made.pod))
        assert report["folderRemoved"]
        assert report["processesLeft"] == 0
        assert leg.processes() == []
        assert made.scratch() == []


def test_a_leg_whose_scratch_folder_is_deep_comes_to_its_end_and_leaves_none_of_it() -> None:
    with rig(DEEP) as made:
        leg = made.launch()
        assert leg.wait()["status"] == "complete"
        assert leg.event("zeroized")["tmpfsRemoved"]
        assert made.scratch() == []


@pytest.mark.parametrize("stage", ["training", "zeroizing", "daemon", "deep"])
def test_a_killed_trainer_ends_the_leg_with_a_result(stage: str) -> None:
    """Also where a child of it lives on, and holds what it had open."""
    with rig(SOURCES.get(stage, "")) as made, _no_answer() as deaf:
        leg = _launched(made, stage, deaf)
        trainer = next(pid for pid in leg.children() if _parent(pid) == leg.pid)
        os.kill(trainer, signal.SIGKILL)
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", "process-died")
        assert leg.events()[-1]["type"] == "failed"
        assert leg.event("failed")["tmpfsRemoved"]
        assert leg.processes() == []
        assert made.scratch() == []


def test_a_killed_custodian_ends_the_leg_with_a_result() -> None:
    with rig() as made, _no_answer() as deaf:
        leg = _launched(made, "attesting", deaf)
        os.kill(leg.children()[0], signal.SIGKILL)
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", "process-died")
        assert leg.processes() == []
        assert made.scratch() == []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


# Each lives only until it has forked the next, in a session of its own.
CHAIN = """
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        ends = time.monotonic() + 60
        if os.fork() == 0:
            while not os.fork() and time.monotonic() < ends:
                os.setsid()
            os._exit(0)
"""
# Another program in another session, with another folder, no environment, and nothing open.
HIDDEN = """
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.chdir("/")
                os.closerange(0, 100)
                os.execve("/bin/sleep", ["sleep", params["sec"]], {})
            os._exit(0)
        os.wait()
"""


@pytest.mark.parametrize("killed", ["nobody", "supervisor", "guard", "trainer"])
def test_who_forks_on_and_on_does_not_outlive_its_leg(killed: str) -> None:
    with rig(CHAIN) as made:
        leg = made.launch(seconds=0.3 if killed == "nobody" else LONG, deadline_sec=LONG)
        if killed != "nobody":
            leg.until("progress")
            trainer = next(pid for pid in leg.children() if _parent(pid) == leg.pid)
            os.kill({"supervisor": leg.pid, "guard": leg.guard, "trainer": trainer}[killed], signal.SIGKILL)
        wait_until(lambda: not alive(leg.pid) and not alive(leg.guard), 40, "the end of the leg")
        for _ in range(20):  # one look can miss who is between two forks
            assert leg.processes() == []
        assert made.scratch() == []


@pytest.mark.parametrize("killed", ["supervisor", "both"])
def test_who_hides_does_not_outlive_its_leg(killed: str) -> None:
    seconds = f"600.{secrets.randbelow(10**9):09}"
    with rig(HIDDEN, params={"sec": seconds}) as made:
        leg = made.launch(seconds=LONG, deadline_sec=LONG)
        leg.until("progress")
        wait_until(lambda: bool(processes_of(seconds)), 20, "the program in hiding")
        (hidden,) = processes_of(seconds)
        if killed == "both":
            os.kill(leg.guard, signal.SIGSTOP)
        os.kill(leg.pid, signal.SIGKILL)
        if killed == "both":
            os.kill(leg.guard, signal.SIGKILL)
            wait_until(lambda: leg.processes() == [], 20, "the end of what is known")
            assert alive(hidden)
            report = sweep(made.allocation, str(made.pod))
            assert (report["processesLeft"], report["folderRemoved"]) == (0, True)
        wait_until(lambda: not alive(hidden), 20, "the end of what hides")


def test_a_child_that_outlives_the_workload_is_killed_before_zeroized_is_signed() -> None:
    with rig(DAEMON) as made:
        began = time.monotonic()
        leg = made.launch()
        result = leg.wait()
        assert result["status"] == "complete", result
        assert time.monotonic() - began < 25  # and nobody waited for the pipes it held open
        body = leg.event("zeroized")
        assert body["straysKilled"] == 1
        assert leg.processes() == []
        assert set(made.open(leg, "outputs.sealed").tensors) == {"weights"}


def test_a_terminated_leg_says_so() -> None:
    with rig() as made:
        leg = made.launch(seconds=20)
        leg.until("trainer-hardened")
        os.kill(leg.pid, signal.SIGTERM)
        assert leg.wait()["code"] == "terminated"
        assert leg.processes() == []
