"""Processes that got away from their leg, each with one trace left of where it came from: the sweep finds it.

Each is a system's program, executed in a session whose leader is gone, with init as its parent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glasshouse.providers.proofs import proof_from_sweep
from glasshouse.remote import sweep_script
from tests.providers.test_local import alive, new_name

# What it is told comes on stdin: nothing of it stands in a command line. The pipe ends once no process holds
# it any more.
ORPHAN = """
import json, os, resource, sys, time
told = json.load(sys.stdin)
os.setsid()
ready, go = os.pipe()
if os.fork():
    os.close(go)
    os.read(ready, 1)
    os._exit(0)
os.chdir(told.get("cwd", "/"))
if "cgroup" in told:
    open(told["cgroup"] + "/cgroup.procs", "w").write("0")
if "mark" in told:
    resource.setrlimit(resource.RLIMIT_RTTIME, (told["mark"], told["mark"]))
if "open" in told:
    os.set_inheritable(os.open(told["open"], os.O_RDONLY), True)
if "mount" in told:
    import ctypes
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 14 | 1 << 18), None) == 0
    assert libc.mount(told["mount"].encode(), b"/dev/shm", None, ctypes.c_ulong(1 << 12), None) == 0
os.write(told["pipe"], b"%d\\n" % os.getpid())
null = os.open("/dev/null", os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
ends = time.monotonic() + 20
while told.get("forks") and time.monotonic() < ends:  # each lives only until it has forked the next
    if os.fork():
        os._exit(0)
    if go >= 0:
        os.close(go)
        go = -1
os.set_inheritable(told["pipe"], True)
os.execve("/bin/sleep", ["sleep", "300"], told.get("env", {}))
"""


class Orphan:
    """One that was started; `gone` once nothing that descends from it lives."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    @property
    def gone(self) -> bool:
        ready, _, _ = select.select([self._pipe], [], [], 5)
        return bool(ready) and os.read(self._pipe, 1) == b""


@contextmanager
def orphan(**told: Any) -> Iterator[Orphan]:
    read_end, write_end = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", ORPHAN]
    text = json.dumps({**told, "pipe": write_end}).encode()
    try:
        done = subprocess.run(command, input=text, pass_fds=[write_end], check=False, timeout=30, cwd="/")
    finally:
        os.close(write_end)
    assert done.returncode == 0
    pid = int(os.read(read_end, 20))
    try:
        yield Orphan(pid, read_end)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
        os.close(read_end)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time between SIGTERM and SIGKILL, where the wait is not what is tested."""
    monkeypatch.setattr(sweep_script, "TERM_SECONDS", 0.3)


def swept(name: str, place: Path) -> dict[str, object]:
    report = sweep_script.sweep(name, str(place))
    proof = proof_from_sweep(report)
    assert proof.proof == "zero", proof.detail
    return report


TRACES = ["environment", "folder", "deleted folder", "open file", "deleted file", "mark"]


@pytest.mark.parametrize("trace", TRACES)
def test_one_trace_is_enough(trace: str, tmp_path: Path) -> None:
    name = new_name()
    place = tmp_path / name
    place.mkdir()
    (place / "file").write_text("plaintext")
    told: dict[str, Any] = {
        "environment": {"env": {"SECRET": "x", "TMPDIR": f"/dev/shm/{name}-s000-1-0a0b"}},
        "folder": {"cwd": str(place)},
        "deleted folder": {"cwd": str(place)},
        "open file": {"open": str(place / "file")},
        "deleted file": {"open": str(place / "file")},
        "mark": {"mark": sweep_script.mark(name)},
    }[trace]
    with orphan(**told) as one:
        if trace.startswith("deleted"):
            (place / "file").unlink()
            place.rmdir()
        assert swept(name, place)["killed"] == 1
        assert one.gone


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_that_only_the_leg_had_is_a_trace(tmp_path: Path) -> None:
    """Where the scratch folder is the leg's own /dev/shm, neither folder nor open file shows its name."""
    name = new_name()
    scratch = Path("/dev/shm") / f"{name}-s000-1-0a0b"
    scratch.mkdir()
    try:
        with orphan(mount=str(scratch)) as one:
            scratch.rmdir()
            assert swept(name, tmp_path / name)["killed"] == 1
            assert one.gone
    finally:
        if scratch.exists():
            scratch.rmdir()


def test_a_control_group_is_killed_and_removed(tmp_path: Path) -> None:
    home = sweep_script.own_cgroup()
    if home is None:
        pytest.skip("no control group can be made here")
    name = new_name()
    cgroup = home / f"{name}-s000-1"
    cgroup.mkdir()
    with orphan(cgroup=str(cgroup)) as one:
        swept(name, tmp_path / name)
        assert one.gone
    assert not cgroup.exists()


def test_who_shares_a_session_without_a_leader_goes_with_it(tmp_path: Path) -> None:
    name = new_name()
    script = 'sh -c "sleep 300" "$1" & exec sleep 300 >&- & echo $!'
    with subprocess.Popen(
        ["setsid", "sh", "-c", f"({script})", "sh", name], stdout=subprocess.PIPE, cwd="/", env={}
    ) as leader:
        assert leader.stdout is not None
        other = int(leader.stdout.readline())
        leader.wait(10)
        assert alive(other)
        swept(name, tmp_path / name)
        assert not alive(other)


def test_strangers_stay(tmp_path: Path) -> None:
    """A shell's memory of where somebody was, and another allocation's trace, are no traces."""
    name, other = new_name(), new_name()
    place = tmp_path / name
    place.mkdir()
    with (
        orphan(env={"PWD": str(place), "OLDPWD": str(place)}) as shell,
        orphan(mark=sweep_script.mark(other)) as marked,
        orphan(env={sweep_script.VARIABLE: other}) as named,
    ):
        assert swept(name, place)["killed"] == 0
        assert all(alive(one.pid) for one in (shell, marked, named))


def test_one_that_forks_while_it_is_looked_for_is_found(tmp_path: Path) -> None:
    """A chain of processes, each of which lives only until it has forked the next."""
    name = new_name()
    with orphan(mark=sweep_script.mark(name), forks=True) as chain:
        swept(name, tmp_path / name)
        assert chain.gone


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"cgroup": True, "closed": 0}, ["environment", "resource mark", "; control groups)"]),
        ({"cgroup": False, "closed": 0}, ["no control group can be made here)"]),
        ({"cgroup": False, "closed": 2}, ["2 processes of the account are closed to it"]),
        ({}, ["(looked twice)"]),
        ({"cgroup": "\x1b]0;", "closed": 0}, ["(looked twice)"]),
    ],
)
def test_the_proof_says_how_it_looked(said: dict[str, object], words: list[str]) -> None:
    report = {"processesLeft": 0, "folderRemoved": True, "killed": 0, "checkedAt": [1.5, 2.0], **said}
    detail = proof_from_sweep(report).detail
    assert all(word in detail for word in words), detail
    assert len(detail) <= 300  # what the bundle keeps of it (lifecycle/finish.py)
