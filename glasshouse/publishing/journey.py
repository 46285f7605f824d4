"""A journey: one stay of this software on a borrowed machine without a network.

    1. before the kit leaves, it gets a home with keys of its own, and the operator's ledger a leaf that
       names them: `journey` with seed, budget and the id of the key that will sign the journey's log
    2. the journey's own log begins with `journey-log`, which names that leaf, and with its other keys
    3. on the borrowed machine runs register and end there, as anywhere
    4. `pack_journey` makes one archive of what they signed; `read_journey` reads it as hostile input
    5. what is published closes the journey in the operator's ledger (publish.py)

    log/leaves.jsonl, log/checkpoint.txt    the journey's whole log, signed when it was packed
    keyring.json                            its three public keys
    bundles/<run>/...                       the evidence of each run that ended as a row
    extra/...                               reports, logs and raw telemetry; looked at, never published
    left-out.json                           what was to come along and could not

The operator's own private keys never travel, and none come back.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import UsageError, VerificationError
from glasshouse.publishing import archive
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES, KeyLeaf, PublishedLog, check_log
from glasshouse.records.bundle import ENVELOPE, bundle_of, read_bundle
from glasshouse.records.keys import Keyring, atomic_write, parse_keyring
from glasshouse.records.leaf_bodies import JourneyBody, JourneyLogBody, KeyBody
from glasshouse.records.ledger import Leaf, Ledger, sign_checkpoint
from glasshouse.records.secrets import holds_private_key
from glasshouse.records.verify import VerifiedRow, verify_files

KEYRING = "keyring.json"
LEFT_OUT = "left-out.json"
LOG = "log/"
BUNDLES = "bundles/"
EXTRA = "extra/"
SIGNERS = ("operator", "broker", "publisher")
MAX_LEAVES = 4096  # of a journey's log: two a run, in minutes; checking a quarter million took 27 s

_BUNDLED = re.compile(r"bundles/(?P<run>20\d{6}-\d{6}-[a-z2-7]{6})/(?P<file>.+)\Z")
_BUDGET = re.compile(r"(?P<count>[1-9]\d{0,4})(?P<unit>[smh])\Z")


@dataclass(frozen=True)
class Journey:
    """A journey that was opened: what stands in both logs. budget_sec: seconds on the borrowed machine.

    commitment: id of the key that signs its log. opened_in, open_serial: the log that announces it, and
    the leaf there. opened_at: Unix seconds.
    """

    id: str
    seed: int
    budget_sec: int
    commitment: str
    opened_in: str
    open_serial: int
    opened_at: float

    def as_bytes(self) -> bytes:
        """The file that the kit carries."""
        return canonical_json(
            {
                "journey": self.id,
                "seed": self.seed,
                "budgetSec": self.budget_sec,
                "commitment": self.commitment,
                "openedIn": self.opened_in,
                "openSerial": self.open_serial,
                "openedAt": self.opened_at,
            }
        )


@dataclass(frozen=True)
class Packed:
    """What an archive holds: runs whose bundle is in it, further files, and (name, why) of what is not."""

    size: int
    runs: tuple[str, ...]
    extra: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Returned:
    """An archive that holds together under the keys it offers; whether to trust those is not said here."""

    log: PublishedLog
    keyring: Keyring
    bundles: Mapping[str, Mapping[str, bytes]]
    extra: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = field(default=())

    @property
    def id(self) -> str:
        """The journey's name."""
        return "" if self.log.journey is None else self.log.journey.journey

    def rows(self, keyring: Keyring) -> list[VerifiedRow]:
        """Verify every bundle under a keyring. Raises VerificationError."""
        return [_verified(run, files, keyring) for run, files in sorted(self.bundles.items())]


def budget_seconds(text: str) -> int:
    """Seconds of a budget such as 9m, 540s or 1h. Raises UsageError."""
    match = _BUDGET.match(text)
    seconds = 0 if match is None else int(match["count"]) * {"s": 1, "m": 60, "h": 3600}[match["unit"]]
    if not 1 <= seconds <= 86_400:
        raise UsageError(
            "not a budget", field="budget", value=text[:20], remedy="give a time of at most 24h, such as 9m"
        )
    return seconds


