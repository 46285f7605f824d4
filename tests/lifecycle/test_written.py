"""The files of a run folder, byte for byte: they are signed, and whoever reads them reads them strictly.

The expected bytes were written by hand from the formats, not by the models under test.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glasshouse import host, schema
from glasshouse.canonical import b64u
from glasshouse.codes import Code
from glasshouse.errors import RemoteError, UsageError
from glasshouse.lifecycle.finish import outcome_file, release_file
from glasshouse.lifecycle.leg import Leg, Notes
from glasshouse.lifecycle.live_run import LiveRun, create, public_allocation, reopen
from glasshouse.lifecycle.observe import Observed
from glasshouse.lifecycle.reap import NOTHING_CREATED
from glasshouse.lifecycle.run_folder import RunFolder, SavedLaunch
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import describe
from glasshouse.lifecycle.slots import launch_file
from glasshouse.providers.base import Allocation, ReleaseProof
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.schema import Slot
from tests.specs import make_spec

SLOT = Slot(3, 0, 2, "protected", True, 1.0, 2.0, None, False, 0.0)
NAME = "gh-20260101-000000-abcdef-0123abcd"
SEEN = Observed(
    archive_sha256="1" * 64,
    interpreter_sha256="2" * 64,
    python_version="3.11.7",
    distributions_sha256="3" * 64,
    boot_id="9c1f0a52-5f2e-4a0e-9a53-5e8a7f8d2c11",
    pid_namespace="4026531836",
    container_id="4" * 64,
    hostname_digest="5" * 64,
    uptime_sec=12.5,
    kernel="6.18.0-1+a_b.c",
    cpu_count=16,
    gpus=(("NVIDIA H100 PCIe", "GPU-1", "00000000:01:00.0", "570.1"),),
)


@pytest.fixture
def live(tmp_path: Path) -> LiveRun:
    made = create(make_spec(), tmp_path, Screen(quiet=True), ["gpu=cpu", "duration=1"])
    run = replace(made.run, id="20260101-000000-abcdef", allocation=NAME, started=1000.00049)
    return replace(made, run=run)


def allocation(tmp_path: Path, **changes: Any) -> Allocation:
    endpoint = Endpoint(
        host="10.0.0.7", port=22, user="root", key_path=tmp_path / "key", host_key=HostKey("created", ()),
        python="python3", workdir="/workspace",
    )  # fmt: skip
    values: dict[str, Any] = {
        "provider": "local", "id": "abc", "name": NAME, "endpoint": endpoint, "gpu_model": None,
        "instance_id": None, "tier": None, "image_digest": "", "usd_per_hour": None,
    }  # fmt: skip
    return Allocation(**{**values, **changes})


def test_an_allocation_says_null_for_what_nobody_said(live: LiveRun, tmp_path: Path) -> None:
    found = describe(live, allocation(tmp_path), gpu_model=None, source="created")
    digest = public_allocation(NAME).encode()
    assert found.to_bytes() == (
        b'{"allocationIdSha256":"' + digest + b'","gpuModel":null,"hostKeySource":"created","imageDigest":"",'
        b'"instanceId":null,"machine":null,"provider":"local","rentedAt":null,"tier":null,"usdPerHour":null}'
    )


def test_an_allocation_with_its_machine(live: LiveRun, tmp_path: Path) -> None:
    live.rental.rented_at = 1000.125
    rented = allocation(tmp_path, instance_id="i-1", tier="secure", usd_per_hour=2.0)
    found = describe(live, rented, gpu_model="NVIDIA H100 PCIe", source="pinned", seen=SEEN)
    digest = public_allocation(NAME).encode()
    assert found.to_bytes() == (
        b'{"allocationIdSha256":"' + digest + b'","gpuModel":"NVIDIA H100 PCIe","hostKeySource":"pinned",'
        b'"imageDigest":"","instanceId":"i-1","machine":{"allocation":"' + digest + b'",'
        b'"bootId":"9c1f0a52-5f2e-4a0e-9a53-5e8a7f8d2c11","cpuCount":16,"driver":"570.1",'
        b'"gpuNames":["NVIDIA H100 PCIe"],"gpuUuids":["GPU-1"],"hostnameDigest":"' + b"5" * 64 + b'",'
        b'"kernel":"6.18.0-1+a_b.c","pciBusIds":["00000000:01:00.0"],"uptimeSec":12.5},'
        b'"provider":"local","rentedAt":1000.125,"tier":"secure","usdPerHour":2}'
    )
    read = schema.Allocation.model_validate_json(found.to_bytes())
    assert read.machine is not None
    assert read.machine.gpu_names == ("NVIDIA H100 PCIe",)


def test_a_machine_that_cannot_be_recorded_is_refused_in_one_line(live: LiveRun, tmp_path: Path) -> None:
    odd = replace(SEEN, gpus=(("GPU\x1b]0;owned", "u", "b", "d"),))
    with pytest.raises(RemoteError, match="fields=gpu") as error:
        describe(live, allocation(tmp_path), gpu_model=None, source="created", seen=odd)
    assert "\x1b" not in error.value.line()
    with pytest.raises(RemoteError, match="fields=tier"):
        describe(live, allocation(tmp_path, tier="$(reboot)"), gpu_model=None, source="created")


def test_a_release_rounds_its_looks_and_keeps_to_itself_why_nobody_could_look() -> None:
    proof = ReleaseProof("zero", 0, "nothing of ours is left", 3, 0, True, (1.00049, 2.0))
    assert release_file(proof).to_bytes() == (
        b'{"accountTotal":3,"active":0,"checkedAt":[1,2],"detail":"nothing of ours is left",'
        b'"podFolderRemoved":true,"processesLeft":0,"proof":"zero"}'
    )
    unknown = ReleaseProof("unknown", None, "host 10.0.0.7 does not answer")
    assert release_file(unknown).to_bytes() == (
        b'{"accountTotal":null,"active":null,"checkedAt":[],"detail":"clean-up is unknown",'
        b'"podFolderRemoved":null,"processesLeft":null,"proof":"unknown"}'
    )
    assert NOTHING_CREATED.to_bytes() == (
        b'{"accountTotal":null,"active":0,"checkedAt":[],"detail":"nothing was asked of the provider",'
        b'"podFolderRemoved":null,"processesLeft":null,"proof":"zero"}'
    )
    assert len(release_file(replace(proof, detail="x" * 301)).detail) == 300  # what a reader takes


def test_an_outcome_leaves_out_what_is_as_usual(live: LiveRun, tmp_path: Path) -> None:
    assert outcome_file(live, [], 1002.0).to_bytes() == b'{"codes":[],"endedAt":1002,"startedAt":1000}'
    live.rental.simulated = True
    live.rental.rented_at = 1000.125
    assert outcome_file(live, ["no-capacity"], 1002.5).to_bytes() == (
        b'{"codes":["no-capacity"],"endedAt":1002.5,"simulated":true,"startedAt":1000}'
    )
    live.rental.allocation_id = "abc"  # a machine that billed and came to nothing
    assert outcome_file(live, ["boot-timeout"], 1002.5).to_bytes() == (
        b'{"codes":["boot-timeout"],"endedAt":1002.5,"rentedAt":1000.125,"simulated":true,"startedAt":1000}'
    )
    live.folder.write(
        "allocation.json", describe(live, allocation(tmp_path), gpu_model=None, source="created")
    )
    assert b"rentedAt" not in outcome_file(live, [], 1002.5).to_bytes()
    live.ending.taken_up_at = 1001.00049
    assert b'"takenUpAt":1001}' in outcome_file(live, [], 1002.5).to_bytes()


def test_a_launch_that_failed_and_one_that_is_complete() -> None:
    leg = Leg(SLOT, 2, "/pod", "protected leg")
    assert leg.file("launch.json") == "legs/s003-protected-l2/launch.json"
    notes = Notes(timings={"totalSec": 1.00000049, "startSec": 2.0})
    assert launch_file(leg, Code.START_UNKNOWN, notes, 1000.0, 1002.5).to_bytes() == (
        b'{"arm":"protected","code":"start-unknown","endedAt":1002.5,"launch":2,"rawFilesRemoved":null,'
        b'"slot":3,"startedAt":1000,"status":"failed","timings":{"startSec":2,"totalSec":1}}'
    )
    notes.raw_files_removed = True
    first = replace(leg, launch=1)
    assert first.file("launch.json") == "legs/s003-protected/launch.json"
    assert launch_file(first, None, notes, 1000.0, 1002.5).to_bytes() == (
        b'{"arm":"protected","code":null,"endedAt":1002.5,"launch":1,"rawFilesRemoved":true,'
        b'"slot":3,"startedAt":1000,"status":"complete","timings":{"startSec":2,"totalSec":1}}'
    )


def test_a_torn_launch_gets_one_that_failed(live: LiveRun) -> None:
    folder = live.folder
    torn = folder.parts / "legs" / "s003-protected-l2"
    torn.mkdir(parents=True)
    (torn / "events.jsonl").write_bytes(b'{"a":1}\n{"b"')
    (torn / "heads.jsonl").write_bytes(b"{")
    (torn / ".launch.json.1.aa").write_bytes(b"")
    folder.mend("controller-killed")
    assert sorted(path.name for path in torn.iterdir()) == ["events.jsonl", "launch.json"]
    assert (torn / "events.jsonl").read_bytes() == b'{"a":1}\n'
    written = json.loads((torn / "launch.json").read_bytes())
    ended, started = written.pop("endedAt"), written.pop("startedAt")
    assert ended >= started == round(started, 3)
    assert written == {
        "slot": 3, "arm": "protected", "launch": 2, "status": "failed", "code": "controller-killed",
        "timings": {}, "rawFilesRemoved": None,
    }  # fmt: skip
    folder.strip()
    assert [path.name for path in torn.iterdir()] == ["launch.json"]
    assert json.loads((torn / "launch.json").read_bytes())["code"] == "evidence-unusable"


def test_run_json_is_what_another_process_finishes_the_run_from(live: LiveRun) -> None:
    live.fail(Code.NO_CAPACITY, "error: none left", 3)
    path = live.folder.path / "run.json"
    state = json.loads(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    assert state.pop("spec") == make_spec().model_dump(mode="json")
    assert state == {
        "run": "20260101-000000-abcdef", "name": NAME, "allocationId": None, "failures": ["no-capacity"],
        "startedAt": 1000.00049, "overrides": ["gpu=cpu", "duration=1"], "simulated": False, "rentedAt": None,
        "endpoint": None, "controller": host.identity(os.getpid()), "unattendedUntil": 0, "launched": None,
        "salt": b64u(live.run.salt),
    }  # fmt: skip
    again = reopen(live.folder.path, live.screen)
    assert again.run == live.run
    assert again.ending.failures == ["no-capacity"]
    keys = HostKey("created", ("[host]:2022 ssh-ed25519 AAAA",))
    live.rental.endpoint = Endpoint("host", 2022, "root", Path("/keys/client"), keys, "python3", "work")
    live.save()
    assert path.stat().st_mode & 0o777 == 0o600
    assert reopen(live.folder.path, live.screen).rental.endpoint == live.rental.endpoint
    live.rental.unattended_until = 2000.5
    live.rental.launched = SavedLaunch(
        slot=0, launch=2, process=77, started_at=1500.0, timings={"sealSec": 0.5}
    )
    live.save()
    rental = reopen(live.folder.path, live.screen).rental
    assert (rental.unattended_until, rental.launched) == (2000.5, live.rental.launched)
    live.rental.endpoint = replace(live.rental.endpoint, host_key=HostKey("first-use", None))
    live.save()  # nobody could tell a stranger from it
    assert reopen(live.folder.path, live.screen).rental.endpoint is None
    state = json.loads(path.read_bytes())
    del state["endpoint"]  # as an older version wrote it
    path.write_text(json.dumps(state))
    assert reopen(live.folder.path, live.screen).rental.endpoint is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run":1}'])
def test_what_is_no_run_folder_is_said_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder(tmp_path).saved()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder(tmp_path).saved()
