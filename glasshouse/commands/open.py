"""Open what protected legs sealed for you: the trained outputs and the trainer's log.

  glasshouse open 20260101-120000-abcdef                  into RUN/opened/
  glasshouse open 20260101-120000-abcdef --to adapters

Needs the owner's key, which is made at the first run and never leaves its folder. What is opened is
held against the digests in the leg's signed events. Tensors are written as safetensors files.
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
from glasshouse.sealing.outputs import open_outputs

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
            if package.tensors:
                path = target / f"{prefix}.safetensors"
                _write_safetensors(path, package.tensors)
                opened.append(_said(item, path))
            for name, data in package.files.items():
                # A name from inside the container chooses no folder here.
                path = target / f"{prefix}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"
                _write(path, [data])
                opened.append(_said(item, path))
    if args.json:
        emit({"ok": True, "files": opened})
    else:
        rows = [
            [item["leg"], item["launch"], item["bytes"], item["matchesEvents"], item["path"]]
            for item in opened
        ]
        say(table(["leg", "launch", "bytes", "matches events", "file"], rows))
    return 0


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


def _said(item: Sealed, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "leg": item.leg,
        "launch": item.launch,
        "bytes": path.stat().st_size,
        "matchesEvents": item.plaintext_sha256 is not None,
    }


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
