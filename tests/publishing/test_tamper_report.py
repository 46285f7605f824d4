from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse.publishing.tamper_report import PUBLISHED, read_tamper, tamper_bytes

REPORT = Path(__file__).parents[2] / "site/research/tamper-report.json"


def failures_of(path: Path) -> list[str]:
    failures: list[str] = []
    read_tamper(path, failures)
    return failures


def test_the_committed_report_holds_and_covers_what_was_published_before() -> None:
    assert failures_of(REPORT) == []
    codes = {item["code"] for item in json.loads(REPORT.read_bytes())["scenarios"]}
    assert len(PUBLISHED) == 9
    assert set(PUBLISHED) <= codes


def test_the_committed_report_is_written_as_it_was_read() -> None:
    report = read_tamper(REPORT, [])
    assert report is not None
    assert tamper_bytes(report) == REPORT.read_bytes()


def scenario(document: dict[str, Any], code: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in document["scenarios"] if item["code"] == code)
    return found


def drop(code: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["scenarios"].remove(scenario(document, code))


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (drop("nonce-replay"), "tamper-report-lacks:nonce-replay"),
        (drop("nonce-replay/control"), "tamper-report-no-control:nonce-replay"),
        (
            lambda document: scenario(document, "nonce-replay").update(released=True),
            "tamper-report-contradicts:nonce-replay",
        ),
        (
            lambda document: scenario(document, "nonce-replay").update(reasonCodes=["other"]),
            "tamper-report-contradicts:nonce-replay",
        ),
        (
            lambda document: scenario(document, "nonce-replay/control").update(unwrapCalls=0),
            "tamper-report-contradicts:nonce-replay/control",
        ),
        (lambda document: document.update(unwrapCalls=1), "tamper-report-total"),
        (lambda document: scenario(document, "nonce-replay").update(ok=False), "tamper-report-total"),
        (lambda document: document.pop("ranOn"), "tamper-report-schema:ranOn"),
        (lambda document: document.update(extra=1), "tamper-report-schema:extra"),
        (
            lambda document: document["scenarios"].append(scenario(document, "nonce-replay")),
            "tamper-report-twice:nonce-replay",
        ),
    ],
)
def test_a_report_that_lacks_or_contradicts_something_stops_the_build(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], code: str
) -> None:
    document = json.loads(REPORT.read_bytes())
    edit(document)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    assert failures_of(path) == [code]


def test_what_is_no_json_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"ok": true, "ok": true}')
    assert failures_of(path) == ["tamper-report-malformed"]
