"""What a launch leaves behind, brought home: its exchange with the broker, result, outputs and log."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import (
    AttestationError,
    LegError,
    OutcomeUnknown,
    RemoteError,
    SealError,
    UsageError,
)
from glasshouse.lifecycle import checkpoints
from glasshouse.lifecycle.follow import carry
from glasshouse.lifecycle.leg import Leg, Notes
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.meter import Meter
from glasshouse.lifecycle.setup import Ready
from glasshouse.records import keys
from glasshouse.remote.pod import Pod
from glasshouse.runtime.params import LOST, NOT_CARRIED, NOTHING, SAID, sealed_under
from glasshouse.schema import Ended, Exchange, Execs, JobExit, Result
from glasshouse.sealing.outputs import open_outputs
from glasshouse.spec import Job
from glasshouse.watching.lines import MOVES, plain

MAX_OUTPUT_BYTES = 64 << 30
LAST_LINES, LINE_CHARS = 15, 200  # of a log, as a person sees them
SAID_CHARS = 1000  # of a line that is ours, whose end may be what to do
_TMP = (
    "there is no /tmp of the job's own (no namespaces, or GLASSHOUSE_HOME or its interpreter lies in /tmp): "
    "it may write to $TMPDIR, as tempfile does"
)
_GIT = (
    ".git does not go along: what git would say can be a variable, "
    "export GIT_COMMIT=$(git rev-parse HEAD) and 'model.env=[GIT_COMMIT]'"
)
_HINTS = (  # what its last lines hold, what to say of it, and whether also of one that ended well
    (
        re.compile(r"PermissionError(?!: \[Errno 1\]).*'/(?!dev/shm|tmp/)|FileNotFoundError.*'/(?!dev/shm)"),
        "the job reads and writes its own folder alone: what it needs from elsewhere is named in model.data",
        False,
    ),
    (
        re.compile(r"PermissionError(?!: \[Errno 1\]).*'/tmp/"),
        _TMP,
        False,
    ),
    (
        re.compile(r"name resolution|Connection refused|Network is unreachable|gaierror|LocalEntryNotFound"),
        "unless model.network=open is given, the job reaches no network",
        False,
    ),
    (
        re.compile(r"not a git repository|InvalidGitRepositoryError"),
        _GIT,
        True,
    ),
)
_NO_FILES = re.compile(r"^what comes back [^:]*: 0 files,")
_ALTERED = "it is not what was uploaded"
_PACKAGE: dict[str, str] = {  # why a leg opens nothing, in words
    Code.CONTAINER_UNREADABLE: "it is not there any more",
    Code.CONTAINER_TRUNCATED: "it is not whole any more",
    Code.CONTAINER_TRAILING_BYTES: "something was added to it",
    Code.CONTAINER_MALFORMED: _ALTERED,
    Code.MANIFEST_HASH_MISMATCH: _ALTERED,
    Code.KEY_COMMITMENT_MISMATCH: _ALTERED,
    Code.MANIFEST_AUTHENTICATION_FAILED: _ALTERED,
    Code.CHUNK_AUTHENTICATION_FAILED: _ALTERED,
}
MAX_LOG_BYTES = 1 << 30  # a raw leg's is what its workload printed; a sealed one's holds a few MiB


class Sealed(Protocol):
    """What was sealed for a run's legs: its manifest's SHA-256, 64 hex digits."""

    @property
    def manifest_hash(self) -> str:
        """The digest, under which its legs' outputs and logs are sealed."""


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


def job_exit(bundle: Path) -> JobExit | None:
    """How a run's job ended, as its bundle's events say. None: it ended by itself, as a model of ours does
    when it has made its steps, or no launch of it came to an end.
    """
    found = None
    for events in sorted(bundle.glob("legs/*/events.jsonl")):
        with contextlib.suppress(LegError):
            found = trained(events).exit or found
    return found


def project_exit(bundle: Path) -> dict[str, object] | None:
    """The same as JSON: `{"code": 7, "signal": null, ...}`."""
    how = job_exit(bundle)
    return None if how is None else how.model_dump(mode="json", by_alias=True)


def fetch_outputs(live: LiveRun, pod: Pod, leg: Leg) -> None:
    """Bring sealed outputs home, into the run folder beside the bundle (they are the owner's)."""
    digest, size = sealed_outputs(live.folder.parts / leg.file("events.jsonl")) or (None, MAX_OUTPUT_BYTES)
    make_room(live, pod, leg, size)
    fetch_sealed(live, pod, leg, "outputs.sealed", max_bytes=size, sha256=digest)
    fetch_sealed(live, pod, leg, "log.sealed")


