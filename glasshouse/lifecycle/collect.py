"""What a launch leaves behind, brought home: its exchange with the broker, result, outputs and log."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import ValidationError

from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, LegError, RemoteError
from glasshouse.lifecycle.leg import Leg, Notes
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.meter import Meter
from glasshouse.lifecycle.setup import Ready
from glasshouse.schema import Ended, Exchange, Result

MAX_OUTPUT_BYTES = 64 << 30
MAX_LOG_BYTES = 1 << 30  # a raw leg's is what its workload printed; a sealed one's holds a few MiB


def exchange(live: LiveRun, ready: Ready, leg: Leg) -> Exchange | None:
    """The broker's record of the launch; None where there is none, or none of its form."""
    try:
        found = ready.broker.exchange(live.run.id, leg.id, leg.launch)
        return None if found is None else Exchange.model_validate_json(canonical_json(found.to_json()))
    except (AttestationError, KeyError, CanonicalError, ValidationError):
        return None


def keep_exchange(live: LiveRun, leg: Leg, found: Exchange | None, notes: Notes) -> None:
    """Write exchange.json, and note what the broker refused the launch for."""
    if found is not None:
        live.folder.write(leg.file("exchange.json"), found)
        notes.reason_codes |= set(found.reason_codes)


def readable(result: object) -> Result:
    """Read a leg's result as the pod gave it; LegError (result-malformed) where none can be read in it."""
    try:
        return Result.model_validate_json(canonical_json(result))
    except (CanonicalError, ValidationError) as error:
        raise LegError("the leg's result cannot be read", code=Code.RESULT_MALFORMED) from error


def trained(events: Path) -> Result:
    """The result of a protected leg, which stands in its checked events."""
    for line in events.read_bytes().splitlines():
        event = parse_json(line)
        if event["type"] == "trained":
            return readable(event["body"].get("result"))
    raise LegError("the events hold no result", code=Code.PROTECTED_INCOMPLETE)


def fetch_outputs(live: LiveRun, ready: Ready, leg: Leg) -> None:
    """Bring sealed outputs home, into the run folder beside the bundle (they are the owner's)."""
    digest, size = sealed_outputs(live.folder.parts / leg.file("events.jsonl"))
    _fetch(live, ready, leg, "outputs.sealed", "outputs.sealed", max_bytes=size, sha256=digest)
    _fetch(live, ready, leg, "log.sealed", "log.sealed")


def sealed_outputs(events: Path) -> tuple[str | None, int]:
    """SHA-256 (64 hex) and bytes of the sealed outputs, as the leg signed them in its checked events.

    Where it did not: None, and the most that any outputs may have.
    """
    for line in events.read_bytes().splitlines():
        event = parse_json(line)
        if event["type"] == "sealed-outputs":
            digest, size = event["body"].get("ciphertextSha256"), event["body"].get("bytes")
            return (
                digest if isinstance(digest, str) and len(digest) == 64 else None,
                size if type(size) is int and 0 <= size <= MAX_OUTPUT_BYTES else MAX_OUTPUT_BYTES,
            )
    return None, MAX_OUTPUT_BYTES


def failed(live: LiveRun, ready: Ready, leg: Leg, ended: Ended) -> LegError:
    """The leg's error, with its log fetched and the way to read it: codes alone mend no workload."""
    remedy = ""
    with contextlib.suppress(RemoteError, OSError):
        if not leg.slot.lifecycle:
            # It disclosed its payload anyway; the run folder is its owner's, and no part of the bundle.
            log = _fetch(live, ready, leg, "runtime.log", "raw.log")
            if log is not None and log.stat().st_size:
                remedy = f"its log is {log}"
        elif _fetch(live, ready, leg, "log.sealed", "log.sealed") is not None:
            remedy = f"its log is sealed for you: glasshouse open {live.folder.path}"
    arm = "protected" if leg.slot.lifecycle else "raw"
    return LegError(f"the {arm} leg failed", code=ended.code or Code.RUNTIME_ERROR, remedy=remedy)


def _fetch(
    live: LiveRun,
    ready: Ready,
    leg: Leg,
    name: str,
    as_name: str,
    *,
    max_bytes: int = MAX_LOG_BYTES,
    sha256: str | None = None,
) -> Path | None:
    """Bring one file of the leg home, beside the bundle; None where there is none."""
    source = f"{leg.pod_folder}/{name}"
    if not ready.pod.exists(source):
        return None
    live.folder.outputs.mkdir(exist_ok=True)
    place = live.folder.outputs / f"{leg.id}-{leg.launch}-{as_name}"
    meter = Meter("fetching", live.screen.progress)
    ready.pod.fetch_file(source, place, max_bytes=max_bytes, sha256=sha256, progress=meter)
    return place
