"""`glasshouse tamper` and `broker`: the key broker attacked, and as a service of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import glasshouse
from glasshouse import paths
from glasshouse.attestation.store import Store
from glasshouse.attestation.suite_report import SuiteReport
from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.commands import tamper
from glasshouse.publishing.tamper_report import read_tamper
from glasshouse.records import keys
from glasshouse.records.signing import open_statement
from tests.commands.kit import ROOT, Call, python


@pytest.mark.soak  # a minute; the suite itself: tests/attestation/test_tamper_suite.py
def test_the_tamper_report_is_published_with_its_day_and_version(
    repository: tuple[Path, Path], call: Call
) -> None:
    root, _ = repository
    (root / "site" / "research").mkdir(parents=True)
    assert call("tamper", "--publish", "--json")[0] == 0
    failures: list[str] = []
    report = read_tamper(root / "site" / "research" / "tamper-report.json", failures)
    assert failures == []
    assert report is not None
    assert report.version == glasshouse.__version__


def test_tamper_signs_its_report_and_fails_on_a_deviation(
    call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    # A stand-in: the real suite (the test above, tests/attestation) deviates only where the broker is broken.
    honest = {
        "code": "nonce-replay/control", "what": "honest", "released": True, "expected": True,
        "expectedCodes": [], "reasonCodes": [], "unwrapCalls": 1, "ok": True,
    }  # fmt: skip
    attack = {
        "code": "nonce-replay", "what": "again", "released": False, "expected": False,
        "expectedCodes": ["nonce-replay"], "reasonCodes": ["nonce-replay"], "unwrapCalls": 0, "ok": True,
    }  # fmt: skip
    report = {"ok": True, "unwrapCalls": 0, "scenarios": [honest, attack]}
    monkeypatch.setattr(tamper, "run_suite", lambda: SuiteReport.model_validate_json(json.dumps(report)))
    code, out, _ = call("tamper", "--json", "--out", "result.json")
    assert (code, out) == (0, json.dumps(report, indent=2) + "\n")
    opened = open_statement(
        (elsewhere / "result.json").read_bytes(),
        keys.load_keyring(),
        role="operator",
        predicate_type="https://in-toto.io/attestation/test-result/v0.1",
    )
    assert opened.subjects == {"tamper-report.json": sha256_hex(canonical_json(report))}
    assert opened.predicate["result"] == "PASSED"
    assert opened.predicate["passedTests"] == ["nonce-replay/control", "nonce-replay"]
    assert "1 attacks, 1 controls, as expected" in call("tamper")[1]
    report["ok"] = attack["ok"] = False
    code, out, _ = call("tamper", "--out", "result.json")
    assert code == 1
    assert "DEVIATES" in out


def test_broker_serves_until_it_is_told_to_stop(elsewhere: Path) -> None:
    retired, _ = keys.rotate("broker", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "glasshouse", "broker", "--port", "0", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
    )
    assert process.stdout
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        said = json.loads("".join(lines))
        with urllib.request.urlopen(
            f"http://127.0.0.1:{said['port']}/.well-known/jwks.json", timeout=10
        ) as answer:
            assert [key["kid"] for key in json.load(answer)["keys"]] == [said["broker"], retired.keyid]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "")
    kek = paths.keys_dir() / "broker.kek"
    assert kek.stat().st_mode & 0o777 == 0o600


LOOKED_AT = """
import dataclasses, json, os, signal, sys
from glasshouse import cli
from glasshouse.commands import broker
from glasshouse.runtime.linux import hardening_state
read = broker._kek
def kek():
    print(json.dumps(dataclasses.asdict(hardening_state())))
    os.kill(os.getpid(), signal.SIGTERM)  # so that it ends as soon as it serves
    return read()
broker._kek = kek
sys.exit(cli.main(["broker", "--port", "0"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux alone can do")
def test_the_broker_s_process_is_closed_before_it_reads_a_key(elsewhere: Path) -> None:
    """As the kernel says it, when the key that payload keys rest under is read: no dump, no core."""
    done = python("-c", LOOKED_AT)
    assert (done.returncode, done.stderr) == (0, "")
    state = json.loads(done.stdout.splitlines()[0])
    assert state == {"dumpable": 0, "core_limit": 0, "no_new_privs": True, "tracer_pid": 0}
    assert "listens on http://127.0.0.1:" in done.stdout


@pytest.fixture
def store(elsewhere: Path) -> Path:
    """The state folder's broker database, with six audit lines of two runs and a payload key in it."""
    path = paths.state_dir() / "broker.db"
    with Store(f"sqlite:///{path}", b"\x11" * 32) as opened:
        opened.put_payload("run-1", "ab" * 32, b"\x07" * 32, 3)
        for number in range(1, 4):
            opened.log("challenge-issued", 1_700_000_000 + number, ("run-1", "s000", number))
            opened.log(
                "evidence-refused", 1_700_000_000 + number, ("run-2", "s001", number), ["nonce-replay"]
            )
    return path


def test_the_audit_log_is_printed_newest_last_and_bounded(store: Path, call: Call) -> None:
    code, out, _ = call("broker", "--audit")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["1", "2", "3", "4", "5", "6"]
    assert "2023-11-14 22:13:23" in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("evidence-refused  run-2  s001       3  nonce-replay")
    code, out, _ = call("broker", "--audit", "--run", "run-2", "--last", "2", "--json")
    lines = json.loads(out)["lines"]
    assert [(line["seq"], line["run"], line["launch"], line["codes"]) for line in lines] == [
        (4, "run-2", 2, ["nonce-replay"]),
        (6, "run-2", 3, ["nonce-replay"]),
    ]
    # What rests in the store beside them, and the key that it rests under, are not read, let alone shown.
    assert set(lines[0]) == {"seq", "at", "store", "event", "run", "leg", "launch", "codes"}
    assert not (paths.keys_dir() / "broker.kek").exists()
    assert call("broker", "--audit", "--run", "run-3")[1] == "no audit lines of run run-3\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--audit"], "cannot open the database file: there is none (store="),
        (["--audit", "--store", "sqlite:////nowhere/broker.db"], "there is none"),
        (["--audit", "--store", "postgresql+none://me:hunter2@db/x"], "no such kind of database"),
        (["--audit", "--last", "0"], "give 1 to 10000"),
        (["--audit", "--last", "10001"], "give 1 to 10000"),
        (["--last", "5"], "--last is for the audit log"),
        (["--run", "run-1"], "--run is for the audit log"),
    ],
)
def test_an_audit_log_that_is_not_there_takes_one_line(
    words: list[str], said: str, call: Call, elsewhere: Path
) -> None:
    code, out, err = call("broker", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert "hunter2" not in err
    assert not (paths.state_dir() / "broker.db").exists()
