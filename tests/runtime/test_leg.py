"""Whole protected legs, as programs: what is left, where keys are while they run, what the record says."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from glasshouse.attestation.evidence import parse_evidence
from glasshouse.canonical import b64u
from glasshouse.runtime.events import check_line, event_hash, first_link
from glasshouse.runtime.residue import Needle, ScannedProcess
from tests.runtime.rig import Launched, Rig, forms, processes_of, rig

MARK = b"a row of the owner's data, 4c1e7b"


@pytest.fixture(scope="module")
def ended() -> Iterator[tuple[Rig, Launched]]:
    with rig(data={"rows": MARK * 3}) as made:
        leg = made.launch()
        result = leg.wait()
        assert result["status"] == "complete", (result, leg.log)
        yield made, leg


def test_the_order_of_events_and_the_chain(ended: tuple[Rig, Launched]) -> None:
    made, leg = ended
    exchange = made.broker.exchange(made.run, "s000", 1)
    key = Ed25519PublicKey.from_public_bytes(parse_evidence(exchange.evidence).event_key)
    link, kinds = first_link(exchange.grant), []
    for number, line in enumerate((leg.folder / "events.jsonl").read_bytes().splitlines()):
        event = check_line(line, key)
        assert (event["seq"], event["prev"]) == (number, link)
        link = event_hash(line)
        kinds.append(event["type"])
    assert kinds[:3] == ["released", "unsealed", "trainer-hardened"]
    assert kinds[-3:] == ["trained", "sealed-outputs", "zeroized"]
    result = leg.wait()
    assert (result["eventsHead"], result["eventCount"]) == (link, len(kinds))


def test_zeroized_says_what_was_done(ended: tuple[Rig, Launched]) -> None:
    body = ended[1].event("zeroized")
    assert body["residue"] == "scanned"
    assert (body["custodianExit"], body["trainerExit"], body["straysKilled"]) == (0, 0, 0)
    assert body["tmpfsRemoved"]
    assert body["buffers"]["host"] == {"count": 2, "bytes": 8192, "readBackZero": True}
    assert body["buffers"]["package"]["readBackZero"]
    found = {(needle["class"], needle["where"]): needle for needle in body["needles"]}
    live = {
        ("payload-key-prefix", "custodian"), ("kem-seed-prefix", "custodian"), ("package-marker", "trainer"),
        ("trained-parameter", "trainer/cpu"), ("optimizer-or-data", "trainer/cpu"),
        ("freed-memory", "trainer/heap"),
    }  # fmt: skip
    assert {key for key, needle in found.items() if needle["positiveControl"]} == live
    assert set(found) - live == {("payload-key-prefix", "trainer"), ("kem-seed-prefix", "trainer")}
    assert [needle for needle in found.values() if needle["after"]] == []


def test_the_trainer_was_hardened_and_confined(ended: tuple[Rig, Launched]) -> None:
    body = ended[1].event("trainer-hardened")
    assert (body["dumpable"], body["core_limit"], body["no_new_privs"]) == (0, 0, True)
    assert body["fs"] == "landlock"
    assert body["scratchTmpfs"]


def test_the_custodian_held_little_beside_the_package(ended: tuple[Rig, Launched]) -> None:
    body = ended[1].event("unsealed")
    assert body["bytes"] / 1024 <= body["heldKib"] <= body["bytes"] / 1024 + 64 * 1024


def test_outputs_are_what_the_events_name(ended: tuple[Rig, Launched]) -> None:
    made, leg = ended
    data = (leg.folder / "outputs.sealed").read_bytes()
    said = leg.event("zeroized")["outputs"]
    assert said["ciphertextSha256"] == hashlib.sha256(data).hexdigest()
    assert said["bytes"] == len(data)
    with made.open(leg, "outputs.sealed") as opened:
        assert set(opened.tensors) == {"weights"}


def test_nothing_is_left(ended: tuple[Rig, Launched]) -> None:
    made, leg = ended
    assert leg.processes() == []
    assert made.scratch() == []
    assert leg.log == ""
    assert sorted(path.name for path in leg.folder.iterdir()) == [
        "events.jsonl", "outputs.sealed", "result.json", "runtime.log",
    ]  # fmt: skip


def test_keys_and_ticket_are_in_no_argument_environment_file_or_trainer() -> None:
    with rig(data={"rows": MARK * 3}) as made:
        ticket = made.ticket()
        secrets_ = [*forms(ticket), *forms(made.payload_key)]
        leg = made.launch(ticket=ticket, seconds=2.5)
        seen = 0
        while not (leg.folder / "result.json").exists():
            for pid in processes_of(str(leg.folder)):
                for name in ("cmdline", "environ"):
                    try:
                        text = Path(f"/proc/{pid}/{name}").read_bytes()
                    except OSError:
                        continue  # hardened, or gone
                    seen += 1
                    assert not any(secret in text for secret in secrets_)
            time.sleep(0.05)
        assert leg.wait()["status"] == "complete"
        assert seen > 10
        for path in (*made.base.rglob("*"), *Path("/dev/shm").rglob("*")):
            if path.is_file() and path.name != "package.sealed":
                text = path.read_bytes()
                assert not any(secret in text for secret in secrets_), path


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory past DUMPABLE takes root")
def test_root_finds_the_data_in_the_trainer_but_no_key_anywhere() -> None:
    with rig(data={"rows": MARK * 3}) as made:
        ticket = made.ticket()
        leg = made.launch(ticket=ticket, seconds=4)
        leg.until("trainer-hardened")
        time.sleep(0.5)
        # Hardening is no obstacle to root with all capabilities: the threat model says so, and here it is.
        counts = {}
        for pid in leg.processes():
            try:
                opened = [os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in ("mem", "maps")]
            except OSError:
                pytest.skip("root may not read other processes here")
            process = ScannedProcess(*opened)
            needles = [
                Needle("x", bytearray(text))
                for text in (MARK, made.payload_key, made.payload_key[8:], ticket, b64u(ticket).encode())
            ]
            counts[pid] = process.scan(needles).counts
            process.close()
        assert leg.wait()["status"] == "complete"
        (trainer,) = [pid for pid in counts if pid not in (leg.pid, leg.guard)]
        assert counts[trainer][0] >= 3
        assert counts[leg.pid][0] == counts[leg.guard][0] == 0
        # Not the first eight bytes, which the supervisor keeps to search for, and not the rest.
        # Of the ticket, which the supervisor read from a pipe and signed with, nothing at all.
        assert all(found[1:] == [0, 0, 0, 0] for found in counts.values())


COPIES = """
import threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        for _ in range(8):  # with the runtime's own, as many as settle how many arenas there may be
            done = threading.Event()
            threading.Thread(target=self.copy, args=(done,), daemon=True).start()
            done.wait()

    def copy(self, done):
        first, last = libc.malloc(6000), libc.malloc(6000)
        ctypes.memmove(first + 1000, self.state.data_ptr(), 4096)
        libc.free(first)
        done.set()
        threading.Event().wait()
