"""A checkpoint opened for the package of the job that goes on from it.

Its plaintext lies in this process's memory only: of a project a piece at a time, decrypted again in each of
sealing's two passes; of any other workload its state whole, overwritten when the package is sealed. No file
is made of it. It is held against what its leg signed once more, since time has passed since the plan.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.errors import SealError, UsageError
from glasshouse.judgement.record import Record
from glasshouse.lifecycle import checkpoints, restore
from glasshouse.lifecycle.checkpoints import event_of, stored
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.records import keys
from glasshouse.runtime.checkpointing import MADE
from glasshouse.runtime.params import WHEELS_FOLDER
from glasshouse.runtime.resume import INDEX, MAX_VALUES_BYTES, PREFIX, TENSORS, VALUES, made
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.memory import overwrite, private_region
from glasshouse.sealing.tree_index import INDEX_NAME, PIECE_PREFIX, Entry, Index, parse_index
from glasshouse.sealing.unpacking import CheckedOutputs, checked_outputs
from glasshouse.spec import Continues, RunSpec
from glasshouse.workloads.package import MAX_FILE_BYTES, Resumed

FEW = 5
_STATE = {TENSORS: b"state.safetensors", VALUES: b"state.json"}
_NUMBERED = re.compile(rb"(?:.*/)?checkpoint-([0-9]{1,12})/\Z", re.DOTALL)
Say = Callable[[str], object]


def line(spec: RunSpec) -> list[str]:
    """What a person is told first of a run that goes on; nothing of one that begins anew."""
    before = spec.continues
    if before is None:
        return []
    # What a project counts is of the moment of sealing; what it saved last may be some steps older.
    # And what was made again after an earlier save of the chain is counted twice.
    most = "at most " if len(before.runs) > 1 else ""
    own = f"sealed when {most}{before.steps} optimizer steps were made"
    when = own if spec.workload == "project" else f"after {before.steps} optimizer steps"
    steps = "" if before.steps is None else f", {when}"
    what = "the outputs" if before.number is None else f"checkpoint {before.number}"
    seen = "" if before.witnessed else "; no controller watched when it was made: checkpoint-unwitnessed"
    return [f"going on from {what} of {before.runs[-1]}{steps}{seen}"]


def going_on_line(folder: Path, record: Record) -> str:
    """What to do with the checkpoints of a run that did not come to its end; "" where there are none."""
    if record.status == "verified":
        return ""
    name = record.run if folder.resolve().parent == Path("runs").resolve() else folder
    with contextlib.suppress(restore.RefusedError):  # the run itself is over, and this is a hint
        if restore.outputs_home(folder, record.run, RunFolder(folder).saved().spec, operators()) is not None:
            return f"go on from what it left: glasshouse from={name}"
    if not (at_home := stored(folder)):
        return ""
    return f"go on from its checkpoint {at_home[0].number}: glasshouse from={name}"


def going_on(spec: RunSpec, say: Say) -> Callable[[], AbstractContextManager[Resumed]] | None:
    """What opens the checkpoint that a run goes on from, for its packer; None where it begins anew."""
    return None if spec.continues is None else lambda: opened(spec, say)


@contextmanager
def opened(spec: RunSpec, say: Say = lambda _: None) -> Iterator[Resumed]:
    """Give what the run of `spec` goes on from, while this lasts. `say` is told what may be torn of it.

    Raises RefusedError (restore.py) and UsageError where the checkpoint is not what was planned any more.
    """
    assert spec.continues is not None
    good = found(spec.continues, spec)
    if good.number is not None:  # the events of the outputs are the run's own, and stay as they are
        restore.countersign(good, keys.operator_key(), time.time())
    words = good.words
    try:
        with checked_outputs(
            good.stored.path, keys.owner_keys(), context=good.context, plaintext_sha256=good.plaintext_sha256
        ) as package:
            if INDEX_NAME not in package.files:
                raise UsageError("this checkpoint holds no files", field="from", value=words, remedy=_ANOTHER)
            index = parse_index(package.files[INDEX_NAME])
            _doubts(good, index, package, say)
            if spec.workload == "project":
                _check_writable(index, words)
                yield Resumed({INDEX: package.files[INDEX_NAME]}, _Pieces(package), index.nbytes)
                return
            with _state(index, package, words) as files:
                yield Resumed(files)
    except SealError as error:
        raise _explained(error, words) from error


def check_beforehand(spec: RunSpec) -> None:
    """Open what a run goes on from once, if anything, while nothing is rented. Raises as `opened`."""
    if spec.continues is not None:
        with opened(spec):
            pass


def _check_writable(index: Index, words: str) -> None:
    """No job makes files in the folder of its wheels: what is installed there comes with the next package."""
    for entry in index.entries:
        if entry.path.split(b"/")[0] == os.fsencode(WHEELS_FOLDER):
            raise UsageError(
                f"this checkpoint has files in {WHEELS_FOLDER}, where only the package has any",
                field="from", value=words, remedy=_ANOTHER,
            )  # fmt: skip


_ANOTHER = "name another with from=RUN@N, or begin anew without from="


@dataclass(frozen=True)
class Told:
    """What a state of a class of the owner's says itself. counts_on: it holds the steps of the whole chain;
    seconds: that its own run trained until it was written, 0 where it does not say.
    """

    counts_on: bool
    seconds: float


def told(good: restore.Good) -> Told:
    """Read that. Raises UsageError where it holds no state, and SealError."""
    words = f"checkpoint {good.stored.number} of {good.leg.run}"
    try:
        with checked_outputs(
            good.stored.path, keys.owner_keys(), context=good.context, plaintext_sha256=good.plaintext_sha256
        ) as package:
            if INDEX_NAME not in package.files:
                raise UsageError("this checkpoint holds no files", field="from", value=words, remedy=_ANOTHER)
            index = parse_index(package.files[INDEX_NAME])
            names = _newest(index, words)
            values, own = (
                _small(index, package, names.get(name)) for name in (_STATE[VALUES], MADE.encode())
            )
    except SealError as error:
        raise _explained(error, words) from error
    seconds = own.get("elapsedSec")
    if not isinstance(seconds, int | float) or not 0 <= seconds <= checkpoints.MAX_STEPS:
        seconds = 0.0
    return Told(made(values) is not None, float(seconds))


def _small(index: Index, package: CheckedOutputs, entry: Entry | None) -> dict[str, Any]:
    """An object out of a checkpoint's file; an empty one where there is none."""
    if entry is None or entry.nbytes > MAX_VALUES_BYTES:
        return {}
    data = bytearray(entry.nbytes)
    try:
        _fill(index, package, {entry.path: memoryview(data)})
        found = parse_json(bytes(data), max_bytes=MAX_VALUES_BYTES)
    except CanonicalError:
        return {}
    finally:
        data[:] = bytes(len(data))
    return found if isinstance(found, dict) else {}


