"""A run whose payload key rests with a broker in a process and home of its own, as on another machine."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import PACED, Program

pytestmark = [pytest.mark.slow]


@dataclasses.dataclass(frozen=True)
class Asking(Program):
    """The program, told of a broker's port."""

    port: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "GLASSHOUSE_BROKER": self.port}


def _list_each_other(*programs: Program) -> list[set[str]]:
    """Make keys in each home and list all of them in all; the key ids that each made."""
    rings = [json.loads(program("keys", "--make", "--json").stdout)["keys"] for program in programs]
    local = [[entry for entry in ring if entry["local"]] for ring in rings]
    document = json.dumps({"keys": [entry for ring in local for entry in ring]})
    for program in programs:
        (program.home / "keys" / "keyring.json").write_text(document)
    return [{entry["keyid"] for entry in ring} for ring in local]


def test_a_run_uses_a_broker_of_another_process_and_home(program: Program, tmp_path: Path) -> None:
    far = Program(tmp_path / "far", program.runs)
    _, far_keys = _list_each_other(program, far)
    process = far.start("broker", "--port", "0", "--json")
    assert process.stdout is not None
    try:
        said = json.loads("".join(process.stdout.readline() for _ in range(6)))
        asking = Asking(program.home, program.runs, port=str(said["port"]))
        words = ["order=protected-only", "duration=0.5", "provider.threads=1"]
        done = asking("run", "--json", "--out", str(program.runs), *PACED, *words)
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "verified"
    assert said["broker"] in far_keys
    exchange = (Path(record["folder"]) / "bundle/legs/s000-protected/exchange.json").read_text()
    assert json.loads(exchange)["grant"]
    assert (far.home / "state" / "broker.db").exists()
    assert not list(program.runs.rglob("broker.db*"))
    assert program("verify", record["folder"]).returncode == 0


def test_a_broker_that_is_not_there_ends_as_a_row(program: Program) -> None:
    asking = Asking(program.home, program.runs, port="1")
    done = asking("run", "--json", "--out", str(program.runs), *PACED, "order=protected-only", "duration=0.5")
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "excluded"
    assert "broker-unreachable" in done.stderr
