"""A run that died, with sealed checkpoints at home: real keys, exchange, events, heads and containers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.canonical import record_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.lifecycle.run_folder import RunFolder, SavedRun
from glasshouse.records import keys
from glasshouse.records.bundle import ENVELOPE
from glasshouse.records.signing import BUNDLE_TYPE, sign_statement
from glasshouse.runtime.sealer import seal_tree
from glasshouse.spec import RunSpec
from tests.records.factory import Factory
from tests.records.legs import Leg

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Died:
    """A run folder with checkpoints 1 to n, each with its events and heads, as its controller left it."""

    folder: Path
    run: str
    factory: Factory

    def place(self, number: int, what: str = "sealed") -> Path:
        """A file of a checkpoint."""
        return self.folder / "checkpoints" / "s000-1" / f"{number:06d}.{what}"

    def leg(self, name: str) -> Path:
        """A file of the leg, among the run's own."""
        return self.folder / "bundle" / "legs" / "s000-protected" / name

    def sign(self) -> None:
        """Sign the bundle as it lies here, as its operator did: what a test altered was always so."""
        bundle = self.folder / "bundle"
        subjects = {
            str(path.relative_to(bundle)): sha256_hex(path.read_bytes())
            for path in bundle.rglob("*")
            if path.is_file() and path.name != ENVELOPE
        }
        envelope = sign_statement(keys.operator_key(), BUNDLE_TYPE, {"run": self.run}, subjects)
        (bundle / ENVELOPE).write_bytes(envelope)

    def drop(self, number: int) -> None:
        """Remove a checkpoint from home, as if it had never come."""
        for what in ("sealed", "events.jsonl", "heads.jsonl"):
            self.place(number, what).unlink()


def sealed(folder: Path, files: Files, context: Mapping[str, str]) -> tuple[bytes, dict[str, Any]]:
    """Seal these files as the pod does; the container, and what its event says of it."""
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    out = io.BytesIO()
    report = seal_tree(
        out, folder, owner_public=b"".join(keys.owner_publics()), context=context, extra={}, padded=True
    )
    return out.getvalue(), record_json(report)


def died(
    tmp_path: Path,
    spec: RunSpec,
    checkpoints: Sequence[Files],
    *,
    overrides: Sequence[str] = (),
    steps: Sequence[int | None] = (),
    states: Sequence[str] = (),
    every: float = 1.0,
    after: Sequence[tuple[str, dict[str, Any]]] = (),
    outputs: Files | None = None,
    result: Mapping[str, Any] | None = None,
) -> Died:
    """Make such a run. Heads are countersigned after each event, `every` seconds apart; `after`: events that
    followed the last checkpoint. outputs: what its leg sealed at its end, of which `result` is said.
    """
    factory = Factory(tmp_path / f"factory-{len(list(tmp_path.iterdir()))}")
    factory.operator = keys.operator_key()
    containers: list[bytes] = []

    def insert(items: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
        where = items[0][1]
        found = items[:4]
        own = {
            "run": where["run"],
            "leg": where["leg"],
            "launch": str(where["launch"]),
            "manifestHash": sha256_hex(where["run"].encode()),
        }
        for number, files in enumerate(checkpoints, start=1):
            context = {**own, "checkpoint": str(number)}
            place = tmp_path / where["run"] / str(number)
            place.mkdir(parents=True)
            data, report = sealed(place, files, context)
            containers.append(data)
            body = {
                "number": number,
                **report,
                "state": states[number - 1] if states else "whole",
                "steps": steps[number - 1] if steps else None,
            }
            found += [
                ("progress", {"phase": "measure", "elapsedSec": 10.0 * number, "units": number}),
                ("checkpoint-sealed", body),
            ]
        if outputs is not None:
            place = tmp_path / where["run"] / "outputs"
            place.mkdir(parents=True)
            data, report = sealed(place, outputs, own)
            containers.append(data)
            told = {"steps": 50, "weights": {"a": "b"}, "exit": {"code": 0, "signal": None}, **(result or {})}
            found += [("trained", {"result": told}), ("sealed-outputs", report)]
        return [*found, *after]

    run, files = factory.parts(
        spec, {0: Leg(status="failed", code=Code.LOST_LEG, events=insert, head_every_sec=every)}
    )
    folder = tmp_path / "runs" / run
    for name, data in files.items():
        place = folder / "bundle" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    RunFolder(folder).save(
        SavedRun(
            run=run, name=f"gh-{run}-0", allocation_id=None, failures=(), started_at=factory.now,
            overrides=tuple(overrides), simulated=False, rented_at=None, spec=spec,
        )
    )  # fmt: skip
    made = Died(folder, run, factory)
    made.sign()
    made.place(1).parent.mkdir(parents=True)
    events = made.leg("events.jsonl").read_bytes().splitlines(keepends=True)
    heads = made.leg("heads.jsonl").read_bytes().splitlines(keepends=True)
    if outputs is not None:
        place = RunFolder(folder).sealed("s000", 1, "outputs.sealed")
        place.parent.mkdir()
        place.write_bytes(containers.pop())
    for number, data in enumerate(containers, start=1):
        upto = 4 + 2 * number
        made.place(number).write_bytes(data)
        made.place(number, "events.jsonl").write_bytes(b"".join(events[:upto]))
        made.place(number, "heads.jsonl").write_bytes(b"".join(heads[:upto]))
    return made
