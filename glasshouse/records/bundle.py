"""The evidence bundle as a folder: which files it may hold, how it is read, how it is written.

    plan.dsse.json      the registered plan, signed       allocation.json    the machine
    inclusion.json      its place in the ledger (optional) outcome.json      how the run ended
    legs/<leg>/         one folder a launch                release.json      proof of clean-up
    record.json         what judgement says of all this
    bundle.dsse.json    names and digests of all other files, signed

Every file is canonical; a file that is not listed here, a link, or anything oversize fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import host
from glasshouse.canonical import CanonicalError, parse_canonical, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError
from glasshouse.judgement.judge import Judgement, judge
from glasshouse.records.bundle_facts import collect_facts
from glasshouse.records.keys import Keyring, fsync_folder, keyid, public_bytes
from glasshouse.records.signing import BUNDLE_TYPE, sign_statement

MAX_FILE_BYTES = 8 << 20
MAX_BUNDLE_BYTES = 128 << 20
MAX_FILES = 4096
ENVELOPE = "bundle.dsse.json"
RECORD = "record.json"
PLAN = "plan.dsse.json"
REQUIRED = (PLAN, RECORD, "outcome.json")
NAME = re.compile(
    r"(plan\.dsse|bundle\.dsse|allocation|release|outcome|inclusion|record)\.json\Z"
    r"|legs/s\d{3}-(raw|protected)(-l[1-9]\d{0,2})?/"
    r"((exchange|reference|launch|result)\.json|(events|heads)\.jsonl)\Z"
)


@dataclass(frozen=True)
class Found:
    """What lies in a folder: contents by name, and every fault of the listing as (code, detail)."""

    files: Mapping[str, bytes]
    faults: tuple[tuple[str, str], ...]


def read_bundle(folder: Path) -> Found:
    """Read a bundle folder, following no link and opening nothing that is not a listed regular file."""
    files: dict[str, bytes] = {}
    faults: list[tuple[str, str]] = []
    total = 0
    for name, entry in _walk(folder, faults):
        if NAME.match(name) is None:
            faults.append((Code.FILE_UNLISTED, f"{_shown(name)} does not belong to a bundle"))
            continue
        if len(files) >= MAX_FILES or total > MAX_BUNDLE_BYTES:
            faults.append((Code.BUNDLE_TOO_LARGE, "too many files or bytes"))
            break
        try:
            data = host.read_regular(entry, MAX_FILE_BYTES)
        except OSError as error:
            faults.append((Code.FILE_UNREADABLE, f"{name}: {error.strerror}"))
            continue
        total += len(data)
        files[name] = data
    return Found(files, (*faults, *_content_faults(files)))


def bundle_of(files: Mapping[str, bytes]) -> Found:
    """A bundle whose files are in memory already, held to the same rules as a folder."""
    faults = [
        (Code.FILE_UNLISTED, f"{_shown(name)} does not belong to a bundle")
        for name in files
        if NAME.match(name) is None
    ]
    listed = {name: data for name, data in files.items() if NAME.match(name) is not None}
    if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BUNDLE_BYTES:
        faults.append((Code.BUNDLE_TOO_LARGE, "too many files or bytes"))
    faults += [
        (Code.FILE_UNREADABLE, f"{name}: larger than {MAX_FILE_BYTES} bytes")
        for name, data in listed.items()
        if len(data) > MAX_FILE_BYTES
    ]
    return Found(listed, (*faults, *_content_faults(listed)))


def _content_faults(files: Mapping[str, bytes]) -> list[tuple[Code, str]]:
    faults = [
        (Code.FILE_NOT_CANONICAL, f"{name} is not in canonical form")
        for name, data in files.items()
        if not _is_canonical(name, data)
    ]
    faults += [
        (Code.FILE_MISSING, f"{name} is missing") for name in (*REQUIRED, ENVELOPE) if name not in files
    ]
    return faults


def _walk(folder: Path, faults: list[tuple[str, str]]) -> list[tuple[str, Path]]:
    """List (name, path) of all that is no folder; folders beyond legs/<leg> are not entered."""
    found: list[tuple[str, Path]] = []
    pending = [("", folder, 0)]
    while pending and len(found) <= MAX_FILES:
        prefix, path, depth = pending.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            faults.append((Code.FOLDER_UNREADABLE, f"{_shown(prefix) or 'bundle'}: {error.strerror}"))
            continue
        if not entries:
            faults.append((Code.FOLDER_EMPTY, f"{_shown(prefix) or 'bundle'} is empty"))
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if (depth == 0 and name == "legs") or depth == 1:
                    pending.append((f"{name}/", Path(entry.path), depth + 1))
                else:
                    faults.append((Code.FILE_UNLISTED, f"folder {_shown(name)} does not belong to a bundle"))
            else:
                found.append((name, Path(entry.path)))
    return found


def _is_canonical(name: str, data: bytes) -> bool:
    lines = [data] if name.endswith(".json") else data.split(b"\n")[:-1]
    if name.endswith(".jsonl") and data and not data.endswith(b"\n"):
        return False
    try:
        for line in lines:
            parse_canonical(line)
    except CanonicalError:
        return False
    return True


def _shown(name: str) -> str:
    """Return a name of the folder's own making as one harmless word."""
    return ascii(name)[1:-1][:120]


def write_bundle(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    run: str,
    key: Ed25519PrivateKey,
    keyring: Keyring,
    now: float,
) -> Judgement:
    """Judge the run from `files` (all but record and envelope), sign, and write the bundle folder.

    The folder appears whole or not at all, and is never overwritten. `keyring` must list the
    operator's and the broker's keys. Raises GlasshouseError when something does not belong there.
    """
    for name, data in files.items():
        if NAME.match(name) is None or name in (RECORD, ENVELOPE):
            raise GlasshouseError("this file does not belong to a bundle", field="file", value=_shown(name))
        if len(data) > MAX_FILE_BYTES or not _is_canonical(name, data):
            raise GlasshouseError("a bundle file is too large or not canonical", field="file", value=name)
    signer = keyring.find(keyid(public_bytes(key)), "operator")
    collected = collect_facts(files, keyring, signer)
    faults = [check for check in collected.checks if not check.ok]
    if faults or collected.facts is None or collected.facts.run != run:
        found = "; ".join(f"{check.code}: {check.detail}" for check in faults) or "another run's plan"
        raise GlasshouseError(f"the bundle would not verify ({found})", field="run", value=run)
    judgement = judge(collected.facts)
    content = {**files, RECORD: judgement.record()}
    digests = {name: sha256_hex(data) for name, data in content.items()}
    predicate = {
        "run": run,
        "recordSha256": digests[RECORD],
        "planSha256": digests[PLAN],
        "createdAt": round(now, 3),
    }
    content[ENVELOPE] = sign_statement(key, BUNDLE_TYPE, predicate, digests)
    _write_folder(folder, content)
    return judgement


def _write_folder(folder: Path, content: Mapping[str, bytes]) -> None:
    if folder.exists():
        raise GlasshouseError("a bundle is never overwritten", field="folder", value=folder.name)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        temporary.mkdir(parents=True)
        for name, data in content.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                host.sync(file.fileno())
        for path in {(temporary / name).parent for name in content} | {temporary}:
            fsync_folder(path)
        temporary.rename(folder)
        fsync_folder(folder.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)
