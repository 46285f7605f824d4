"""Open what protected legs sealed for you: the trained outputs and the trainer's log.

  glasshouse open 20260101-120000-abcdef                  into RUN/opened/
  glasshouse open 20260101-120000-abcdef --to adapters
  glasshouse open 20260101-120000-abcdef --checkpoint 3

Where a run has no outputs, its newest checkpoint is opened, also while the run goes on.

A checkpoint is held against what its leg signed, as `from=` does; one that was made while nobody watched, or
that is older than a countersigned one, is opened all the same, and said to be.

Needs the owner's key, which is made at the first run and never leaves its folder. What is opened is
held against the digests in the leg's signed events. Tensors are written as safetensors files.
"""

from __future__ import annotations

import argparse
import base64
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, b64u, canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.commands.records import RUNS, pick_run
from glasshouse.commands.terminal import emit, say, table, writing
from glasshouse.errors import SealError, UsageError
from glasshouse.lifecycle.checkpoints import Stored, stored
from glasshouse.lifecycle.restore import RefusedError, check, newest_good
from glasshouse.lifecycle.resumed import operators
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.records.keys import owner_keys
from glasshouse.records.withheld import opened_salt
from glasshouse.runtime.harness import safetensors_layout
from glasshouse.runtime.params import sealed_under
from glasshouse.sealing.grant import KemKey
from glasshouse.sealing.layout import SealedObject, TensorSpec
from glasshouse.sealing.tree import INDEX_NAME, write_tree
from glasshouse.sealing.tree_index import PIECE_PREFIX, Skipped
from glasshouse.sealing.unpacking import CheckedOutputs, checked_outputs, unpack_outputs

# What an index says of a folder of outputs that was never made (sealing/tree.py: list_folder).
NO_FOLDER = {"path": ".", "reason": f"it cannot be listed: {os.strerror(errno.ENOENT)}"}
_SHOWN = ("number", "state", "steps")  # of a checkpoint's event
SEALED = re.compile(r"(?P<leg>s[0-9]{3})-(?P<launch>[0-9]+)-(?P<what>outputs|log)\.sealed\Z")


