"""Which checkpoint of a run a job may go on from: what lies at home is held against what its leg signed.

Beside a checkpoint lie the events of its leg from the grant up to the one that names it, and the heads of
them that were countersigned. A checkpoint is good when

    the events begin with this leg's grant, every one is signed by the leg's key    checkpoint-foreign
    and extends the one before, none is missing, the last names a checkpoint        checkpoint-chain-broken
    they extend every head that was countersigned, here and in the run's own files  checkpoint-head-mismatch
    the number in the last one is that of the file                                  checkpoint-renamed
    the file has the size and the digest that it names                              checkpoint-torn
    no countersigned event names a later one, unless it was asked for by number     checkpoint-older
    and, where the policy asks for it, somebody watched when it was made            checkpoint-not-witnessed

The leg's key and its grant are those of the exchange in the run's own bundle (or its parts, before there is
one): neither is taken from what lies beside the checkpoint. Nothing is opened here, and no owner's key is
needed.

Somebody watched: the poll before the one that brought the event lay no more than a few intervals back at
which heads are countersigned, and by the leg's own clock the event was made between the two, counted from the
release and from every head since. What was made in a longer stretch, or was handed out late, may be true and
still not the newest: whoever has the machine could have withheld what came after it.

Where the run has its bundle, its operator's signature says which files the leg had: a bundle that this
machine's operator did not sign, or whose files are others, is refused by the code of that.

What the last leg of a project left as its outputs is newer than every checkpoint of it, and is held against
the same (`left`): the events are those in the run's own files, and the one that names it is `sealed-outputs`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from glasshouse.attestation.claims import Reference
from glasshouse.attestation.evidence import parse_evidence
from glasshouse.attestation.tokens import GRANT_TYP, Times, read_jws
from glasshouse.canonical import CanonicalError, b64u_decode, parse_canonical, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, UsageError, VerificationError
from glasshouse.judgement.caveats import GAP_FACTOR
from glasshouse.lifecycle.checkpoints import MAX_STEPS, Signed, Stored, stored
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.records.bundle import ENVELOPE
from glasshouse.records.chain import MAX_HEAD_BYTES, head_digest, sign_head
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.signing import BUNDLE_TYPE, open_statement
from glasshouse.runtime.cadence import heads_every
from glasshouse.runtime.events import MAX_EVENT_BYTES, check_line, event_hash, first_link
from glasshouse.runtime.params import sealed_under
from glasshouse.schema import Exchange, Head
from glasshouse.spec import Policy, RunSpec

MAX_BYTES: Final = 64 << 20  # of a leg's events, and of its heads (lifecycle/follow.py takes no more)
CLOCKS_SEC: Final = 30.0  # from a grant to its leg's first event, and by which two clocks may differ
_HASHED: Final = 4 << 20
_SEALED = "checkpoint-sealed"
_LEG = re.compile(r"(s\d{3})-protected(?:-l([1-9]\d{0,3}))?\Z")


class RefusedError(GlasshouseError):
    """A checkpoint that nothing is resumed from; `code` says why."""


def refuse(what: str, code: Code, remedy: str = "") -> RefusedError:
    """Make the error of one checkpoint."""
    return RefusedError(what, code=code, remedy=remedy)


@dataclass(frozen=True)
class Leg:
    """One launch of a protected slot, as the run's own files know it.

    events, heads: what they have of its chain; empty where nothing was kept. released_at: Unix seconds of the
    broker's clock.
    """

    run: str
    leg: str
    launch: int
    event_key: Ed25519PublicKey
    grant: str
    manifest_hash: str
    released_at: float
    events: bytes
    heads: bytes

    @classmethod
    def read(cls, folder: Path, run: str, leg: str, launch: int, operators: Sequence[KeyEntry]) -> Leg:
        """Read it from the run's bundle, which one of `operators` signed, or from what is to become that.
        Raises RefusedError.
        """
        name = f"legs/{leg}-protected{'' if launch == 1 else f'-l{launch}'}"
        bundle = folder / "bundle"
        place = (bundle if bundle.is_dir() else folder / "parts") / name
        if bundle.is_dir():
            _check_signed(bundle, name, run, operators)
        try:
            exchange = Exchange.model_validate_json((place / "exchange.json").read_bytes())
            said = parse_canonical((place / "reference.json").read_bytes())
            reference = Reference.from_dict(said)
            if exchange.grant is None:
                raise GlasshouseError("nothing was granted")
            key = Ed25519PublicKey.from_public_bytes(parse_evidence(exchange.evidence).event_key)
            released = Times.of(read_jws(exchange.grant, GRANT_TYP, what="grant"), what="grant").iat
        except (OSError, ValueError, TypeError, GlasshouseError) as error:  # pydantic's is a ValueError
            raise refuse(
                f"launch {launch} of {leg} is none to which {run} released its package",
                Code.CHECKPOINT_FOREIGN,
            ) from error
        heads = _read(place / "heads.jsonl")  # before the events: while a leg goes on, these come first
        return cls(
            run, leg, launch, key, exchange.grant, reference.manifest_hash, float(released),
            _read(place / "events.jsonl"), heads,
        )  # fmt: skip

    @property
    def sealed_under(self) -> dict[str, str]:
        """The context of what the leg sealed, but for a checkpoint's number."""
        return sealed_under(self.run, self.leg, self.launch, self.manifest_hash)