def found(continues: Continues, spec: RunSpec) -> restore.Good:
    """The checkpoint of a plan, held against what its leg signed. Raises UsageError."""
    folder, run = Path(continues.folder), continues.runs[-1]
    where = (continues.leg, continues.launch, continues.number)
    if continues.number is None:
        before = RunFolder(folder).saved().spec
        home = restore.left(folder, run, before, spec.policy, operators=operators())
        if home is not None and home.sha256 == continues.sha256:
            return home
    for each in stored(folder):
        if (each.leg, each.launch, each.number) == where:
            before = RunFolder(folder).saved().spec
            good = restore.check(each, folder, run, before, spec.policy, named=True, operators=operators())
            if good.sha256 == continues.sha256:
                return good
    raise UsageError(
        "the checkpoint that was planned is not here any more", field="from",
        value=continues.given, remedy="look what is in its run folder, under checkpoints/ and outputs/",
    )  # fmt: skip


def operators() -> tuple[keys.KeyEntry, ...]:
    """Whose countersigned heads count: this machine's own operators, retired ones too."""
    keys.operator_key()  # made on first use
    return tuple(entry for entry in keys.local_keyring().entries if entry.role == "operator")


@dataclass(frozen=True)
class _Pieces:
    """A checkpoint's contents under the names that they have in the next package; each pass decrypts anew."""

    package: CheckedOutputs = field(repr=False)

    def __iter__(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        tensors = self.package.tensors
        for number in range(sum(name.startswith(PIECE_PREFIX) for name in tensors)):
            spec, load = tensors[f"{PIECE_PREFIX}{number}"]
            yield TensorSpec(f"{PREFIX}{spec.name}", spec.dtype, spec.shape), load()


@contextmanager
def _state(index: Index, package: CheckedOutputs, words: str) -> Iterator[Mapping[str, memoryview]]:
    """A session's state out of a checkpoint's files: the newest whole folder that has both of them."""
    names = _newest(index, words)
    entries = {place: names[name] for place, name in _STATE.items()}
    if entries[TENSORS].nbytes > MAX_FILE_BYTES or entries[VALUES].nbytes > MAX_VALUES_BYTES:
        raise UsageError("the state is too large to seal", field="from", value=words, remedy="at most 8 GiB")
    region = private_region(sum(entry.nbytes for entry in entries.values()))
    try:
        at, files = 0, {}
        for place, entry in entries.items():
            files[place] = memoryview(region)[at : at + entry.nbytes]
            at += entry.nbytes
        _fill(index, package, {entry.path: files[place] for place, entry in entries.items()})
        yield files
    finally:
        overwrite(region)


def _newest(index: Index, words: str) -> dict[bytes, Entry]:
    """The files of the newest whole folder that has a state, by their names. Raises UsageError."""
    by_folder: dict[bytes, dict[bytes, Entry]] = {}
    for entry in index.files:
        folder, slash, name = entry.path.rpartition(b"/")
        by_folder.setdefault(folder + slash, {})[name] = entry
    whole = [folder for folder, names in by_folder.items() if set(_STATE.values()) <= names.keys()]
    if not whole:
        raise UsageError("this checkpoint holds no state", field="from", value=words, remedy=_ANOTHER)
    return by_folder[max(whole, key=_number)]


def _number(folder: bytes) -> int:
    match = _NUMBERED.match(folder)
    return -1 if match is None else int(match[1])


def _fill(index: Index, package: CheckedOutputs, places: Mapping[bytes, memoryview]) -> None:
    """Copy some of a tree's files out of its pieces, each piece asked for once."""
    parts: dict[int, list[tuple[int, int, memoryview]]] = {}
    start, size = 0, index.piece_bytes
    for entry in index.files:
        if (place := places.get(entry.path)) is not None:
            done = 0
            while done < entry.nbytes:
                number, offset = divmod(start + done, size)
                count = min(size - offset, entry.nbytes - done)
                parts.setdefault(number, []).append((offset, count, place[done : done + count]))
                done += count
        start += entry.nbytes
    for number, wanted in sorted(parts.items()):
        piece = package.tensors[f"{PIECE_PREFIX}{number}"][1]()
        for offset, count, place in wanted:
            place[:] = piece[offset : offset + count]


def _doubts(good: restore.Good, index: Index, package: CheckedOutputs, say: Say) -> None:
    """Say what of a checkpoint may be torn, or is not in it."""
    if not good.whole and good.number is None:
        say("its command did not end well by itself: what it was writing then may be torn")
    elif not good.whole:
        say(
            "nothing marked its files as one whole set (a subfolder renamed into place, or "
            "model.checkpoint_ready): one that was being written then may be torn"
        )
    if not good.whole and (whole := [number for number, each in _states(good) if each == "whole"]):
        say(f"one that was marked as whole is here, too: from={good.leg.run}@{max(whole)}")
    doubtful = sorted({*index.changed, *index.files_in(package.mismatched)})
    for name in doubtful[:FEW]:
        say(f"written to while it was sealed, and may be torn: {name}")
    if len(doubtful) > FEW:
        say(f"written to while they were sealed: {len(doubtful) - FEW} more files")


def _states(good: restore.Good) -> Iterator[tuple[int, str]]:
    """Number and state of the other checkpoints of the same launch that are at home."""
    for each in stored(good.stored.path.parents[1 if good.number is None else 2]):
        if (each.leg, each.launch) == (
            good.stored.leg,
            good.stored.launch,
        ) and each.number != good.stored.number:
            body = event_of(each.events.read_bytes() if each.events.exists() else b"").get("body", {})
            yield each.number, str(body.get("state", ""))


def _explained(error: SealError, words: str) -> SealError:
    if Code.GRANT_UNWRAP_FAILED not in error.codes:
        return error
    return SealError(
        f"{words} was sealed for another owner's key than this machine's",
        codes=error.codes,
        remedy="go on where the run was started, with the GLASSHOUSE_HOME of then",
    )