def make_room(live: LiveRun, pod: Pod, leg: Leg, most: int) -> None:
    """Where outputs, of `most` bytes at most, need their room, what else is stored of the run goes.

    How many they are is asked of the pod: a private job signs no size. Raises NoRoom, OSError.
    """
    place = live.folder.sealed(leg.id, leg.launch, "outputs.sealed")
    if place.exists():
        return
    said = b""
    with contextlib.suppress(OutcomeUnknown):  # the fetch begins with a new connection then
        count = ["sh", "-c", 'wc -c < "$1"', "sh", f"{leg.pod_folder}/outputs.sealed"]
        said = pod.run(count, timeout=60, max_output=100).stdout.strip()
    if re.fullmatch(rb"[0-9]{1,15}", said) is None:
        return  # none there, or the fetch finds out
    size, part = min(int(said), most), place.with_name(f"{place.name}.part")
    have = part.stat().st_size if part.exists() else 0
    for dropped in checkpoints.give_room(live.folder, max(size - have, 0)):
        live.screen.warn(f"checkpoint {dropped.number} is dropped here: the outputs need its room")


def execs(events: Path) -> Execs | None:
    """The programs that a leg's project started by itself, as its checked events say; None: not said."""
    for line in events.read_bytes().splitlines():
        event = parse_json(line)
        if event["type"] == "execs-counted":
            return Execs.read(canonical_json(event["body"]))
    return None


def leave_outputs(live: LiveRun, pod: Pod, leg: Leg) -> None:
    """Bring the log home, and remove the outputs from the pod's disk: their digests are in the events."""
    fetch_sealed(live, pod, leg, "log.sealed")
    with contextlib.suppress(RemoteError):  # they are sealed, and go with the pod's folder at the latest
        pod.run(["rm", "-f", "--", f"{leg.pod_folder}/outputs.sealed"])


def outputs_left(live: LiveRun, leg: Leg) -> bool:
    """Whether a leg signed outputs, in its checked events, that are not at home."""
    return (
        sealed_outputs(live.folder.parts / leg.file("events.jsonl")) is not None
        and not live.folder.sealed(leg.id, leg.launch, "outputs.sealed").exists()
    )


def sealed_outputs(events: Path) -> tuple[str | None, int] | None:
    """SHA-256 (64 hex) and bytes of the sealed outputs, as the leg signed them in its checked events.

    Where it did not say one of them: None, and the most that any outputs may have. None: it sealed none yet.
    """
    for line in events.read_bytes().splitlines() if events.exists() else ():
        event = parse_json(line)
        if event["type"] == "sealed-outputs":
            return signed_outputs(event["body"])
    return None


def signed_outputs(body: Mapping[str, object]) -> tuple[str | None, int]:
    """The same of the body of such an event."""
    digest, size = body.get("ciphertextSha256"), body.get("bytes")
    return (
        digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None,
        size if type(size) is int and 0 <= size <= MAX_OUTPUT_BYTES else MAX_OUTPUT_BYTES,
    )


def failed(live: LiveRun, pod: Pod, leg: Leg, ended: Ended) -> LegError:
    """The leg's error, with its log fetched and the way to read it: codes alone mend no workload."""
    remedy = ""
    with contextlib.suppress(RemoteError, OSError):
        if not leg.slot.lifecycle:
            # It disclosed its payload anyway; the run folder is its owner's, and no part of the bundle.
            place = live.folder.sealed(leg.id, leg.launch, "raw.log")
            log = _fetch(live, pod, f"{leg.pod_folder}/runtime.log", place)
            if log is not None and log.stat().st_size:
                remedy = f"its log is {log}"
        elif fetch_sealed(live, pod, leg, "log.sealed") is not None:
            remedy = f"its log is sealed for you: glasshouse open {live.folder.path}"
    arm = "protected" if leg.slot.lifecycle else "raw"
    what, code = f"the {arm} leg failed", ended.code or Code.RUNTIME_ERROR
    if why := _PACKAGE.get(code):
        what = f"the {arm} leg cannot open the sealed package on the machine: {why}"
        remedy = "take a machine, or a folder on it, where nobody else writes or tidies up"
    return LegError(what, code=code, remedy=remedy)