@dataclass(frozen=True)
class Good:
    """A checkpoint that was found good. `whole`: something marked its files as one set.

    steps: as its event says; None: nobody counted. progress: (seconds, units) of the training by then, as the
    events before it report them. newest: the highest number that was countersigned, 0 where none was.
    """

    stored: Stored
    leg: Leg
    sha256: str
    plaintext_sha256: str
    whole: bool
    steps: int | None
    progress: tuple[tuple[float, float], ...]
    witnessed: bool
    newest: int

    @property
    def context(self) -> dict[str, str]:
        """What it was sealed under."""
        return {**self.leg.sealed_under, "checkpoint": str(self.stored.number)}

    @property
    def number(self) -> int | None:
        """Of the checkpoint; None: it is none."""
        return self.stored.number

    @property
    def words(self) -> str:
        """What it is, for a line."""
        return f"checkpoint {self.stored.number} of {self.leg.run}"


@dataclass(frozen=True)
class Left(Good):
    """What a project's last leg left as its outputs: found good, and no checkpoint is newer. `whole`: its
    command ended by itself, and well. `stored` is of the outputs, without a number.
    """

    @property
    def context(self) -> dict[str, str]:
        """What it was sealed under."""
        return self.leg.sealed_under

    @property
    def number(self) -> int | None:
        """None."""
        return None

    @property
    def words(self) -> str:
        """What it is, for a line."""
        return f"the outputs of {self.leg.run}"


@dataclass(frozen=True)
class _Event:
    type: str
    body: dict[str, Any]
    hash: str
    ms: int  # by the leg's own clock


@dataclass(frozen=True)
class _Signed:
    seq: int
    head: str
    time: float


def pick(
    folder: Path,
    run: str,
    spec: RunSpec,
    policy: Policy,
    *,
    number: int | None,
    operators: Sequence[KeyEntry],
) -> Good:
    """Find the checkpoint of a run folder that a job goes on from: the newest, or the one of that number.

    spec: of the run, which says how often heads were countersigned. operators: whose heads count.
    Raises RefusedError, whose remedy names the newest good one at home.
    """
    found = stored(folder)
    if not found:
        raise UsageError(
            "no checkpoint of this run is here", field="from", value=run,
            remedy="private jobs make one every model.checkpoint_min minutes, and a controller fetches it",
        )  # fmt: skip
    wanted = found if number is None else [each for each in found if each.number == number]
    if not wanted:
        raise UsageError(
            "no checkpoint of this number is here", field="from", value=f"{run}@{number}",
            remedy="here: " + ", ".join(f"from={run}@{each.number}" for each in found),
        )  # fmt: skip
    try:
        return check(wanted[0], folder, run, spec, policy, named=number is not None, operators=operators)
    except RefusedError as error:
        if error.code is Code.CHECKPOINT_OLDER:
            remedy = f"from={run}@{wanted[0].number} goes on from it all the same"
        elif (other := newest_good(folder, run, spec, policy, operators=operators)) is not None:
            remedy = f"the newest good one at home: from={run}@{other.stored.number}"
        else:
            remedy = error.remedy or "no other checkpoint at home is good"
        raise RefusedError(error.what, code=error.code, remedy=remedy) from error


def newest_good(
    folder: Path, run: str, spec: RunSpec, policy: Policy, *, operators: Sequence[KeyEntry]
) -> Good | None:
    """The newest good one at home, whatever was countersigned after it; None where there is none."""
    for each in stored(folder):
        with contextlib.suppress(RefusedError):
            return check(each, folder, run, spec, policy, named=True, operators=operators)
    return None