@dataclass(frozen=True)
class Sealed:
    """One sealed file of a run, with what it was sealed under. `point`: of a checkpoint, its event;
    `doubts`: what may not be so of it."""

    path: Path
    leg: str
    launch: int
    context: Mapping[str, str]
    plaintext_sha256: str | None
    point: Mapping[str, Any] | None = None
    doubts: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What the names of its files begin with, where it is opened."""
        what = "" if self.point is None else f"-checkpoint-{self.point['number']}"
        return f"{self.leg}-{self.launch}{what}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning")
    parser.add_argument(
        "--checkpoint", type=int, metavar="N", help="this checkpoint (the newest, where there are no outputs)"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to write (RUN/opened)")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="open with this key of yours instead of this machine's"
    )
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are")


def run(args: argparse.Namespace) -> int:
    """Open every sealed file of the run."""
    folder = pick_run(args.run, args.out).path
    target = args.to or folder / "opened"
    sealed = _chosen(folder, args.run, args.checkpoint)
    key = owner_keys(args.key)
    opened: list[dict[str, Any]] = []
    for item in sealed:
        with writing("to", target):
            try:
                opened += [_said(item, path) for path in _unpacked(item, key, target)]
            except _FolderError:
                opened += _opened_folder(item, key, target)
    salt = _salt(folder, key, target)
    if salt is not None:
        opened.append(salt)
    complete = not any(item.get("unwritten") for item in opened)
    if args.json:
        emit({"ok": complete, "files": opened})
    else:
        rows = [
            [item["leg"], item["launch"], item["bytes"], _matches(item["matchesEvents"]), item["path"]]
            for item in opened
        ]
        say(table(["leg", "launch", "bytes", "matches events", "file"], rows))
        for said in opened:
            _say_tree(said)
        for item in sealed:
            if item.point is not None:
                say(_point_line(item.point))
            for doubt in item.doubts:
                say(doubt)
    return 0 if complete else 1


def _chosen(folder: Path, run: str, number: int | None) -> list[Sealed]:
    """What of a run is to be opened: what it left; where that has no outputs, its newest checkpoint, too; or
    the checkpoint with this number alone. Raises UsageError where there is none of it.
    """
    points = stored(folder)
    if number is not None:
        named = [point for point in points if point.number == number]
        if not named:
            here = ", ".join(str(point.number) for point in points)
            raise UsageError(
                "the run has no such checkpoint here",
                field="checkpoint",
                value=number,
                remedy=f"it has {here}" if here else "it has none",
            )
        return [_checkpoint(folder, named[0])]
    finished = (folder / "bundle").is_dir()
    if not finished and not points:
        raise UsageError(
            "the run is not finished",
            field="run",
            value=run,
            remedy="if its controller died, `glasshouse reap` fetches what was sealed for you and ends it",
        )
    sealed = list(find_sealed(folder)) if finished else []
    if points and not any(item.path.name.endswith("-outputs.sealed") for item in sealed):
        sealed.append(_checkpoint(folder, points[0]))
    if not sealed:
        raise UsageError(
            "the run has no sealed outputs",
            field="run",
            value=run,
            remedy="only protected legs seal any",
        )
    return sealed


def _checkpoint(folder: Path, point: Stored) -> Sealed:
    """A checkpoint with what it was sealed under. Its event says which of all bytes it is."""
    saved = RunFolder(folder).saved()
    spec, known = saved.spec, operators()
    takes_all = spec.policy.model_copy(update={"require_witnessed_checkpoints": False})
    try:
        good = check(point, folder, saved.run, spec, takes_all, named=True, operators=known)
    except RefusedError as error:
        other = newest_good(folder, saved.run, spec, takes_all, operators=known)
        remedy = error.remedy if other is None else f"the newest good one: --checkpoint {other.stored.number}"
        raise RefusedError(error.what, code=error.code, remedy=remedy) from error
    event = {"number": point.number, "state": "whole" if good.whole else "unmarked", "steps": good.steps}
    doubts = []
    if not good.witnessed:
        doubts.append("checkpoint-unwitnessed: no controller watched when it was made")
    if good.newest > point.number:
        doubts.append(f"{Code.CHECKPOINT_OLDER}: number {good.newest} was countersigned after it")
    return Sealed(
        point.path, point.leg, point.launch, good.context, good.plaintext_sha256, event, tuple(doubts)
    )


def _salt(folder: Path, keys: Sequence[KemKey], target: Path) -> dict[str, Any] | None:
    """Write the salt of what the row withholds, where the plan holds it and one of the keys opens it."""
    try:
        envelope = parse_json((folder / "bundle" / "plan.dsse.json").read_bytes())
        predicate = parse_json(base64.b64decode(envelope["payload"]))["predicate"]
        sealed, run = predicate.get("sealedSalt") or (), str(predicate["run"])
        salt = opened_salt([str(text) for text in sealed], run, keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a run of before, or no bundle: there is nothing that a salt would show
    if salt is None:
        return None
    path = target / "salt.json"
    _write(path, [canonical_json({"run": run, "salt": b64u(salt)})])
    return {"path": str(path), "leg": "-", "launch": 0, "bytes": path.stat().st_size, "matchesEvents": None}


class _FolderError(Exception):
    """What is sealed is a folder, whose files are written by other rules."""


def _opened_folder(item: Sealed, key: Sequence[KemKey], target: Path) -> list[dict[str, Any]]:
    """Write a sealed folder, and what lies beside it in the same file; return what is said of them."""
    opened = []
    with checked_outputs(
        item.path, key, context=item.context, plaintext_sha256=item.plaintext_sha256
    ) as package:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        prefix = item.prefix
        files, tensors = dict(package.files), package.tensors
        index = files.pop(INDEX_NAME)
        opened.append(_write_tree(item, index, package, target / prefix))
        tensors = {name: own for name, own in tensors.items() if not name.startswith(PIECE_PREFIX)}
        if tensors:
            path = target / f"{prefix}.safetensors"
            _write_safetensors(path, tensors)
            opened.append(_said(item, path))
        for name, data in files.items():
            # A name from inside the container chooses no folder here.
            path = target / f"{prefix}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"
            _write(path, [data])
            opened.append(_said(item, path))
    return opened


def _explained(item: Sealed, error: SealError) -> SealError:
    """The error in words, where it says that this is not for us."""
    if Code.GRANT_UNWRAP_FAILED not in error.codes:
        return error
    return SealError(
        f"{item.path.name} was sealed for another owner's key than this machine's, or altered since",
        codes=error.codes,
        remedy="open it where the run was started, with the GLASSHOUSE_HOME of then",
    )


def _unpacked(item: Sealed, key: Sequence[KemKey], target: Path) -> list[Path]:
    """Open one sealed file into `target`; the files that it made. Another owner's is said in words.

    They are private, and have their names only once all of them are known to be right.
    """
    prefix = item.prefix
    made: list[tuple[Path, Path]] = []
    with ExitStack() as until:

        def create(name: str) -> int:
            path = target / f"{prefix}{name}"
            partial = path.with_name(f".{path.name}.{len(made)}.partial")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o600)
            until.callback(partial.unlink, missing_ok=True)
            until.callback(os.close, descriptor)
            made.append((partial, path))
            return descriptor

        def places(objects: Sequence[SealedObject], specs: Sequence[TensorSpec]) -> list[tuple[int, int]]:
            if any(found.kind != "tensor" and found.name == INDEX_NAME for found in objects):
                raise _FolderError
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            tensors = _safetensors(create(".safetensors"), specs) if specs else {}
            # A name from inside the container chooses no folder here.
            return [
                tensors[found.name]
                if found.kind == "tensor"
                else (create(f"-{re.sub(r'[^A-Za-z0-9._-]', '_', found.name)}"), 0)
                for found in objects
            ]

        try:
            unpack_outputs(
                item.path, key, places, context=item.context, plaintext_sha256=item.plaintext_sha256
            )
        except SealError as error:
            raise _explained(item, error) from error
        for partial, path in made:
            partial.replace(path)
    return [path for _, path in made]


def _safetensors(descriptor: int, specs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """Begin the file whose SHA-256 is the leg's `outputSha256`; where in it each tensor goes."""
    described = {spec.name: (spec.dtype, spec.shape, spec.nbytes) for spec in specs}
    head, order = safetensors_layout(described)
    os.pwrite(descriptor, head, 0)
    starts = accumulate((described[name][2] for name in order), initial=len(head))
    return {name: (descriptor, start) for name, start in zip(order, starts, strict=False)}


