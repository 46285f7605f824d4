"""Shared by the tests of commands: an empty folder to run them from, the call itself, runs to work on."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from glasshouse import cli, paths
from glasshouse.canonical import canonical_json, record_json
from glasshouse.paths import Workspace
from glasshouse.records import keys
from glasshouse.sealing.grant import kem_public_bytes
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.outputs import seal_outputs
from tests.commands.kit import Call, python
from tests.publishing.conftest import enter
from tests.records.factory import Factory
from tests.specs import make_spec


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run commands from an empty folder, without anybody's credentials."""
    monkeypatch.chdir(tmp_path)
    for name in ("RUNPOD_API_KEY", "VAST_API_KEY", "GLASSHOUSE_MAX_USD", "GLASSHOUSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for kind in ("RUNPOD", "VASTAI"):  # where nobody is; no test may ask the real ones
        monkeypatch.setenv(f"GLASSHOUSE_{kind}_URL", "http://127.0.0.1:1/v2")
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; return exit code, stdout, stderr.

    A broker closes its process for good (no dump, no new privilege), so it gets one of its own.
    """

    def run_it(*words: str) -> tuple[int, str, str]:
        if words[:1] == ("broker",):
            done = python("-m", "glasshouse", *words)
            return done.returncode, done.stdout, done.stderr
        code = cli.main(words)
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


@pytest.fixture
def some_run(elsewhere: Path) -> Path:
    """A run folder with a record to show, and outputs sealed to this machine's owner key."""
    folder = elsewhere / "runs" / "20260102-030405-abcdef"
    leg = folder / "bundle" / "legs" / "s001-protected"
    leg.mkdir(parents=True)
    counted = {"slots": 1, "steps": 600, "setupSec": 0.5, "warmupSec": 5.0, "outputSha256": None}
    record = {
        "method": 2,
        "run": folder.name,
        "id": "2026-01-02-local-cpu-mlp-60s-raw-first-abcdef",
        "status": "excluded",
        "exclusion": {"codes": ["final-loss-missing"], "observed": "no final loss in s001"},
        "caveats": ["not-a-tee", "short"],
        "figures": {
            "order": "raw-first",
            "unit": "epochs",
            "overheadPct": 1.25,
            "protected": {
                **counted,
                "units": 30,
                "elapsedSec": 60.5,
                "perSec": 0.5,
                "finalLoss": None,
            },
            "raw": {**counted, "units": 31, "elapsedSec": 60.25, "perSec": 0.51, "finalLoss": 0.25},
            "overhead": {
                "ciLowPct": None,
                "ciHighPct": None,
                "n": 1,
                "method": "single-pair",
                "blocks": 1,
                "droppedBlocks": 0,
            },
            "control": None,
            "fixedCostSec": {"sealSec": 0.5},
            "launches": 2,
            "relaunched": 0,
        },
        "checks": [{"code": "final-loss-missing", "ok": False, "detail": "no final loss in s001"}],
    }
    (folder / "bundle" / "record.json").write_bytes(canonical_json(record))
    raw = folder / "bundle" / "legs" / "s000-raw"
    raw.mkdir()
    curve = {"lossCurve": [[1, 2.0], [2, 1.0], [3, 0.25]], "throughputCurve": [[0, 0], [1, 10], [2, 30]]}
    (raw / "result.json").write_bytes(canonical_json(curve))
    (leg / "reference.json").write_bytes(canonical_json({"run": folder.name, "manifest_hash": "ab" * 32}))
    context = {"run": folder.name, "leg": "s001", "launch": "1", "manifestHash": "ab" * 32}
    public = kem_public_bytes(keys.owner_key())
    (folder / "outputs").mkdir()
    weights = struct.pack("<4f", 1, 2, 3, 4)
    tensors = [
        (TensorSpec("layer.weight", "float32", (2, 2)), weights),
        (TensorSpec("flag", "uint8", (1,)), b"\x07"),
    ]
    with (folder / "outputs" / "s001-1-outputs.sealed").open("wb") as out:
        report = seal_outputs(out, owner_public=public, context=context, files={}, tensors=iter(tensors))
    with (folder / "outputs" / "s001-1-log.sealed").open("wb") as out:
        seal_outputs(
            out, owner_public=public, context=context, files={"logs/trainer.log": b"said\n"}, tensors=()
        )
    event = {"seq": 0, "type": "zeroized", "body": {"outputs": record_json(report)}}
    (leg / "events.jsonl").write_bytes(canonical_json(event) + b"\n")
    (elsewhere / "runs" / "20260101-000000-aaaaaa").mkdir()
    (elsewhere / "runs" / ".sweeps").mkdir()
    return folder


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    """The keys, broker and ledger of the machine that makes `repository`'s run."""
    return Factory(tmp_path / "factory")


@pytest.fixture
def repository(tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkout of its own whose conf/trust lists the signers of one good run; returns it and the run."""
    name, files = factory.parts(make_spec())
    files["inclusion.json"] = factory.inclusion(files)
    bundle = tmp_path / "runs" / name / "bundle"
    bundle.parent.mkdir(parents=True)
    enter(factory, bundle, name, files)
    root = tmp_path / "checkout"
    (root / "conf" / "trust").mkdir(parents=True)
    entries = [{**entry.as_json(), "local": False} for entry in factory.keyring.entries]
    (root / "conf" / "trust" / "keyring.json").write_bytes(canonical_json({"keys": entries}))
    # This machine is the one that made the run: its ledger and its publisher's key.
    shutil.copytree(factory.folder / "ledger", paths.state_dir() / "ledger")
    pem = factory.publisher.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    keys.atomic_write(paths.keys_dir() / "publisher.ed25519.pem", pem, mode=0o600)
    # The program works on the source tree that it lies in, which here is not to be written to.
    workspace = Workspace.of_source(root)
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: workspace)
    return root, bundle.parent
