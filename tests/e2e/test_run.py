"""The main job on provider=local: real SSH, real HTTP, real training, real signatures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Program

pytestmark = pytest.mark.train

Finished = tuple[Program, Path, dict]


def test_a_pair_is_verified_and_states_its_overhead(finished: Finished) -> None:
    _, folder, record = finished
    assert record["status"] == "verified"
    assert record["exclusion"] is None
    assert all(check["ok"] for check in record["checks"])
    figures = record["figures"]
    raw, protected = figures["rawPerSec"], figures["protectedPerSec"]
    assert figures["overheadPct"] == pytest.approx(100 * (raw - protected) / raw, abs=1e-5)
    assert {"not-a-tee", "order-confounded", "single-sample", "local-pod", "payload-disclosed"} <= set(
        record["caveats"]
    )
    assert (folder / "bundle" / "bundle.dsse.json").exists()


def test_nothing_is_left_of_the_pod(finished: Finished) -> None:
    program, folder, _ = finished
    assert program.pods() == []
    assert not list(Path("/dev/shm").glob(f"gh-{folder.name}*"))
    assert not (folder / "parts").exists()
    assert not (folder / "package.sealed").exists()


def test_what_was_shown_is_kept_beside_the_bundle(finished: Finished) -> None:
    _, folder, _ = finished
    log = folder / "controller.log"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    ended = "recorded as verified; exit code 0"
    for words in (f"run {folder.name}", "✓ connecting", "… raw leg", "✓ judging", ended):
        assert words in text


def test_both_arms_ran_the_same_work_from_the_same_weights(finished: Finished) -> None:
    _, folder, _ = finished
    raw = json.loads((folder / "bundle/legs/s000-raw/result.json").read_bytes())
    lines = (folder / "bundle/legs/s001-protected/events.jsonl").read_bytes().splitlines()
    protected = next(
        event["body"]["result"] for event in map(json.loads, lines) if event["type"] == "trained"
    )
    for name in ("workloadDigest", "initialDigest", "unit", "device"):
        assert raw[name] == protected[name]
    assert raw["machineStart"]["bootId"] == protected["machineEnd"]["bootId"]
    assert protected["outputDiffers"]


def test_zeroization_is_shown_by_a_scan_with_positive_controls(finished: Finished) -> None:
    _, folder, _ = finished
    lines = (folder / "bundle/legs/s001-protected/events.jsonl").read_bytes().splitlines()
    last = json.loads(lines[-1])
    assert last["type"] == "zeroized"
    body = last["body"]
    assert body["residue"] == "scanned"
    found = {(needle["class"], needle["where"]): needle for needle in body["needles"]}
    for key in [
        ("payload-key-prefix", "custodian"),
        ("package-marker", "trainer"),
        ("trained-parameter", "trainer/cpu"),
        ("optimizer-or-data", "trainer/cpu"),
        ("freed-memory", "trainer/heap"),
    ]:
        assert found[key]["positiveControl"] >= 1, key
        assert found[key]["after"] == 0, key
    # The trainer inherits the custodian's memory, but never its key.
    assert found[("payload-key-prefix", "trainer")]["positiveControl"] == 0
    assert body["buffers"]["host"]["readBackZero"]
    assert body["buffers"]["package"]["readBackZero"]
    assert body["tmpfsRemoved"]


def test_the_bundle_verifies_offline(finished: Finished) -> None:
    program, folder, record = finished
    done = program("verify", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    run = document["runs"][0]
    assert run["status"] == "verified"
    assert run["overheadPct"] == record["figures"]["overheadPct"]
    assert run["checks"]
    assert all(check["ok"] for check in run["checks"])


def test_a_stranger_does_not_believe_the_bundle(finished: Finished, tmp_path: Path) -> None:
    _, folder, _ = finished
    stranger = Program(tmp_path / "elsewhere", tmp_path / "runs")
    done = stranger("verify", str(folder), "--json")
    assert done.returncode == 1
    failed = [check["code"] for check in json.loads(done.stdout)["runs"][0]["checks"] if not check["ok"]]
    assert "signer-unknown" in failed


def test_any_changed_byte_fails_and_names_the_file(finished: Finished, tmp_path: Path) -> None:
    program, folder, _ = finished
    names = [str(p.relative_to(folder)) for p in sorted((folder / "bundle").rglob("*")) if p.is_file()]
    copies = []
    for number, name in enumerate(names):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder / "bundle", copy / "bundle")
        path = copy / name
        data = bytearray(path.read_bytes())
        data[len(data) * (number + 1) // (len(names) + 2)] ^= 0x01
        path.write_bytes(data)
        copies.append(str(copy))
    done = program("verify", "--json", *copies)
    assert done.returncode == 1
    runs = json.loads(done.stdout)["runs"]
    assert len(runs) == len(names)
    for name, run in zip(names, runs, strict=True):
        assert not run["ok"], name
        wrong = [check for check in run["checks"] if not check["ok"]]
        short = name.removeprefix("bundle/")
        assert any(short in check["detail"] or short in check["code"] for check in wrong) or (
            short == "bundle.dsse.json"
        ), (name, wrong)


def test_the_owner_opens_the_trained_weights(finished: Finished, tmp_path: Path) -> None:
    program, folder, _ = finished
    done = program("open", str(folder), "--to", str(tmp_path / "opened"), "--json")
    assert done.returncode == 0, done.stderr
    opened = [path.name for path in (tmp_path / "opened").rglob("*") if path.is_file()]
    assert any(name.endswith(".safetensors") for name in opened), opened


@pytest.mark.soak  # the example as a private job, and test_no_plaintext.py's, stay
def test_a_private_job_discloses_nothing_and_has_no_overhead(program: Program) -> None:
    code, record, folder, err = program.run("order=protected-only", "payload=private", "duration=0.5")
    assert code == 0, err
    assert record["figures"]["overheadPct"] is None
    assert "payload-disclosed" not in record["caveats"]
    assert not list((folder / "bundle/legs").glob("*-raw"))


def test_a_private_payload_refuses_a_raw_leg_before_anything_starts(program: Program) -> None:
    done = program("payload=private", "--out", str(program.runs), *[])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "payload" in done.stderr
    assert not program.runs.exists()


@pytest.mark.soak  # half a minute; whole runs of other tests fix their steps too
def test_fixed_work_is_done_exactly(program: Program) -> None:
    code, record, folder, err = program.run("duration=null", "steps=40", "order=protected-first")
    assert code == 0, err
    assert record["figures"]["protected"]["steps"] == 40
    assert record["figures"]["raw"]["steps"] == 40
    result = json.loads((folder / "bundle/legs/s001-raw/result.json").read_bytes())
    assert result["units"] == 10


@pytest.mark.soak  # base weights sealed, the same job runs in test_workloads.py
def test_lora_goes_through_the_same_lifecycle(program: Program) -> None:
    done = program(
        "run", "--json", "--out", str(program.runs), "measure=quick", "measure.warmup_sec=0.2",
        "model=qwen2-tiny", "order=raw-first", "duration=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    assert record["status"] == "verified"
    assert record["figures"]["unit"] == "steps"
    assert "random-weights" in record["caveats"]