def find_sealed(folder: Path) -> Iterator[Sealed]:
    """Yield the sealed files of a run folder with the context that its bundle gives each."""
    for path in sorted((folder / "outputs").glob("*.sealed")):
        match = SEALED.match(path.name)
        if match is None:
            continue
        leg, launch = match["leg"], int(match["launch"])
        base = _launch_folder(folder / "bundle", leg, launch)
        context = _context(base, leg, launch)
        digest = _digest(base / "events.jsonl") if match["what"] == "outputs" else None
        yield Sealed(path, leg, launch, context, digest)


def _launch_folder(files: Path, leg: str, launch: int) -> Path:
    return files / "legs" / f"{leg}-protected{'' if launch == 1 else f'-l{launch}'}"


def _context(base: Path, leg: str, launch: int) -> dict[str, str]:
    """Under which a launch sealed what it left, as its files say."""
    reference = _json(base / "reference.json")
    return sealed_under(str(reference["run"]), leg, launch, str(reference["manifest_hash"]))


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, CanonicalError) as error:
        raise UsageError(
            "the run's bundle lacks what its outputs were sealed under",
            field="file", value=path, remedy="open them from the run folder as it was written",
        ) from error  # fmt: skip


def _digest(events: Path) -> str | None:
    """Return the outputs' plaintext digest that the leg's events name, also of a leg that failed later."""
    lines = events.read_bytes().splitlines() if events.is_file() else []
    for line in reversed(lines):
        event = parse_json(line)
        body = event.get("body") or {}
        outputs = body if event.get("type") == "sealed-outputs" else body.get("outputs")
        if isinstance(outputs, dict) and outputs.get("plaintextSha256"):
            return str(outputs["plaintextSha256"])
    return None


