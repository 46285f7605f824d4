"""Whole runs in which one process of a leg is killed: the run ends long before the leg's time is over.

The workload has written plaintext, forked a child that holds its data, and started a program in hiding.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from glasshouse.remote.sweep_script import own_cgroup
from tests.conftest import Sshd
from tests.e2e.conftest import QUICK, Program, wait_until
from tests.e2e.phases import check_gone, on_pod, read_record, run_folder, seen_event
from tests.runtime.rig import alive, processes_of

pytestmark = pytest.mark.train

# A leg may take longer by far than any test waits: whoever notices a death at its deadline only, fails.
WORDS = [
    *QUICK, "model=custom", "payload=public", "model.entry=tests/e2e/workloads/clocked.py:Littering",
    "+model.params.unit_ms=2", "duration=600",
]  # fmt: skip


def _roles(name: str) -> dict[str, int]:
    """Pids of guard, supervisor and trainer, by who is whose parent; of a raw leg the minder's for the
    second.
    """
    parents = dict[int, int]()
    for pid in processes_of(f"{name}/legs/"):
        with contextlib.suppress(OSError):
            if b"\0launch\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                parents[pid] = int(fields[1])
    (guard,) = (pid for pid, parent in parents.items() if parent not in parents)
    (supervisor,) = (pid for pid, parent in parents.items() if parent == guard)
    (trainer,) = (pid for pid, parent in parents.items() if parent == supervisor)
    return {"guard": guard, "supervisor": supervisor, "trainer": trainer}


def _check_ends(program: Program, words: list[str], killed: str, code: str) -> None:
    hidden = f"6000.{secrets.randbelow(10**9):09}"
    process = program.start(
        "run", "--json", "--out", str(program.runs), *WORDS, *words, f"+model.params.hidden='{hidden}'"
    )
    wait_until(
        lambda: seen_event(program, "progress") or on_pod(program, "legs/*/progress.jsonl"),
        90,
        "the leg trains",
    )
    folder = run_folder(program)
    assert folder is not None
    name = json.loads((folder / "run.json").read_bytes())["name"]
    try:
        roles = _roles(name)
        wait_until(lambda: bool(processes_of(f"sleep\0{hidden}")), 20, "the program in hiding")
        (hiding,) = processes_of(f"sleep\0{hidden}")
        for role in killed.split(" and "):
            os.kill(roles[role], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, err
    record = read_record(folder)
    assert record["status"] == "excluded"
    assert code in record["exclusion"]["codes"]
    assert not alive(hiding)
    check_gone(program, folder)
    cgroup = own_cgroup()
    assert cgroup is None or not list(
        cgroup.glob(f"{json.loads((folder / 'run.json').read_bytes())['name']}*")
    )


CODES = {
    "supervisor": "lost-leg",
    "guard": "process-died",
    "trainer": "process-died",
    "guard and supervisor": "lost-leg",
}


def _but(quick: str) -> list[Any]:
    """Every role, all but one of them in the long tests alone."""
    return [role if role == quick else pytest.param(role, marks=pytest.mark.soak) for role in CODES]


@pytest.mark.parametrize("killed", _but("trainer"))
def test_a_killed_role_ends_the_run(program: Program, killed: str) -> None:
    _check_ends(program, ["provider.threads=1", "order=protected-first"], killed, CODES[killed])


@pytest.mark.parametrize("killed", _but("supervisor"))
def test_a_killed_role_of_a_raw_leg_ends_the_run(program: Program, killed: str) -> None:
    _check_ends(program, ["provider.threads=1", "order=raw-first"], killed, CODES[killed])


@pytest.mark.sshd
@pytest.mark.parametrize("killed", _but("supervisor"))
def test_a_killed_role_ends_the_run_over_openssh(program: Program, sshd: Sshd, killed: str) -> None:
    work = program.home.parent / "work"
    words = [
        "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}", f"provider.user={sshd.user}",
        f"provider.key={sshd.key}", f"provider.known_hosts={sshd.known_hosts}",
        f"provider.python={sys.executable}", f"provider.workdir={work}", "order=protected-first",
    ]  # fmt: skip
    _check_ends(program, words, killed, CODES[killed])
    assert not list(work.glob("gh-*"))
