"""Ciphertext goes up once a run, whatever its order: a raw leg opens the package that is there.

The bytes are counted by a relay between the program and OpenSSH's own server.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import PACED, Program, wait_until
from tests.e2e.phases import on_pod
from tests.e2e.relay import Relay, relay

pytestmark = [pytest.mark.train]

PAYLOAD = 16 << 20
# What goes up beside it: the runtime, the markers, parameters, the controller's questions, what SSH adds.
BESIDE = 2 << 20


@pytest.fixture
def through(program: Program, sshd: Sshd, tmp_path: Path) -> Iterator[tuple[Relay, list[str]]]:
    """A relay to the server, and the words with which a run goes through it with PAYLOAD bytes of data."""
    data = tmp_path / "rows.bin"
    data.write_bytes(secrets.token_bytes(PAYLOAD))
    with relay(sshd.port) as passed:
        known = tmp_path / "known_hosts"
        known.write_text(sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{passed.port} "))
        yield passed, [
            *PACED, "provider=ssh", "provider.host=127.0.0.1", f"provider.port={passed.port}",
            f"provider.user={sshd.user}", f"provider.key={sshd.key}", f"provider.known_hosts={known}",
            f"provider.python={sys.executable}", f"provider.workdir={tmp_path / 'work'}",
            f"model.data=[{data}]",
        ]  # fmt: skip


@dataclass(frozen=True)
class Harm:
    """What happens to the package on the machine between two legs, and how the run ends."""

    do: Callable[[Path], object]
    words: str
    code: str


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


REMOVED = Harm(Path.unlink, "it is not there any more", "container-unreadable")
ALTERED = Harm(_flip, "it is not what was uploaded", "chunk-authentication-failed")


@pytest.mark.parametrize(("arms", "harm"), [(("protected", "raw"), REMOVED), (("raw", "protected"), ALTERED)])
def test_a_package_harmed_between_two_legs_ends_the_run_and_says_how(
    arms: tuple[str, str], harm: Harm, program: Program
) -> None:
    first, second = arms
    words = [*PACED, "duration=2", f"order={first}-first", "provider.threads=1"]
    process = program.start("run", "--json", "--out", str(program.runs), *words)
    wait_until(
        lambda: on_pod(program, "legs/s000-1/*.jsonl") and _trains(program), 90, "the first leg trains"
    )
    (package,) = [found for pod in program.pods() for found in pod.glob("home/*/package.sealed")]
    harm.do(package)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    said = f"error: the {second} leg cannot open the sealed package on the machine: {harm.words}"
    assert [line for line in err.splitlines() if said in line], err
    record = json.loads(out)["runs"][0]
    assert record["status"] == "excluded"
    assert harm.code in record["exclusion"]["codes"]
    assert [slot["units"] is None for slot in record["figures"]["slots"]] == [False, True]


def _trains(program: Program) -> bool:
    """Whether something of a first leg's training was reported: its package is open by then."""
    paths = [path for pod in program.pods() for path in pod.glob("home/*/legs/s000-1/*.jsonl")]
    return any(b'"measure"' in path.read_bytes() for path in paths)


def ran(program: Program, *words: str) -> tuple[dict[str, Any], Path]:
    done = program("run", "--json", "--out", str(program.runs), *words, timeout=280)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "verified", record
    return record, Path(record["folder"])


@pytest.mark.sshd
@pytest.mark.parametrize(
    "words",
    [
        ["order=raw-first", "duration=0.5"],
        ["order=protected-first", "duration=0.5"],
        pytest.param(
            ["order=abba", "duration=3.2", "measure.discard_sec=0.05"],
            marks=[pytest.mark.soak, pytest.mark.timeout(300)],
        ),
    ],
    ids=lambda words: words[0],
)
def test_a_run_uploads_its_package_once(
    words: list[str], through: tuple[Relay, list[str]], program: Program
) -> None:
    passed, common = through
    ran(program, *common, *words)
    print(f"{words[0]}: {passed.sent} bytes up, {passed.received} down, for a payload of {PAYLOAD}")
    assert PAYLOAD < passed.sent < 1.1 * PAYLOAD + BESIDE