def _said(item: Sealed, path: Path, nbytes: int | None = None) -> dict[str, Any]:
    return {
        "path": str(path),
        "leg": item.leg,
        "launch": item.launch,
        **(
            {}
            if item.point is None
            else {"checkpoint": {name: item.point.get(name) for name in _SHOWN}, "doubts": list(item.doubts)}
        ),
        "bytes": path.stat().st_size if nbytes is None else nbytes,
        # A log is named by no event: nothing to match.
        "matchesEvents": True if item.plaintext_sha256 is not None else None,
    }


def _point_line(point: Mapping[str, Any]) -> str:
    """What a checkpoint is, and whether it may be torn."""
    steps = point.get("steps")
    counted = f", sealed when {steps} optimizer steps were made" if type(steps) is int else ""
    what = f"checkpoint {point['number']}"
    if point["state"] == "whole":
        return f"{what}{counted}: marked as whole, and nothing wrote to what is marked while it was sealed"
    return (
        f"{what}{counted}: nothing marks it as whole, so it may have been taken in the middle of a save; "
        "the one before is kept, and model.checkpoint_ready can name a file that marks one"
    )


def _matches(said: bool | None) -> str:
    return "-" if said is None else "yes" if said else "NO"


def _write_tree(item: Sealed, index: bytes, package: CheckedOutputs, place: Path) -> dict[str, Any]:
    """Write a folder's files as they were; return what is said of them."""
    unwritten = list[Skipped]()
    try:
        found = write_tree(
            index,
            package.tensors,
            place,
            keep_same=True,
            on_name=lambda path, reason: unwritten.append(Skipped(path, reason)),
        )
    except FileExistsError as error:
        raise UsageError(
            "another file is there already, and stays",
            field="file",
            value=place / str(error.filename),
            remedy="give another place with --to, or move it away",
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot write a file there: {error.strerror or type(error).__name__}",
            field="file",
            value=place / str(error.filename) if error.filename else place,
            remedy="give another place with --to",
        ) from error
    # Of a piece whose digest is another, any file may be the one that was written to meanwhile.
    doubtful = {*found.changed, *found.files_in(package.mismatched)}
    said = _said(item, place, found.nbytes)
    return said | {
        "matchesEvents": None if said["matchesEvents"] is None else not package.mismatched,
        "files": len(found.files),
        "skipped": [item._asdict() for item in found.skipped],
        "skippedCount": found.skipped_count,
        "changed": sorted(doubtful),
        "unwritten": [item._asdict() for item in unwritten],
    }


def _say_tree(said: Mapping[str, Any]) -> None:
    """Say how many files a folder has, and which of those that it had are not there, or may be torn."""
    if "skipped" not in said:
        return
    say(f"{said['path']}: {said['files']} file{'' if said['files'] == 1 else 's'}, {said['bytes']} bytes")
    if said["skipped"] == [NO_FOLDER]:
        say("  the command left no such folder")
        return
    for item in said["skipped"]:
        say(f"  left out on the pod: {item['path']}: {item['reason']}")
    if (more := said["skippedCount"] - len(said["skipped"])) > 0:
        say(f"  left out on the pod: {more} more")
    for path in said["changed"]:
        say(f"  written to while it was sealed, look at it: {path}")
    for item in said["unwritten"]:
        say(f"  this file system does not take the name: {item['path']}: {item['reason']}")


def _write_safetensors(
    path: Path, tensors: Mapping[str, tuple[TensorSpec, Callable[[], memoryview]]]
) -> None:
    """Write the file whose SHA-256 is the leg's `outputSha256`."""
    described = {name: (spec.dtype, spec.shape, spec.nbytes) for name, (spec, _) in tensors.items()}
    head, order = safetensors_layout(described)
    # One after the other: each lasts until the next is asked for.
    _write(path, chain([head], (tensors[name][1]() for name in order)))


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a private file; what was there is replaced."""
    temporary = path.with_name(f".{path.name}.partial")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
    temporary.replace(path)