"""


def test_what_threads_of_the_workload_freed_is_found_before_the_wipe_and_not_after() -> None:
    with rig(COPIES) as made:
        leg = made.launch()
        assert leg.wait()["status"] == "complete"
        found = {needle["class"]: needle for needle in leg.event("zeroized")["needles"]}
        assert found["optimizer-or-data"]["positiveControl"] == 9
        assert [needle for needle in found.values() if needle["after"]] == []


WORKERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        rows = TensorDataset(torch.arange(64.0).reshape(16, 4))
        self.loader = DataLoader(rows, batch_size=4, num_workers=2, persistent_workers=True)

    def run_unit(self):
        assert sum(float(batch.sum()) for (batch,) in self.loader) == 2016.0
        super().run_unit()
"""


@pytest.mark.train
def test_a_data_loader_runs_its_workers() -> None:
    pytest.importorskip("torch")
    with rig(WORKERS) as made:
        leg = made.launch(deadline_sec=90)
        result = leg.wait(90)
        if leg.event("trainer-hardened")["shm"] == "none":
            pytest.skip("no mount namespace here: workers cannot start, as linux.private_shm says")
        assert result["status"] == "complete", made.open(leg, "log.sealed").files["trainer.log"].tobytes()
        assert leg.event("zeroized")["tmpfsRemoved"]
        assert leg.processes() == []
        assert made.scratch() == []
