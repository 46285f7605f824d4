"""A project that is to stop with its controller, which is killed: what it had sealed comes home before its
machine goes. One that may go on: test_unattended.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import Program, kill_with_watchdog, wait_until
from tests.e2e.phases import read_record, run_folder, seen_event
from tests.e2e.test_cloud import Rents, codes, renting
from tests.e2e.test_project import files, opened, project, words

pytestmark = [pytest.mark.train, pytest.mark.slow]

# Works until it is told to end, as no test can time it; what it leaves is large enough to be torn.
WORKS = """
import pathlib, signal, sys, time
out = pathlib.Path("out")
(out / "sub folder").mkdir(parents=True)
(out / "sub folder" / "gesagt ü.bin").write_bytes(bytes(range(256)) * 20_000)
def save(*_):
    (out / "saved.txt").write_text("saved on request")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while True:
    time.sleep(0.05)
"""
LEFT = {
    "saved.txt": (b"saved on request", False),
    "sub folder/gesagt ü.bin": (bytes(range(256)) * 20_000, False),
}


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[Rents]:
    with renting("runpod", tmp_path) as program:
        yield program


def stopped(program: Program, tmp_path: Path, *settings: str) -> tuple[subprocess.Popen[str], Path, Path]:
    """A controller that was stopped before its project ended, which it then did: outputs lie sealed on the
    machine, and nobody has heard of them. Returns it, the run's folder, and the leg's on the machine."""
    mine = project(tmp_path / "mine", {"main.py": WORKS})
    process = program.start(*words(mine, program, *settings), "python", "main.py")
    wait_until(lambda: seen_event(program, "progress"), 90, "the project at work")
    process.send_signal(signal.SIGSTOP)
    folder = run_folder(program)
    assert folder is not None
    place = tmp_path / "pod"
    if isinstance(program, Rents):
        (pod,) = [pod for pod in program.server.cloud.living() if not pod.foreign]
        assert pod.container is not None
        place = pod.container.root / "root/.glasshouse"
    (leg,) = place.glob("*/legs/s000-1")
    (leg / "end").touch()
    wait_until((leg / "result.json").exists, 60, "the project's end, with nobody there")
    return process, folder, leg


RENTED = (
    "model.max_hours=1", "model.unattended=stop", "gpu=a4000", "provider=runpod",
    "provider.request_timeout_sec=1",
)  # fmt: skip


def orphaned(program: Program, tmp_path: Path, *settings: str) -> tuple[Path, Path]:
    """As `stopped`; then its controller and its watchdog die at once, as where a machine loses power."""
    process, folder, leg = stopped(program, tmp_path, *settings)
    kill_with_watchdog(process, folder)
    return folder, leg


def test_reap_fetches_them_first_and_open_writes_them_as_they_were(runpod: Rents, tmp_path: Path) -> None:
    folder, _ = orphaned(runpod, tmp_path, *RENTED)
    done = runpod("reap")
    assert done.returncode == 0, done.stderr
    assert f"run {folder.name}: its sealed outputs are fetched first, 5 min at most" in done.stderr
    size = (folder / "outputs/s000-1-outputs.sealed").stat().st_size
    assert f"the command ended with 0; {size / 1e6:.1f} MB of sealed outputs are home" in done.stderr
    assert f"its sealed outputs were fetched first: glasshouse open {folder.name}" in done.stdout
    assert files(opened(runpod, folder, tmp_path / "back")) == LEFT
    assert (tmp_path / "back/s000-1-trainer.log").exists()
    record = read_record(folder)
    assert record["status"] == "excluded"
    assert {"controller-killed", "outputs-fetched-late"} <= set(codes(record))
    # All events are there by now, and whole; that nobody looked for so long, the record says.
    assert "event-chain-broken" not in codes(record)
    assert runpod("verify", str(folder)).returncode == 0
    runpod.settled()


def test_so_does_the_watchdog_of_a_controller_that_is_killed(runpod: Rents, tmp_path: Path) -> None:
    process, folder, _ = stopped(runpod, tmp_path, *RENTED)
    process.kill()
    process.communicate()
    wait_until((folder / "bundle/record.json").exists, 90, "the watchdog's record")
    wait_until(lambda: not (folder / "parts").exists(), 10, "the watchdog's end")
    assert files(opened(runpod, folder, tmp_path / "back")) == LEFT
    assert "outputs-fetched-late" in codes(read_record(folder))
    assert "its sealed outputs are fetched first, 5 min at most" in (folder / "watchdog.log").read_text()
    runpod.settled()


@pytest.mark.soak
@pytest.mark.parametrize("how", ["tampered", "another host key"])
def test_what_cannot_be_trusted_is_refused_told_and_destroyed(
    runpod: Rents, how: str, tmp_path: Path
) -> None:
    folder, leg = orphaned(runpod, tmp_path, *RENTED)
    (pod,) = [pod for pod in runpod.server.cloud.living() if not pod.foreign]
    container = pod.container
    assert container is not None
    if how == "tampered":
        data = bytearray((leg / "outputs.sealed").read_bytes())
        data[-1] ^= 1
        (leg / "outputs.sealed").write_bytes(data)
        told = "what it sealed could not be fetched: a file came back damaged"
    else:
        server = container._server
        assert server is not None
        port = server.port
        server.stop()
        server.key_path.unlink()
        other = type(server)(
            container.root,
            asyncssh.generate_private_key("ssh-ed25519"),
            (container.root / "root/.ssh/authorized_keys").read_text(),
            server._given,
        )
        other.start(20.0, port)
        container._server = other
        told = "a stranger answers in its machine's place, nothing is fetched: wrong host key"
    done = runpod("reap")
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    assert not list((folder / "outputs").glob("*outputs*"))
    assert "outputs-fetched-late" not in codes(read_record(folder))
    runpod.settled()


@pytest.mark.soak
@pytest.mark.sshd
def test_over_openssh_they_are_fetched_too(program: Program, sshd: Sshd, tmp_path: Path) -> None:
    folder, leg = orphaned(
        program, tmp_path, "model.unattended=stop", "provider=ssh",
        "provider.host=127.0.0.1", f"provider.port={sshd.port}",
        f"provider.user={sshd.user}", f"provider.key={sshd.key}",
        f"provider.python={sys.executable}", f"provider.workdir={tmp_path}/pod",
    )  # fmt: skip
    done = program("reap")
    assert done.returncode == 0, done.stderr
    assert not leg.exists()
    assert files(opened(program, folder, tmp_path / "back")) == LEFT
