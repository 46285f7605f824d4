"""A leg of an ordinary user without one capability, and what a process of the same user can do once it runs.

One that was there before it can do more: site/threat-model.md says so.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.attestation.evidence import parse_evidence
from glasshouse.remote import sweep_script
from tests.runtime.rig import NOBODY, Launched, Rig, alive, processes_of, rig, wait_until
from tests.runtime.test_attacks import HIDDEN, LONG

# Tries, as the same user, everything that would show or change another process's memory.
ATTACK = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
found = []
READ, BOTH = os.O_RDONLY, os.O_RDWR
for pid in map(int, sys.argv[1:]):
    for name, flags in (("mem", READ), ("mem", BOTH), ("environ", READ), ("maps", READ)):
        try:
            descriptor = os.open(f"/proc/{pid}/{name}", flags)
        except OSError:
            continue
        found.append([pid, name, os.read(descriptor, 8).hex() if name != "mem" else "opened"])
    for name in ("fd", "map_files", "cwd"):
        try:
            found.append([pid, name, str(os.listdir(f"/proc/{pid}/{name}"))[:40]])
        except OSError:
            pass
    if libc.ptrace(16, pid, None, None) == 0:  # PTRACE_ATTACH
        found.append([pid, "ptrace", ""])
    if libc.ptrace(0x4206, pid, None, None) == 0:  # PTRACE_SEIZE
        found.append([pid, "seize", ""])
    buffer = ctypes.create_string_buffer(8)
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    local, remote = Vector(ctypes.addressof(buffer), 8), Vector(0x400000, 8)
    # EPERM is the refusal; EFAULT would mean that only the address was wrong.
    ctypes.set_errno(0)
    count = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if count >= 0 or ctypes.get_errno() != 1:
        found.append([pid, "process_vm_readv", ctypes.get_errno()])
    descriptor = libc.syscall(434, pid, 0)  # pidfd_open
    if descriptor >= 0 and libc.syscall(438, descriptor, 0, 0) >= 0:  # pidfd_getfd
        found.append([pid, "pidfd_getfd", ""])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with rig(user=NOBODY) as one:
        yield one


def _as_user(made: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*made.prefix, sys.executable, "-I", *words],
        input="go\n", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def training(made: Rig) -> Iterator[Launched]:
    leg = made.launch(seconds=6, deadline_sec=40)
    leg.until("trainer-hardened")
    yield leg
    assert leg.wait()["status"] == "complete"


def test_the_user_has_nothing(made: Rig, training: Launched) -> None:
    for pid in training.processes():
        status = _status(pid)
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["CapEff"] == status["CapBnd"] == "0" * 16


def test_a_process_of_the_same_user_reads_no_memory(made: Rig, training: Launched) -> None:
    pids = [str(pid) for pid in training.processes()]
    assert len(pids) == 3  # guard, supervisor and trainer: the custodian is gone
    said = _as_user(made, "-c", ATTACK, *pids)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"


def test_the_attack_works_on_a_process_that_is_not_hardened(made: Rig) -> None:
    victim = subprocess.Popen(
        [*made.prefix, sys.executable, "-I", "-c", "import time; print(1, flush=True); time.sleep(60)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write("go\n")
    victim.stdin.flush()
    victim.stdout.readline()
    try:
        said = _as_user(made, "-c", ATTACK, str(victim.pid))
        found = {name for _, name, _ in json.loads(said.stdout)}
        assert {"mem", "environ", "maps", "fd", "ptrace"} <= found, said
    finally:
        victim.kill()
        victim.communicate()


def test_both_memories_are_scanned_all_the_same(made: Rig, training: Launched) -> None:
    assert training.wait()["status"] == "complete"
    claims = parse_evidence(made.broker.exchange(made.run, "s000", 1).evidence).claims
    kept = "memfd-secret" if claims["hardening"]["memfd_secret"] else "locked"
    assert training.event("unsealed")["keyAtRest"] == kept
    body = training.event("zeroized")
    assert body["residue"] == "scanned"
    assert body["scannedBy"] == {"custodian": "descriptor", "trainer": "handed-over"}
    assert body["unscannedRegions"] == 0
    found = {(needle["class"], needle["where"]): needle for needle in body["needles"]}
    for key in [
        ("payload-key-prefix", "custodian"),
        ("kem-seed-prefix", "custodian"),
        ("package-marker", "trainer"),
        ("trained-parameter", "trainer/cpu"),
        ("optimizer-or-data", "trainer/cpu"),
        ("freed-memory", "trainer/heap"),
    ]:
        assert found[key]["positiveControl"] >= 1, key
        assert found[key]["after"] == 0, key
    assert found[("payload-key-prefix", "trainer")]["positiveControl"] == 0
    assert (training.folder / "outputs.sealed").stat().st_uid == NOBODY


@pytest.mark.parametrize("killed", ["supervisor", "both"])
def test_who_hides_does_not_outlive_its_leg_and_is_found_by_the_same_user(killed: str) -> None:
    """Without root there is no control group, and another's files cannot be looked into: the mark is left."""
    seconds = f"600.{secrets.randbelow(10**9):09}"
    with rig(HIDDEN, params={"sec": seconds}, user=NOBODY) as hiding:
        leg = hiding.launch(seconds=LONG, deadline_sec=LONG)
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
            said = subprocess.run(
                [*hiding.prefix, sys.executable, "-I", "-", hiding.allocation, str(hiding.pod)],
                input=b"go\n" + Path(sweep_script.__file__).read_bytes(),
                capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            assert json.loads(said.stdout)["processesLeft"] == 0, said.stderr
        wait_until(lambda: not alive(hidden) and not alive(leg.guard), 20, "the end of what hides")
        assert hiding.scratch() == []


def test_where_no_memory_may_be_locked_the_key_rests_on_the_heap_and_the_record_says_so(made: Rig) -> None:
    """memfd_secret and mlock both count against RLIMIT_MEMLOCK; without capabilities, zero means zero."""
    before = made.prefix
    made.prefix = [*before, "prlimit", "--memlock=0:0"]
    try:
        leg = made.launch(2)
        assert leg.wait()["status"] == "complete"
    finally:
        made.prefix = before
    assert leg.event("unsealed")["keyAtRest"] == "heap"
    exchange = made.broker.exchange(made.run, "s000", 2)
    assert parse_evidence(exchange.evidence).claims["hardening"]["memfd_secret"] is False
    body = leg.event("zeroized")
    assert body["residue"] == "scanned"
    assert [needle for needle in body["needles"] if needle["after"]] == []