def open_journey(home: Path, *, seed: int, budget_sec: int, ledger: Ledger, operator_log: str) -> Journey:
    """Announce a journey in the operator's ledger, and begin its own log in `home`.

    home: a GLASSHOUSE_HOME with fresh keys (`glasshouse keys --make`) and nothing else. operator_log: key
    of the operator's log (ledger.log_key). The leaf is durable when this returns. Raises UsageError for a
    home that was used before.
    """
    ring = parse_keyring((home / "keys" / KEYRING).read_bytes())
    own = Ledger(home / "state" / "ledger")
    signers = {role: ring.with_role(role) for role in SIGNERS}
    if own.leaves() or any(len(entries) != 1 for entries in signers.values()):
        raise UsageError(
            "a journey needs a home with fresh keys", field="home", value=home, remedy="give an empty folder"
        )
    commitment = signers["publisher"][0].keyid
    now = time.time()
    code = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(6))
    name = f"{time.strftime('%Y%m%d', time.gmtime(now))}-{code}"
    serial = ledger.append(JourneyBody(name, seed, budget_sec, commitment))
    own.append(JourneyLogBody(name, seed, budget_sec, opened_in=operator_log, open_serial=serial))
    for role in ("operator", "broker"):
        own.append(KeyBody(signers[role][0].keyid, role, "added"))
    opened = float(ledger.leaves()[serial].body["time"])
    return Journey(name, seed, budget_sec, commitment, operator_log, serial, opened)


# --- on the borrowed machine -------------------------------------------------------------------------


def pack_journey(home: Path, runs: Sequence[Path], extra: Sequence[Path], out: Path) -> Packed:
    """Write one archive of all that a journey has signed so far, at most 16 MiB.

    home: the journey's GLASSHOUSE_HOME; runs: folders of run folders; extra: files and folders; none
    of its `keys`, and no file with a private key, is packed from there. Right at
    any moment: a run that goes on, or was cut, is left as an open plan of the log. What does not fit is left
    out, largest of `extra` first, and listed. Raises UsageError for a home that is no journey's.
    """
    leaves = Ledger(home / "state" / "ledger").leaves()
    key = _publisher(home)
    ring = parse_keyring((home / "keys" / KEYRING).read_bytes())
    if not leaves or leaves[0].kind != "journey-log":
        raise UsageError("no journey began there", field="home", value=home, remedy="give the kit's home")
    entries = [
        replace(entry, label=f"{entry.role} of the journey", local=False)
        for entry in sorted(ring.entries, key=lambda entry: entry.role)
        if entry.role in SIGNERS
    ]
    left: dict[str, str] = {}
    fixed = {
        KEYRING: Keyring(tuple(entries)).as_bytes(),
        f"{LOG}{LEAVES}": b"".join(leaf.data + b"\n" for leaf in leaves),
        f"{LOG}{CHECKPOINT}": sign_checkpoint(leaves, key).encode("utf-8"),
    }
    bundles: dict[str, dict[str, bytes]] = {}
    for leaf in leaves:
        if leaf.kind == "row":
            run = str(leaf.body["run"])
            files = _finished(run, leaf, runs)
            if files is None:
                left[f"{BUNDLES}{run}"] = "its bundle is not among the runs given"
            else:
                bundles[run] = files
    found = _extra(extra, left, (home / "keys").resolve())
    return _write_fitting(out, fixed, bundles, found, left)


