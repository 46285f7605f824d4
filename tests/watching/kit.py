"""A private job's run folder as it is while its controller lives, with records that are really sealed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.lifecycle.run_folder import RunFolder, SavedRun
from glasshouse.records.keys import owner_publics
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.watched import MAX_BYTES, Watch, collect
from glasshouse.sealing.outputs import seal_outputs
from tests.specs import make_spec

SAMPLES = Path(__file__).parent / "samples"
RUN = "20260103-030405-abcdef"
MANIFEST = "ab" * 32


class JobAtHome:
    """A run folder, and the machine's side of the one launch whose records come into it."""

    def __init__(self, out: Path, name: str = RUN, **spec: Any) -> None:
        self.path = out / name
        self.files = self.path / "parts" / "legs" / "s000-protected"
        self.place = self.path / "watch" / "s000-1"
        for folder in (self.files, self.place, self.path / "job"):
            folder.mkdir(parents=True)
        saved = SavedRun(
            run=name, name="gh-x", allocation_id=None, failures=(), started_at=1.0, overrides=(),
            simulated=False, rented_at=None,
            spec=make_spec(**{"order": "protected-only", "payload": "private", **spec}),
        )  # fmt: skip
        RunFolder(self.path).save(saved)
        (self.files / "reference.json").write_bytes(canonical_json({"manifest_hash": MANIFEST}))
        self.job = self.path / "job"
        self.log, self.notes = Ring(1 << 18), Ring(1 << 16)
        self.watch = Watch(self.job, self.log, self.notes)

    def record(self, data: bytes | None = None) -> Path:
        """Collect what is new, seal it, and bring it home as the controller does."""
        collected = collect(self.watch)
        number = self.watch.number
        sealed, digest = seal(number, collected if data is None else data, run=self.path.name)
        path = self.place / f"{number:06d}.sealed"
        path.write_bytes(sealed)
        self.event(number, digest)
        return path

    def event(self, number: int, digest: str) -> None:
        """Append what the leg signs of a record."""
        body = {"number": number, "bytes": 1, "ciphertextSha256": digest}
        with (self.files / "events.jsonl").open("ab") as stream:
            stream.write(canonical_json({"seq": number, "type": "watched", "body": body}) + b"\n")

    def end(self) -> None:
        """What lay in parts/ lies in the bundle: the run is over."""
        (self.path / "parts").rename(self.path / "bundle")


def seal(
    number: int, data: bytes, *, run: str = RUN, files: Sequence[str] = ("watch.json",)
) -> tuple[bytes, str]:
    """A record as the keeper seals it, and its digest."""
    out = io.BytesIO()
    context = {"run": run, "leg": "s000", "launch": "1", "manifestHash": MANIFEST, "watch": str(number)}
    seal_outputs(
        out, owner_public=b"".join(owner_publics()), context=context,
        files={name: data.ljust(MAX_BYTES) for name in files}, tensors=(), threads=1, padded=True,
    )  # fmt: skip
    return out.getvalue(), sha256_hex(out.getvalue())
