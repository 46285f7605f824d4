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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.commands.records import RUNS, pick_run
from glasshouse.commands.terminal import emit, say, table, writing
from glasshouse.errors import SealError, UsageError
from glasshouse.records.keys import owner_key
from glasshouse.runtime.harness import safetensors_layout
from glasshouse.sealing.grant import KemKey
from glasshouse.sealing.layout import SealedObject, TensorSpec
from glasshouse.sealing.unpacking import unpack_outputs

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
        with writing("to", target):
            opened += [_said(item, path) for path in _unpacked(item, key, target)]
    if args.json:
        emit({"ok": True, "files": opened})
    else:
        rows = [
            [item["leg"], item["launch"], item["bytes"], item["matchesEvents"], item["path"]]
            for item in opened
        ]
        say(table(["leg", "launch", "bytes", "matches events", "file"], rows))
    return 0


def _unpacked(item: Sealed, key: KemKey, target: Path) -> list[Path]:
    """Open one sealed file into `target`; the files that it made. Another owner's is said in words.

    They are private, and have their names only once all of them are known to be right.
    """
    prefix = f"{item.leg}-{item.launch}"
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
            if Code.GRANT_UNWRAP_FAILED not in error.codes:
                raise
            raise SealError(
                f"{item.path.name} was sealed for another owner's key than this machine's, or altered since",
                codes=error.codes,
                remedy="open it where the run was started, with the GLASSHOUSE_HOME of then",
            ) from error
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