def _publisher(home: Path) -> Ed25519PrivateKey:
    path = home / "keys" / "publisher.ed25519.pem"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise UsageError(
            "the journey's publisher key cannot be read",
            field="key",
            value=path,
            remedy="give the kit's home",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("not an Ed25519 key", field="key", value=path)
    return key


def _finished(run: str, leaf: Leaf, folders: Sequence[Path]) -> dict[str, bytes] | None:
    """Files of the bundle that a row leaf names, None where it lies in none of the folders."""
    for folder in folders:
        if not (folder / run / "bundle").is_dir():
            continue
        found = read_bundle(folder / run / "bundle")
        digest = sha256_hex(found.files.get(ENVELOPE, b""))
        if not found.faults and digest == leaf.body["bundleSha256"]:
            return {f"{BUNDLES}{run}/{name}": data for name, data in found.files.items()}
    return None


def _extra(places: Sequence[Path], left: dict[str, str], keys: Path) -> dict[str, bytes]:
    """Further files by their name in the archive.

    What is no plain file, lies in the folder `keys`, or holds a private key in a form that the secret scan
    knows, goes to `left`.
    """
    found: dict[str, bytes] = {}
    for path, name in _walk(places):
        named = f"{EXTRA}{name}"
        shown = ascii(named)[1:-1][:120]
        if not archive.may_hold(named) or named in found:
            left[shown] = "its name cannot be packed, or is taken"
        elif path.is_symlink() or not path.is_file():
            left[shown] = "not a plain file"
        elif path.resolve().is_relative_to(keys):
            left[shown] = "it lies among the journey's keys"
        elif path.stat().st_size > archive.MAX_CONTENT_BYTES // 2:
            left[shown] = f"{path.stat().st_size} bytes"
        elif holds_private_key(data := path.read_bytes()):
            left[shown] = "it holds a private key"
        else:
            found[named] = data
    return found


def _walk(places: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for place in places:
        if place.is_dir():
            yield from (
                (path, path.relative_to(place).as_posix())
                for path in sorted(place.rglob("*"))
                if path.is_symlink() or not path.is_dir()
            )
        else:
            yield place, place.name


def _write_fitting(
    out: Path,
    fixed: dict[str, bytes],
    bundles: dict[str, dict[str, bytes]],
    extra: dict[str, bytes],
    left: dict[str, str],
) -> Packed:
    """Write what fits. The log always does; the largest of `extra` goes first, then the last bundles."""
    while True:
        listed = canonical_json([{"name": name, "why": why} for name, why in sorted(left.items())])
        files = {**fixed, **extra, LEFT_OUT: listed}
        for named in bundles.values():
            files |= named
        if sum(map(len, files.values())) + 1024 * len(files) <= archive.MAX_CONTENT_BYTES // 2:
            data = archive.write_archive(files)
            if len(data) <= archive.MAX_ARCHIVE_BYTES and len(files) <= archive.MAX_MEMBERS:
                break
        if extra:
            largest = max(extra, key=lambda name: (len(extra[name]), name))
            left[largest] = f"{len(extra.pop(largest))} bytes: the archive was full"
        elif bundles:
            left[f"{BUNDLES}{max(bundles)}"] = "the archive was full"
            del bundles[max(bundles)]
        else:
            raise UsageError("the log alone is too large for an archive", field="archive", value=out)
    atomic_write(out, data)
    return Packed(len(data), tuple(sorted(bundles)), tuple(sorted(extra)), tuple(sorted(left.items())))


# --- on the operator's machine -----------------------------------------------------------------------


def read_journey(path: Path) -> Returned:
    """Read an archive as hostile input and verify all of it under the keys that it offers.

    Raises UsageError where it cannot be read, VerificationError: those of archive.py, archive-unlisted,
    archive-missing, journey-too-long, journey-keys, journey-none, journey-bundle, and those of the log and
    the bundles.
    """
    try:
        with path.open("rb") as file:
            data = file.read(archive.MAX_ARCHIVE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the archive cannot be read: {error.strerror}", field="from", value=path, remedy="give a file"
        ) from error
    files = archive.read_archive(data)
    bundles: dict[str, dict[str, bytes]] = {}
    extra = []
    for name in list(files):
        if (match := _BUNDLED.match(name)) is not None:
            bundles.setdefault(match["run"], {})[match["file"]] = files[name]
        elif name.startswith(EXTRA):
            extra.append(name)
        elif name not in (KEYRING, LEFT_OUT, f"{LOG}{LEAVES}", f"{LOG}{CHECKPOINT}"):
            raise _refused(Code.ARCHIVE_UNLISTED, f"{name} does not belong to a journey")
    for name in (KEYRING, LEFT_OUT, f"{LOG}{LEAVES}", f"{LOG}{CHECKPOINT}"):
        if name not in files:
            raise _refused(Code.ARCHIVE_MISSING, f"{name} is missing")
    ring = _offered(files[KEYRING])
    try:
        note = files[f"{LOG}{CHECKPOINT}"].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(Code.NOTE_MALFORMED, "the checkpoint is not UTF-8") from error
    if files[f"{LOG}{LEAVES}"].count(b"\n") > MAX_LEAVES:
        raise _refused(Code.JOURNEY_TOO_LONG, f"its log has more than {MAX_LEAVES} entries")
    log = check_log(files[f"{LOG}{LEAVES}"], note, ring)
    _require_begun(log, ring)
    returned = Returned(log, ring, bundles, tuple(extra), _left_out(files[LEFT_OUT]))
    for row in returned.rows(ring):
        entry = log.rows.get(row.id)
        told = None if entry is None else (entry.run, entry.status, entry.bundle_sha256)
        if told != (row.run, row.judgement.status, row.bundle_sha256):
            raise _refused(Code.JOURNEY_BUNDLE, f"the log does not name the bundle of {row.run}")
    return returned


def _offered(data: bytes) -> Keyring:
    """The three keys of a journey, each valid throughout."""
    ring = parse_keyring(data)
    plain = all(
        (entry.valid_from, entry.valid_until, entry.local) == (None, None, False) for entry in ring.entries
    )
    if not plain or sorted(entry.role for entry in ring.entries) != sorted(SIGNERS):
        raise _refused(Code.JOURNEY_KEYS, "it does not offer one key each of operator, broker and publisher")
    return ring


def _require_begun(log: PublishedLog, ring: Keyring) -> None:
    """The log is a journey's, and names the other two keys before its first plan: nobody can slip one in."""
    if log.journey is None:
        raise _refused(Code.JOURNEY_NONE, "its log is not a journey's")
    first = min((plan.serial for plan in log.plans), default=len(log.entries))
    named = {
        (entry.role, entry.keyid)
        for entry in log.entries[:first]
        if isinstance(entry, KeyLeaf) and entry.state == "added"
    }
    for entry in ring.entries:
        if entry.role != "publisher" and (entry.role, entry.keyid) not in named:
            raise _refused(Code.JOURNEY_KEYS, f"its log does not name the {entry.role} key that it offers")


def _verified(run: str, files: Mapping[str, bytes], keyring: Keyring) -> VerifiedRow:
    try:
        row = verify_files(bundle_of(files), keyring).require()
    except VerificationError as error:
        raise VerificationError(f"{run}: {error.what}", codes=error.codes, remedy=error.remedy) from error
    if row.run != run:
        raise _refused(Code.JOURNEY_BUNDLE, f"the bundle of {row.run} lies under {run}")
    return row


def _left_out(data: bytes) -> tuple[tuple[str, str], ...]:
    try:
        items = parse_canonical(data)
        found = tuple((str(item["name"]), str(item["why"])) for item in items)
    except (CanonicalError, KeyError, TypeError) as error:
        raise _refused(Code.ARCHIVE_MALFORMED, f"{LEFT_OUT} is not a list") from error
    return tuple((_plain(name), _plain(why)) for name, why in found)


def _plain(text: str) -> str:
    """What a stranger wrote, as harmless words for a terminal."""
    return ascii(text)[1:-1][:160]


def _refused(code: Code, detail: str) -> VerificationError:
    return VerificationError(f"the archive is not a journey's as it was packed: {detail}", codes=[code])
