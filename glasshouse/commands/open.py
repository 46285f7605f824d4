"""Open what protected legs sealed for you: the trained outputs and the trainer's log.

  glasshouse open 20260101-120000-abcdef                  into RUN/opened/
  glasshouse open 20260101-120000-abcdef --to adapters

Needs the owner's key, which is made at the first run and never leaves its folder. What is opened is
held against the digests in the leg's signed events. Tensors are written as safetensors files; a
folder's files as they were, below a folder of their own for each launch, where no other file is replaced.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.commands.records import RUNS, pick_run
from glasshouse.commands.terminal import emit, say, table, writing
from glasshouse.errors import SealError, UsageError
from glasshouse.records.keys import owner_key
from glasshouse.runtime.harness import safetensors_layout
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.grant import KemKey
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.memory import give_back
from glasshouse.sealing.outputs import open_outputs
from glasshouse.sealing.tree import INDEX_NAME, write_tree
from glasshouse.sealing.tree_index import PIECE_PREFIX, Skipped

SEALED = re.compile(r"(?P<leg>s[0-9]{3})-(?P<launch>[0-9]+)-(?P<what>outputs|log)\.sealed\Z")


@dataclass(frozen=True)
class Sealed:
    """One sealed file of a run, with what it was sealed under."""

    path: Path
    leg: str
    launch: int
    context: Mapping[str, str]
    plaintext_sha256: str | None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to write (RUN/opened)")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are")


def run(args: argparse.Namespace) -> int:
    """Open every sealed file of the run."""
    folder = pick_run(args.run, args.out).path
    target = args.to or folder / "opened"
    sealed = list(find_sealed(folder))
    if not sealed:
        raise UsageError(
            "the run has no sealed outputs",
            field="run",
            value=args.run,
            remedy="only protected legs seal any",
        )
    key = owner_key()
    opened: list[dict[str, Any]] = []
    for item in sealed:
        with _package(item, key) as package, writing("to", target):
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            prefix = f"{item.leg}-{item.launch}"
            files, tensors = dict(package.files), package.tensors
            if (index := files.pop(INDEX_NAME, None)) is not None:
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
    complete = not any(item.get("unwritten") for item in opened)
    if args.json:
        emit({"ok": complete, "files": opened})
    else:
        rows = [
            [item["leg"], item["launch"], item["bytes"], item["matchesEvents"], item["path"]]
            for item in opened
        ]
        say(table(["leg", "launch", "bytes", "matches events", "file"], rows))
        for said in opened:
            _say_tree(said)
    return 0 if complete else 1


def _package(item: Sealed, key: KemKey) -> OpenedPackage:
    """Open one sealed file; another owner's is said in words."""
    try:
        return open_outputs(item.path, key, context=item.context, plaintext_sha256=item.plaintext_sha256)
    except SealError as error:
        if Code.GRANT_UNWRAP_FAILED not in error.codes:
            raise
        raise SealError(
            f"{item.path.name} was sealed for another owner's key than this machine's, or altered since",
            codes=error.codes,
            remedy="open it where the run was started, with the GLASSHOUSE_HOME of then",
        ) from error


def find_sealed(folder: Path) -> Iterator[Sealed]:
    """Yield the sealed files of a run folder with the context that its bundle gives each."""
    for path in sorted((folder / "outputs").glob("*.sealed")):
        match = SEALED.match(path.name)
        if match is None:
            continue
        leg, launch = match["leg"], int(match["launch"])
        base = folder / "bundle" / "legs" / f"{leg}-protected{'' if launch == 1 else f'-l{launch}'}"
        reference = _json(base / "reference.json")
        context = {
            "run": str(reference["run"]),
            "leg": leg,
            "launch": str(launch),
            "manifestHash": str(reference["manifest_hash"]),
        }
        digest = _digest(base / "events.jsonl") if match["what"] == "outputs" else None
        yield Sealed(path, leg, launch, context, digest)


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, CanonicalError) as error:
        raise UsageError(
            "the run's bundle lacks what its outputs were sealed under",
            field="file", value=path, remedy="open them from the run folder as it was written",
        ) from error  # fmt: skip


def _digest(events: Path) -> str | None:
    """Return the outputs' plaintext digest that the leg's last event names."""
    lines = events.read_bytes().splitlines() if events.is_file() else []
    for line in reversed(lines):
        body = parse_json(line).get("body") or {}
        outputs = body.get("outputs")
        if isinstance(outputs, dict) and outputs.get("plaintextSha256"):
            return str(outputs["plaintextSha256"])
    return None


def _said(item: Sealed, path: Path, nbytes: int | None = None) -> dict[str, Any]:
    return {
        "path": str(path),
        "leg": item.leg,
        "launch": item.launch,
        "bytes": path.stat().st_size if nbytes is None else nbytes,
        "matchesEvents": item.plaintext_sha256 is not None,
    }


def _write_tree(item: Sealed, index: memoryview, package: OpenedPackage, place: Path) -> dict[str, Any]:
    """Write a folder's files as they were; return what is said of them."""
    unwritten = list[Skipped]()
    try:
        found = write_tree(
            index,
            package.tensors,
            place,
            release=give_back,
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
        "matchesEvents": said["matchesEvents"] and not package.mismatched,
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
    say(f"{said['path']}: {said['files']} files, {said['bytes']} bytes")
    for item in said["skipped"]:
        say(f"  left out on the pod: {item['path']}: {item['reason']}")
    if (more := said["skippedCount"] - len(said["skipped"])) > 0:
        say(f"  left out on the pod: {more} more")
    for path in said["changed"]:
        say(f"  written to while it was sealed, look at it: {path}")
    for item in said["unwritten"]:
        say(f"  this file system does not take the name: {item['path']}: {item['reason']}")


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[TensorSpec, memoryview]]) -> None:
    """Write the file whose SHA-256 is the leg's `outputSha256`."""
    described = {name: (spec.dtype, spec.shape, data.nbytes) for name, (spec, data) in tensors.items()}
    head, order = safetensors_layout(described)
    _write(path, [head, *(tensors[name][1] for name in order)])


def _write(path: Path, parts: list[bytes | memoryview]) -> None:
    """Write a private file; what was there is replaced."""
    temporary = path.with_name(f".{path.name}.partial")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
    temporary.replace(path)
