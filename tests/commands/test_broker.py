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
from glasshouse.commands import tamper
from glasshouse.publishing.tamper import read_tamper
from glasshouse.records import keys
from glasshouse.records.signing import open_statement
from tests.commands.kit import ROOT, Call


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
    assert report["version"] == glasshouse.__version__


def test_tamper_signs_its_report_and_fails_on_a_deviation(
    call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    # A stand-in: the real suite, which the test above runs, deviates only where the broker is broken.
    report = {
        "ok": True,
        "unwrapCalls": 0,
        "scenarios": [
            {"code": "x/control", "released": True, "expected": True, "reasonCodes": [], "ok": True},
            {"code": "x", "released": False, "expected": False, "reasonCodes": ["x"], "ok": True},
        ],
    }
    monkeypatch.setattr(tamper, "run_suite", lambda: report)
    code, out, _ = call("tamper", "--json", "--out", "result.json")
    assert (code, json.loads(out)) == (0, report)
    opened = open_statement(
        (elsewhere / "result.json").read_bytes(),
        keys.load_keyring(),
        role="operator",
        predicate_type="https://in-toto.io/attestation/test-result/v0.1",
    )
    assert opened.predicate["result"] == "PASSED"
    assert opened.predicate["passedTests"] == ["x/control", "x"]
    assert "1 attacks, 1 controls, as expected" in call("tamper")[1]
    report["ok"] = report["scenarios"][1]["ok"] = False  # type: ignore[index]
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
