"""A dropped connection does not lose a leg; a real OpenSSH server serves as well as the embedded one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import PACED, Program, processes_of, wait_until

pytestmark = pytest.mark.train


@pytest.mark.sshd
def test_a_run_over_openssh(program: Program, sshd: Sshd) -> None:
    words = [
        "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}", f"provider.user={sshd.user}",
        f"provider.key={sshd.key}", f"provider.known_hosts={sshd.known_hosts}",
        f"provider.python={sys.executable}",
        f"provider.workdir={program.home.parent / 'work'}",
    ]  # fmt: skip
    code, record, folder, err = program.run("duration=1", *words)
    assert code == 0, err
    assert record["status"] == "verified"
    assert "host-key-tofu" not in record["caveats"]
    name = json.loads((folder / "run.json").read_bytes())["name"]
    assert processes_of(name) == []
    assert not list((program.home.parent / "work").glob("gh-*"))
    text = b"".join(path.read_bytes() for path in (folder / "bundle").rglob("*") if path.is_file())
    assert str(sshd.key).encode() not in text
    assert b"127.0.0.1" not in text


@pytest.mark.sshd
def test_a_cut_connection_in_mid_leg_does_not_lose_the_leg(program: Program, sshd: Sshd) -> None:
    words = [
        "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}", f"provider.user={sshd.user}",
        f"provider.key={sshd.key}", f"provider.known_hosts={sshd.known_hosts}",
        f"provider.python={sys.executable}",
        f"provider.workdir={program.home.parent / 'work'}", "duration=8", "order=protected-first",
    ]  # fmt: skip
    process = program.start("run", "--json", "--out", str(program.runs), *PACED, *words)

    def training() -> bool:
        lines = [path.read_text() for path in program.runs.glob("*/parts/legs/*/events.jsonl")]
        return any('"phase":"measure"' in text for text in lines)

    wait_until(training, 90, "the protected leg trains")
    # sshd's own session processes are killed: the socket dies as it does when a router forgets it.
    sessions = sshd.sessions()
    assert sessions
    for pid in sessions:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "connection lost" in err
    assert json.loads(out)["runs"][0]["status"] == "verified"


@pytest.mark.sshd
def test_an_unknown_host_key_is_refused_before_anything_is_left(
    program: Program, sshd: Sshd, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    kind, key = other.with_suffix(".pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    done = program(
        "run", "--out", str(program.runs), *PACED, "provider=ssh", "provider.host=127.0.0.1",
        f"provider.port={sshd.port}", f"provider.user={sshd.user}", f"provider.key={sshd.key}",
        f"provider.known_hosts={known}", "duration=1",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "host key" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_host_is_exit_3(program: Program, tmp_path: Path) -> None:
    key = tmp_path / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    done = program(
        "run", "--out", str(program.runs), *PACED, "provider=ssh", "provider.host=127.0.0.1",
        "provider.port=1", "provider.user=nobody", f"provider.key={key}", "duration=1",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