def check(
    each: Stored,
    folder: Path,
    run: str,
    spec: RunSpec,
    policy: Policy,
    *,
    named: bool,
    operators: Sequence[KeyEntry],
) -> Good:
    """Hold one checkpoint against everything that is known of it. Raises RefusedError."""
    leg = Leg.read(folder, run, each.leg, each.launch, operators)
    words = f"checkpoint {each.number} of {run}"
    events = chain_of(_read(each.events), leg, words)
    own = chain_of(leg.events, leg, words) if leg.events else []
    for mine, theirs in zip(events, own, strict=False):
        if mine.hash != theirs.hash:
            raise refuse(f"{words} has other events than its run kept", Code.CHECKPOINT_HEAD_MISMATCH)
    heads = _heads(_read(each.heads), leg, operators, words) + _heads(leg.heads, leg, operators, words)
    longest = max(events, own, key=len)
    for head in heads:
        if head.seq >= len(longest) or longest[head.seq].hash != head.head:
            raise refuse(
                f"the events of {words} are not those that were countersigned", Code.CHECKPOINT_HEAD_MISMATCH
            )
    body = events[-1].body if events else {}
    if not events or events[-1].type != _SEALED:
        raise refuse(
            f"the events beside {words} do not end with one that names it", Code.CHECKPOINT_CHAIN_BROKEN
        )
    if Signed.of(_SEALED, body) is None or not _counts(body.get("steps"), spec):
        raise refuse(f"the event of {words} is of another form", Code.CHECKPOINT_CHAIN_BROKEN)
    if _numbers(events) != list(range(1, len(_numbers(events)) + 1)):
        raise refuse(f"events are missing beside {words}", Code.CHECKPOINT_CHAIN_BROKEN)
    if body.get("number") != each.number:
        raise refuse(
            f"what lies here as {words} was signed as number {body.get('number')}", Code.CHECKPOINT_RENAMED
        )
    _check_file(each, body, events, words)
    last = max((head.seq for head in heads), default=-1)
    newest = max(_numbers(longest[: last + 1]), default=0)
    if newest > each.number and not named:
        raise refuse(
            f"{words} is older than number {newest}, which was countersigned and is not here",
            Code.CHECKPOINT_OLDER,
        )
    clock = [event.ms / 1000 for event in longest]
    witnessed = _witnessed(len(events) - 1, clock, heads, leg.released_at, spec.measure.head_interval_sec)
    if policy.require_witnessed_checkpoints and not witnessed:
        raise refuse(
            f"{words} was made while no controller watched",
            Code.CHECKPOINT_NOT_WITNESSED,
            f"policy={policy.name} takes none such",
        )
    return Good(
        each, leg, str(body["ciphertextSha256"]), str(body["plaintextSha256"]), body.get("state") == "whole",
        body.get("steps"), _progress(events), witnessed, newest,
    )  # fmt: skip


def outputs_home(
    folder: Path, run: str, spec: RunSpec, operators: Sequence[KeyEntry]
) -> tuple[Leg, Path] | None:
    """The last leg of a project that got its key, and its sealed outputs; None where they are not at home.

    Raises RefusedError where the run's bundle is not what `operators` signed.
    """
    if spec.workload != "project":
        return None
    files = next((folder / name for name in ("bundle", "parts") if (folder / name).is_dir()), folder)
    matches = [_LEG.match(place.name) for place in files.glob("legs/s*")]
    launches = sorted(((match[1], int(match[2] or 1)) for match in matches if match), reverse=True)
    for leg, launch in launches:
        try:
            found = Leg.read(folder, run, leg, launch, operators)
        except RefusedError as error:
            if error.code is Code.CHECKPOINT_FOREIGN:
                continue  # a launch that got no key
            raise
        path = RunFolder(folder).sealed(leg, launch, "outputs.sealed")
        return (found, path) if path.is_file() else None
    return None