def tell_end(live: LiveRun, ready: Sealed, leg: Leg, ended: JobExit) -> None:
    """Say what came back of a job; of one that ended badly the last that it printed, and a hint if any."""
    lines = last_lines(live, ready, leg)
    ours = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    theirs = [line for line in lines if not line.startswith(SAID)]
    if not ended.well:
        for line in theirs[-LAST_LINES:]:
            live.screen.say(f"| {line}")
    for pattern, hint, always in _HINTS:
        if (always or not ended.well) and any(pattern.search(line) for line in theirs[-LAST_LINES:]):
            live.screen.warn(hint)
    if ended.out_of_time:
        live.screen.warn(_time_over(live))
    for line in ours:
        if f"{SAID}{line}".startswith(NOT_CARRIED):
            live.ending.tell(line, 0)  # last of all, where nobody overlooks it
            continue
        show = live.screen.alarm if line.startswith(LOST) else live.screen.say
        show(line)
    found = execs(live.folder.parts / leg.file("events.jsonl"))
    if found is not None and not found.shown_none:
        live.screen.say(f"the command started {found.words} by itself, and the row says so: exec-in-leg")
    if found is not None and (found.refused or (found.counted == "filter" and not ended.well)):
        tried = f"refused {found.refused} times" if found.refused > 1 else "refused"
        live.screen.warn(
            f"policy={live.run.spec.policy.name} lets a command start no programs of its own (git, a "
            f"compiler, spawned workers, torch.compile): {tried} by the system call filter"
        )
    back = not any(line.startswith((NOTHING, LOST)) or _NO_FILES.search(line) for line in ours)
    live.ending.nothing_back = not back
    what = "its files and its log are" if back else "its log is"
    live.screen.say(f"{what} sealed for you: glasshouse open {live.folder.path}")


def _time_over(live: LiveRun) -> str:
    """Which time was over, by the setting: of a rental, boot and upload may have left less than that."""
    spec = live.run.spec
    hours = spec.model.max_hours if isinstance(spec.model, Job) else None
    left = ", or what was left of the rental's time," if spec.paid else ""
    if hours is not None:
        return f"it was asked to end: model.max_hours={hours:g}{left} was over"
    if spec.duration is not None:
        margin = f"duration={spec.duration:g} and {spec.measure.leg_deadline_extra_sec:g} s to start in"
        return f"it was asked to end: its ceiling, {margin}{left} was over"
    return "it was asked to end: the longest time that there is was over (model.max_hours is not given)"


def last_lines(live: LiveRun, ready: Sealed, leg: Leg, count: int = 3 * LAST_LINES) -> list[str]:
    """The end of what a leg's workload printed, out of the log that was sealed for this machine's owner.

    Fit for a terminal: the pod, or whoever wrote the workload, may have printed anything. Empty: no log.
    """
    path = live.folder.sealed(leg.id, leg.launch, "log.sealed")
    context = sealed_under(live.run.id, leg.id, leg.launch, ready.manifest_hash)
    try:
        with open_outputs(path, keys.owner_keys(), context=context) as opened:
            text = bytes(opened.files.get("trainer.log", b"")).decode("utf-8", "replace")
    except (SealError, UsageError, OSError):
        return []
    return readable_lines(text)[-count:]


def readable_lines(text: str) -> list[str]:
    """The lines of a log that say something, as a terminal may show them."""
    lines = map(_printable, MOVES.sub("\n", text).splitlines())
    return [line for line in lines if line.strip()]


def _printable(line: str) -> str:
    text = plain(line.rpartition("\r")[2])
    shown = "".join(char if char.isprintable() else " " for char in text)
    most = SAID_CHARS if shown.startswith(SAID) else LINE_CHARS
    return shown if len(shown) <= most else f"{shown[:most]} ..."


def fetch_sealed(
    live: LiveRun, pod: Pod, leg: Leg, name: str, *, max_bytes: int = MAX_LOG_BYTES, sha256: str | None = None
) -> Path | None:
    """Bring a file that a leg sealed home, beside the bundle, unless it is there; None where it has none.

    Raises as Pod.fetch_file does.
    """
    place = live.folder.sealed(leg.id, leg.launch, name)
    if place.exists():
        return place
    return _fetch(live, pod, f"{leg.pod_folder}/{name}", place, max_bytes=max_bytes, sha256=sha256)


def _fetch(
    live: LiveRun,
    pod: Pod,
    source: str,
    place: Path,
    *,
    max_bytes: int = MAX_LOG_BYTES,
    sha256: str | None = None,
) -> Path | None:
    place.parent.mkdir(exist_ok=True)
    part = place.with_name(f"{place.name}.part")
    meter = Meter("fetching", live.screen.progress)
    there = False

    def move() -> None:
        nonlocal there
        there = pod.exists(source)
        if there:
            pod.fetch_file(source, place, max_bytes=max_bytes, sha256=sha256, progress=meter)

    lost = "connection lost while fetching; reconnecting, and going on from what arrived"
    carry(
        pod,
        move,
        arrived=lambda: part.stat().st_size if part.exists() else 0,
        lost=lambda: live.screen.warn(lost),
    )
    return place if there else None
