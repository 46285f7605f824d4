"""Ciphertext goes up once a run, whatever its order: a raw leg opens the package that is there.

The bytes are counted by a relay between the program and OpenSSH's own server.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import PACED, Program
from tests.e2e.relay import Relay, relay

pytestmark = [pytest.mark.train, pytest.mark.sshd]

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


def ran(program: Program, *words: str) -> tuple[dict[str, Any], Path]:
    done = program("run", "--json", "--out", str(program.runs), *words, timeout=280)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "verified", record
    return record, Path(record["folder"])


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
    print(f"{words[0]}: {passed.sent} bytes up, {passed.received} bytes down, payload {PAYLOAD}")
    assert PAYLOAD < passed.sent < 1.1 * PAYLOAD + BESIDE