def left(
    folder: Path, run: str, spec: RunSpec, policy: Policy, *, operators: Sequence[KeyEntry]
) -> Left | None:
    """What a project's last leg left, held against what that signed; None where nothing is at home, or in it.

    Raises RefusedError as `check` does.
    """
    if (home := outputs_home(folder, run, spec, operators)) is None:
        return None
    (leg, path), words = home, f"the outputs of {run}"
    events = chain_of(leg.events, leg, words)
    heads = _heads(leg.heads, leg, operators, words)
    if any(head.seq >= len(events) or events[head.seq].hash != head.head for head in heads):
        raise refuse(
            f"the events of {words} are not those that were countersigned", Code.CHECKPOINT_HEAD_MISMATCH
        )
    at = next((seq for seq, event in enumerate(events) if event.type == "sealed-outputs"), None)
    if at is None:
        raise refuse(f"no event names {words}", Code.CHECKPOINT_CHAIN_BROKEN)
    result = next((event.body.get("result") for event in events[:at] if event.type == "trained"), None)
    result = result if isinstance(result, dict) else {}
    if result.get("outputDiffers") is False:  # there is nothing in it
        return None
    body = events[at].body
    try:
        digest = _sha256(path)
    except OSError as error:
        raise refuse(f"{words} cannot be read: {error.strerror}", Code.CHECKPOINT_TORN) from error
    if digest != body.get("ciphertextSha256"):
        raise refuse(f"{words} are not here as its leg sealed them", Code.CHECKPOINT_TORN)
    clock = [event.ms / 1000 for event in events]
    witnessed = _witnessed(at, clock, heads, leg.released_at, spec.measure.head_interval_sec)
    if policy.require_witnessed_checkpoints and not witnessed:
        raise refuse(
            f"{words} were sealed while no controller watched", Code.CHECKPOINT_NOT_WITNESSED,
            f"policy={policy.name} takes none such",
        )  # fmt: skip
    steps, how = result.get("steps"), result.get("exit")
    counted = type(steps) is int and steps >= 0 and bool(result.get("weights"))
    well = isinstance(how, dict) and how.get("code") == 0 and how.get("signal") is None
    place = path.parent
    at_home = Stored(0, path, place / "none", place / "none", leg.leg, leg.launch)
    return Left(
        at_home,
        leg,
        digest,
        str(body.get("plaintextSha256")),
        well,
        steps if counted else None,
        (),
        witnessed,
        newest=0,  # there is none after it
    )


def countersign(good: Good, operator: Ed25519PrivateKey, now: float) -> None:
    """Countersign the events beside a checkpoint, unless that was done: whoever fetches it first does it."""
    events = _read(good.stored.events).splitlines()
    for line in _read(good.stored.heads).splitlines():
        if Head.model_validate_json(line).seq >= len(events) - 1:
            return
    where = good.leg
    line = sign_head(
        operator, run=where.run, leg=where.leg, launch=where.launch,
        seq=len(events) - 1, head=event_hash(events[-1]), time=now,
    )  # fmt: skip
    with good.stored.heads.open("ab") as stream:
        stream.write(line + b"\n")


def chain_of(data: bytes, leg: Leg, words: str) -> list[_Event]:
    """Check a leg's events from its grant on.

    Raises RefusedError: checkpoint-foreign, checkpoint-chain-broken.
    """
    found: list[_Event] = []
    previous, clock = first_link(leg.grant), 0
    for number, line in enumerate(data.split(b"\n")[:-1]):
        code = Code.CHECKPOINT_CHAIN_BROKEN if number else Code.CHECKPOINT_FOREIGN
        try:
            event = check_line(line[: MAX_EVENT_BYTES + 1], leg.event_key)
        except CanonicalError as error:
            said = "an event beside it was not signed by its leg" if number else "it is of another leg"
            raise refuse(f"{words}: {said}", code) from error
        if event["seq"] != number or event["prev"] != previous or event["tMs"] < clock:
            said = "an event beside it is missing or out of place" if number else "it is of another leg"
            raise refuse(f"{words}: {said}", code)
        previous, clock = event_hash(line), event["tMs"]
        found.append(_Event(event["type"], event["body"], previous, clock))
    return found


def _heads(data: bytes, leg: Leg, operators: Sequence[KeyEntry], words: str) -> list[_Signed]:
    found = []
    for line in data.split(b"\n"):
        if not line:
            continue
        try:
            core = parse_canonical(line, max_bytes=MAX_HEAD_BYTES)
            head = Head.model_validate_json(line)
            signature = b64u_decode(core.pop("sig"), size=64)
        except (CanonicalError, ValidationError) as error:
            raise refuse(f"a head beside {words} is none", Code.CHECKPOINT_HEAD_MISMATCH) from error
        digest = head_digest(core)
        ours = (head.run, head.leg, head.launch) == (leg.run, leg.leg, leg.launch)
        if not ours or not any(key.check(signature, digest) for key in operators):
            raise refuse(
                f"a head beside {words} was not countersigned for its leg", Code.CHECKPOINT_HEAD_MISMATCH
            )
        found.append(_Signed(head.seq, head.head, head.time))
    return found


