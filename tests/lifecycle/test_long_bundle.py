"""What a long job's evidence comes to: ten hours, and the fourteen days that are the most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.lifecycle.follow import MAX_EVENTS_BYTES, EventLog
from glasshouse.publishing.publish import MAX_BUNDLE_BYTES as MAX_PUBLISHED
from glasshouse.records.bundle import MAX_FILE_BYTES
from glasshouse.records.chain import sign_head
from glasshouse.runtime.cadence import heads_every, report_every, watch_every
from glasshouse.runtime.events import EventWriter
from glasshouse.runtime.supervisor import MAX_EVENTS
from glasshouse.spec import MAX_HOURS, Job

HOUR = 3600.0


def count(hours: float, every: Callable[[float], float]) -> int:
    """How often something happens in so many hours, given the wait after each moment."""
    at, found = 0.0, 0
    while at < hours * HOUR:
        at, found = at + every(at), found + 1
    return found


def line_bytes(tmp_path: Path, kind: str, body: dict[str, object]) -> int:
    """Of an event at the end of a long job: its numbers have as many digits as they get."""
    path = tmp_path / kind
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = EventWriter(descriptor, Ed25519PrivateKey.generate(), time.monotonic() - MAX_HOURS * HOUR)
    writer.begin("grant")
    writer.count = 10_000
    writer.append(kind, body)
    os.close(descriptor)
    return path.stat().st_size


def evidence_bytes(tmp_path: Path, hours: float) -> tuple[int, int, int]:
    """Bytes of a job's events and of their countersigned heads, at most, and how many events there are."""
    job, digest = Job(), "ab" * 32
    sealed = {"number": 10_000, "bytes": 10**12, "ciphertextSha256": digest}
    checkpoint = {**sealed, "plaintextSha256": digest, "state": "unmarked", "steps": 10**9}
    counts = {
        "progress": count(hours, report_every),
        "watched": count(hours, lambda at: watch_every(at, job.watch_sec)),
        "checkpoint-sealed": count(hours, lambda _: job.checkpoint_min * 60.0),
    }
    bodies: dict[str, dict[str, object]] = {
        "progress": {"phase": "measure", "elapsedSec": 1209599.999, "units": 10**9},
        "watched": dict(sealed),
        "checkpoint-sealed": dict(checkpoint),
    }
    events = sum(counts[kind] * line_bytes(tmp_path, kind, body) for kind, body in bodies.items())
    head = sign_head(
        Ed25519PrivateKey.generate(), run="20261128-112554-alu5df", leg="s000", launch=1, seq=10_000,
        head=digest, time=1795865160.777,
    )  # fmt: skip
    # One for each event that came alone, and one whenever nothing came for so long.
    heads = sum(counts.values()) + count(hours, lambda at: heads_every(at, 5.0))
    return events, heads * (len(head) + 1), sum(counts.values())


def test_ten_hours_can_be_published(tmp_path: Path) -> None:
    events, heads, _ = evidence_bytes(tmp_path, 10)
    assert events + heads < 0.75 * MAX_PUBLISHED


def test_fourteen_days_make_a_bundle(tmp_path: Path) -> None:
    events, heads, many = evidence_bytes(tmp_path, MAX_HOURS)
    assert max(events, heads) < MAX_FILE_BYTES / 2
    assert events < MAX_EVENTS_BYTES
    assert many < MAX_EVENTS / 10


@pytest.mark.parametrize(("thinned", "signed"), [(False, 2), (True, 1)])
def test_a_private_jobs_heads_are_thinned_and_a_measurements_are_not(
    thinned: bool, signed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, key, grant = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), "grant"
    now = [1000.0]
    monkeypatch.setattr("glasshouse.lifecycle.follow.time.monotonic", lambda: now[0])
    log = EventLog(tmp_path, operator, run="r", leg="s000", launch=1, interval=5.0, thinned=thinned)
    log.begin(key.public_key().public_bytes_raw(), grant)
    path = tmp_path / "pod"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = EventWriter(descriptor, key, 0.0)
    writer.begin(grant)
    writer.append("released", {})
    os.close(descriptor)
    now[0] += 36_000.0
    log.feed(path.read_bytes())
    now[0] += 10.0  # no event; after ten hours that is no long time any more
    log.feed(b"")
    assert len((tmp_path / "heads.jsonl").read_bytes().splitlines()) == signed
    now[0] += 200.0
    log.feed(b"")
    assert len((tmp_path / "heads.jsonl").read_bytes().splitlines()) == signed + 1