def _numbers(events: Sequence[_Event]) -> list[int]:
    return [int(event.body["number"]) for event in events if event.type == _SEALED and _is_count(event)]


def _is_count(event: _Event) -> bool:
    number = event.body.get("number")
    return type(number) is int and number > 0


def _check_file(each: Stored, body: dict[str, Any], events: Sequence[_Event], words: str) -> None:
    """See that the file is the one that its event names."""
    try:
        size, digest = each.path.stat().st_size, _sha256(each.path)
    except OSError as error:
        raise refuse(f"{words} cannot be read: {error.strerror}", Code.CHECKPOINT_TORN) from error
    if (size, digest) == (body.get("bytes"), body.get("ciphertextSha256")):
        return
    for event in events[:-1]:
        if event.type == _SEALED and event.body.get("ciphertextSha256") == digest:
            raise refuse(
                f"what lies here as {words} is number {event.body.get('number')}", Code.CHECKPOINT_RENAMED
            )
    raise refuse(f"{words} is not the {body.get('bytes')} bytes that its leg sealed", Code.CHECKPOINT_TORN)


def _counts(steps: Any, spec: RunSpec) -> bool:
    """Whether an event's steps can be added to those of the runs before."""
    before = 0 if spec.continues is None else spec.continues.steps or 0
    return steps is None or before + int(steps) <= MAX_STEPS


def _witnessed(
    seq: int, clock: Sequence[float], heads: Sequence[_Signed], released_at: float, interval: float
) -> bool:
    """Whether somebody watched when event `seq` was made. clock: when each event was, by the leg's clock.

    Its clock stands where the first event was no later than the release and each head after the event that
    it covers; so what came later than the promptest of these allows was held back for the difference.
    """
    covers = min((head.time for head in heads if head.seq >= seq), default=None)
    if covers is None:
        return False
    polls = [(released_at, clock[0])]
    polls += [(head.time, clock[head.seq]) for head in heads if head.time < covers]  # of earlier polls
    most = GAP_FACTOR * heads_every(covers - released_at, interval)
    late = covers - clock[seq] - min(at - made for at, made in polls)
    return covers - max(at for at, _ in polls) <= most and late <= max(most, CLOCKS_SEC)


def _check_signed(bundle: Path, name: str, run: str, operators: Sequence[KeyEntry]) -> None:
    """See that an operator signed the bundle, and with it the files of this launch. Raises RefusedError."""
    try:
        envelope = bundle / ENVELOPE
        if not envelope.is_file():
            raise refuse(f"the bundle of {run} lacks its signature", Code.FILE_MISSING)
        opened = open_statement(
            envelope.read_bytes(), Keyring(tuple(operators)), role="operator", predicate_type=BUNDLE_TYPE
        )
        place = bundle / name
        there = {f"{name}/{path.name}" for path in place.iterdir()} if place.is_dir() else set()
        signed = {each for each in opened.subjects if each.startswith(f"{name}/")}
        for each in sorted(there | signed):
            if each not in there:
                raise refuse(f"{each} of {run} was signed and is missing", Code.FILE_MISSING)
            if each not in signed:
                raise refuse(f"{each} of {run} is not in the signed list", Code.FILE_UNLISTED)
            if sha256_hex((bundle / each).read_bytes()) != opened.subjects[each]:
                raise refuse(f"{each} of {run} is not the file that was signed", Code.DIGEST_MISMATCH)
    except VerificationError as error:
        raise refuse(
            f"the bundle of {run} was not signed by this machine's operator: {error.what}",
            error.code or Code.BUNDLE_SIGNATURE,
            "go on where the run was started, with the GLASSHOUSE_HOME of then",
        ) from error
    except OSError as error:
        raise refuse(f"the bundle of {run} cannot be read: {error.strerror}", Code.FILE_UNREADABLE) from error


def _progress(events: Sequence[_Event]) -> tuple[tuple[float, float], ...]:
    found = []
    for event in events:
        seconds, units = event.body.get("elapsedSec"), event.body.get("units")
        if event.type != "progress" or event.body.get("phase") != "measure":
            continue
        if not (isinstance(seconds, int | float) and isinstance(units, int | float)):
            continue
        if min(seconds, units) >= 0 and max(seconds, units) <= MAX_STEPS:
            found.append((float(seconds), float(units)))
    return tuple(found)


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_HASHED):
            state.update(data)
    return state.hexdigest()


def _read(path: Path) -> bytes:
    """Read the whole lines of events or heads; nothing where there are none, or more than any leg has."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError:
        return b""
    return data[: data.rfind(b"\n") + 1]
