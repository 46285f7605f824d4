"""Whole runs against the fake providers: faults before, during and after a rental, and killed controllers.

After each: a row with its reason code, zero machines of ours left or a loud word, others' machines untouched,
never two machines at once, and the key in no file and no output.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from glasshouse.providers.fakes.__main__ import RANDOM_KINDS
from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.providers.fakes.runpod import serve_runpod
from glasshouse.providers.fakes.server import FakeServer
from glasshouse.providers.fakes.vastai import serve_vastai
from tests.e2e.conftest import PACED, Program, kill_with_watchdog, wait_until

pytestmark = [pytest.mark.train, pytest.mark.slow]

SERVE = {"runpod": serve_runpod, "vastai": serve_vastai}
NAMES = {
    "runpod": ("RUNPOD_API_KEY", "GLASSHOUSE_RUNPOD_URL"),
    "vastai": ("VAST_API_KEY", "GLASSHOUSE_VASTAI_URL"),
}
SHORT = [*PACED, "gpu=a4000", "order=raw-first", "duration=0.5", "provider.request_timeout_sec=1"]


@dataclass(frozen=True)
class Rents(Program):
    """The program with one fake provider in its environment."""

    kind: str = ""
    server: FakeServer = field(default=None)  # type: ignore[assignment]

    @property
    def environment(self) -> dict[str, str]:
        key, url = NAMES[self.kind]
        given = {key: self.server.key, url: self.server.base_url, "GLASSHOUSE_MAX_USD": "100"}
        return super().environment | given

    def fault(self, kind: str, times: int = 1) -> None:
        self.server.cloud.faults.add(kind, times)

    def state(self) -> dict[str, Any]:
        return self.server.cloud.snapshot()

    def rent(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Run one cell; (exit code, its record, stderr)."""
        done = self("run", "--json", "--out", str(self.runs), *SHORT, f"provider={self.kind}", *words)
        return done.returncode, json.loads(done.stdout)["runs"][0], done.stderr

    def settled(self) -> None:
        """Nothing of ours is left, nobody else's machine is gone, and no secret was written down."""
        state = self.state()
        assert (state["active"], state["foreignActive"]) == (0, state["foreign"])
        assert state["mostAtOnce"] <= 1, "rented twice"
        assert self.server.cloud.faults  # the plan is still the one the test made
        for path in [*self.home.rglob("*"), *self.runs.rglob("*")]:
            if path.is_file():
                assert self.server.key.encode() not in path.read_bytes(), path
        assert not list((self.home / "state" / "rentals").glob("*")), "a rental's keys are still there"


@contextmanager
def renting(kind: str, folder: Path, faults: FaultPlan | None = None) -> Iterator[Rents]:
    with SERVE[kind](boot_sec=0.2, faults=faults) as server:
        server.cloud.add_foreign("somebody else's")
        yield Rents(folder / "home", folder / "runs", kind=kind, server=server)


# Faults of both clients: tests/providers/test_cloud_*; a whole run at Vast.ai: test_cloud_controller.py.
@pytest.fixture(params=["runpod", pytest.param("vastai", marks=pytest.mark.soak)])
def rents(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rents]:
    with renting(request.param, tmp_path) as program:
        yield program


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[Rents]:
    with renting("runpod", tmp_path) as program:
        yield program


def codes(record: dict[str, Any]) -> list[str]:
    return list((record["exclusion"] or {}).get("codes", []))


def test_a_verified_row_through_faults_that_can_be_survived(runpod: Rents) -> None:
    for kind in ("create-timeout-created", "read-5xx", "read-drop", "read-429", "delete-5xx", "delete-drop"):
        runpod.fault(kind)
    done = runpod("-m", "repeat=0", "--json", "--out", str(runpod.runs), *SHORT, "provider=runpod")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["runs"]
    assert record["status"] == "verified"
    assert record["caveats"][0] == "simulated"
    figures = record["figures"]
    assert figures["costUsd"] == pytest.approx(0.25 * figures["heldSec"] / 3600, abs=1e-5)
    assert figures["heldSec"] >= runpod.state()["billingSec"]
    assert set(runpod.state()["faults"]) >= {"create-timeout-created", "delete-5xx"}
    runpod.settled()

    folder = Path(record["folder"])
    allocation = json.loads((folder / "bundle/allocation.json").read_bytes())
    assert (allocation["tier"], allocation["hostKeySource"]) == ("simulated", "created")
    assert runpod("verify", str(folder)).returncode == 0
    refused = runpod("publish", str(folder))
    assert refused.returncode in (1, 2)  # before or after its keys are asked for, but never published
    assert not list(Path("site/research/bundles").glob(record["id"]))

    # Started again, the sweep knows its finished cell; --again rents anew, and here finds no machine.
    made = runpod.state()["created"]
    again = runpod("-m", "repeat=0", "--json", "--out", str(runpod.runs), *SHORT, "provider=runpod")
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert (document["runs"], document["skipped"][0]["run"]) == ([], record["run"])
    assert f"is done in {record['run']}" in again.stderr
    assert runpod.state()["created"] == made
    runpod.fault("create-capacity", 9)
    words = ["-m", "--again", "repeat=0", "--json", "--out", str(runpod.runs), *SHORT, "provider=runpod"]
    assert runpod(*words).returncode == 3


def test_a_package_is_sealed_while_its_machine_boots(rents: Rents, tmp_path: Path) -> None:
    data, plain, made = tmp_path / "data.bin", os.urandom(32 << 20), rents.server.cloud.container
    data.write_bytes(plain)
    seen: list[str] = []  # what the controller has written when the machine is booted
    clear: list[Path] = []  # and what of it holds some of the payload

    def said() -> list[str]:
        logs = rents.runs.glob("2*/controller.log")
        return [line.partition(" ")[2] for path in logs for line in path.read_text().splitlines()]

    def begins(words: str) -> int:
        return next(number for number, line in enumerate(said()) if line.startswith(words))

    def boots(*given: Any, **named: Any) -> Any:
        sealed = "✓ meanwhile: sealing the package"
        wait_until(lambda: any(line.startswith(sealed) for line in said()), 60, "a package sealed by now")
        written = [path for place in (rents.runs, rents.home) for path in place.rglob("*") if path.is_file()]
        seen.extend(path.name for path in written)
        clear.extend(path for path in written if plain[-64:] in path.read_bytes())
        return made(*given, **named)

    rents.server.cloud.container = boots  # type: ignore[assignment]
    exit_code, record, err = rents.rent(f"model.data=[{data}]")
    assert exit_code == 0, err
    assert record["status"] == "verified"
    assert ("package.sealed" in seen, clear) == (True, [])
    order = [
        f"… allocating on {rents.kind}", "✓ meanwhile: preparing the payload",
        "… meanwhile: sealing the package", "✓ meanwhile: sealing the package",
        f"✓ allocating on {rents.kind}", "… looking at the pod", "✓ looking at the pod",
        "… uploading 33.6 MB", "… raw leg",
    ]  # fmt: skip
    assert sorted(order, key=begins) == order, said()
    assert "waiting for the package" not in err
    # What nobody waited for is stated all the same; the line rounds to tenths.
    seconds = float(said()[begins("✓ meanwhile: sealing the package")].split()[-2])
    assert record["figures"]["fixedCostSec"]["sealSec"] >= seconds - 0.05
    rents.settled()


@pytest.mark.parametrize(
    ("fault", "times", "code"),
    [("create-capacity", 99, "no-capacity"), ("auth", 99, "auth"), ("boot-exit", 2, "boot-failed"),
     *(pytest.param(*case, marks=pytest.mark.soak) for case in (
        ("create-5xx", 99, "provider-unavailable"), ("create-balance", 1, "balance"),
        ("wrong-gpu", 2, "gpu-mismatch"),
     ))],
)  # fmt: skip
def test_a_rental_that_fails_is_an_excluded_row_with_its_reason(
    runpod: Rents, fault: str, times: int, code: str
) -> None:
    runpod.fault(fault, times)
    exit_code, record, err = runpod.rent()
    assert exit_code == 3, err
    assert record["status"] == "excluded"
    assert code in codes(record)
    assert "simulated" in record["caveats"]
    assert "Traceback" not in err
    runpod.settled()
    # What was rented cost something, also where it never became usable.
    billed, figures = runpod.state()["billingSec"], record["figures"]
    assert (billed > 0) == (figures["costUsd"] is not None)
    assert billed <= (figures["heldSec"] or 0)
    verified = runpod("verify", record["folder"], "--json")
    assert verified.returncode == 0, verified.stdout


def _interpreter(place: Path, case: str) -> str:
    """An interpreter for the fake pod: ours, but for the words on its command line that match `case`."""
    place.write_text(f'#!/bin/sh\ncase "$*" in {case};; esac\nexec {sys.executable} "$@"\n')
    place.chmod(0o755)
    return str(place)


@pytest.mark.soak  # half a minute; the deadline itself: tests/remote/test_deadline.py
def test_an_upload_that_outlasts_what_was_budgeted_is_ended_there(runpod: Rents, tmp_path: Path) -> None:
    # Whoever receives the package takes its time; all that the rental may last is some 19 s.
    python = _interpreter(tmp_path / "slow", "*package.sealed*) exec sleep 90")
    short = ["order=protected-only", "measure.leg_deadline_extra_sec=10", "measure.leg_deadline_factor=1"]
    words = [*short, f"provider.python={python}", "provider.boot_deadline_sec=4"]
    planned = json.loads(runpod("plan", "--json", *SHORT, "provider=runpod", *words).stdout)
    exit_code, record, err = runpod.rent(*words)
    assert exit_code == 3, err
    assert "rental-deadline" in codes(record)
    assert "the time that was budgeted for the rental has passed" in err
    assert 0 < record["figures"]["costUsd"] <= planned["maxUsd"]
    runpod.settled()


def test_a_machine_that_cannot_be_made_ready_says_why(runpod: Rents, tmp_path: Path) -> None:
    python = _interpreter(tmp_path / "bare", "*NO_KERNELS*) echo 'torch has no kernels' >&2; exit 13")
    exit_code, record, err = runpod.rent(f"provider.python={python}")
    assert exit_code == 3, err
    assert "torch-architecture" in codes(record)
    assert "uploading" not in err
    runpod.settled()


def test_a_delete_that_does_not_delete_is_loud_and_reap_ends_it(rents: Rents) -> None:
    rents.fault("boot-exit", 2)
    rents.fault("delete-noop", 999)
    exit_code, record, err = rents.rent("-m", "repeat=0,1")
    assert exit_code == 4, err
    assert "stopped before cell 2 of 2" in err  # no second machine beside one that does not go
    assert rents.state()["created"] == 1
    assert {"boot-failed", "cleanup-not-proven"} <= set(codes(record))
    (pod,) = [pod for pod in rents.state()["pods"] if pod["active"] and pod["name"].startswith("gh-")]
    last = err.strip().splitlines()[-1]
    assert "CLEAN-UP NOT PROVEN (nonzero)" in last
    assert pod["id"] in last
    assert "https://" in last
    released = (Path(record["folder"]) / "bundle/release.json").read_text()
    assert pod["id"] not in released
    rents.server.cloud.faults.clear()
    done = rents("reap", "--json")
    assert done.returncode == 0, done.stdout
    assert rents.state()["active"] == 0


@pytest.mark.soak  # most of a minute; pods that exit at boot and between legs: tests/providers
def test_a_container_that_exits_in_the_first_leg(runpod: Rents) -> None:
    words = [*SHORT, "provider=runpod", "duration=4"]  # the leg is still at work when its machine goes
    process = runpod.start("run", "--json", "--out", str(runpod.runs), *words)
    begun = "*/parts/legs/s001-protected/events.jsonl"
    wait_until(lambda: bool(list(runpod.runs.glob(begun))), 90, "a leg that is at work")
    (pod,) = [pod for pod in runpod.server.cloud.living() if not pod.foreign]
    runpod.server.cloud.exit_pod(pod.id)
    out, err = process.communicate(timeout=90)
    (record,) = json.loads(out)["runs"]
    assert process.returncode == 1, err
    assert {"protected-incomplete", "pod-unreachable"} <= set(codes(record))
    # An exited pod bills on, and one API of the two says that it costs nothing: it goes all the same.
    assert record["figures"]["costUsd"] > 0
    runpod.settled()


def test_an_interrupt_while_a_machine_boots(rents: Rents) -> None:
    rents.fault("boot-stuck", 9)
    process = rents.start("run", "--json", "--out", str(rents.runs), *SHORT, f"provider={rents.kind}")
    wait_until(lambda: rents.state()["created"] == 1, 60, "a machine")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "interrupted" in codes(json.loads(out)["runs"][0])
    rents.settled()


@pytest.mark.parametrize("finisher", ["watchdog", "reap"])
def test_a_controller_killed_at_a_random_moment_leaves_nothing(runpod: Rents, finisher: str) -> None:
    seed = int(os.environ.get("GLASSHOUSE_TEST_SEED", random.randrange(1 << 30)))
    delay = random.Random(seed).uniform(0.0, 8.0)
    process = runpod.start("run", "--out", str(runpod.runs), *SHORT, "provider=runpod", "duration=20")
    wait_until(lambda: bool(list(runpod.runs.glob("*/parts/plan.dsse.json"))), 60, "a plan")
    time.sleep(delay)
    (folder,) = runpod.runs.glob("2*")
    if finisher == "watchdog":
        process.kill()
        process.communicate()
    else:
        kill_with_watchdog(process, folder)
        # Killed before the intent was written, there is nothing that reap could know of, or need to.
        done = runpod("reap", "--json")
        assert done.returncode == 0, (seed, done.stdout)
        known = json.loads(done.stdout)["allocations"]
        if not known:
            assert runpod.state()["created"] == 0, seed
            return
    wait_until((folder / "bundle/record.json").exists, 60, f"the record (GLASSHOUSE_TEST_SEED={seed})")
    wait_until(lambda: not (folder / "parts").exists(), 10, "the end of the finisher")
    record = json.loads((folder / "bundle/record.json").read_bytes())
    assert "controller-killed" in codes(record), seed
    runpod.settled()
    assert json.loads(runpod("reap", "--json").stdout)["allocations"] == []


def test_reap_gives_a_machine_back_whose_run_folder_is_gone(rents: Rents) -> None:
    rents.fault("boot-stuck", 9)
    process = rents.start("run", "--out", str(rents.runs), *SHORT, f"provider={rents.kind}")
    wait_until(lambda: rents.state()["created"] == 1, 60, "a machine")
    (folder,) = rents.runs.glob("2*")
    kill_with_watchdog(process, folder)
    shutil.rmtree(folder)
    dry = json.loads(rents("reap", "--dry-run", "--json").stdout)
    assert [item["state"] for item in dry["allocations"]] == ["would-reap"]
    assert rents.state()["active"] == 1
    done = rents("reap", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["allocations"][0]["proof"] == "zero"
    rents.settled()


def test_two_sweeps_share_one_cap(runpod: Rents) -> None:
    runpod.fault("boot-stuck", 9)
    words = ["run", "--out", str(runpod.runs), *SHORT, "provider=runpod"]
    ceiling = json.loads(runpod("plan", "--json", *words[3:]).stdout)["maxUsd"]
    environment = runpod.environment | {"GLASSHOUSE_MAX_USD": f"{1.5 * ceiling:.2f}"}
    first = runpod.start(*words)
    wait_until(lambda: runpod.state()["created"] == 1, 60, "the first one's machine")
    second = subprocess.run(
        [*first.args],  # type: ignore[misc]
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 2, second.stderr
    assert "reserved already" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert runpod.state()["created"] == 1
    runpod.settled()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["runpod", "vastai"])
def test_twenty_cells_with_random_faults(kind: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("GLASSHOUSE_TEST_SEED", "1"))
    # wrong-gpu is no fault that a second try mends: such a cell ends excluded.
    faults = FaultPlan(seed=seed, rate=0.15, kinds=[*RANDOM_KINDS, "wrong-gpu"])
    with renting(kind, tmp_path, faults) as program:
        cells = ",".join(map(str, range(20)))
        words = ["-m", f"repeat={cells}", "--json", "--out", str(program.runs), *SHORT, f"provider={kind}"]
        done = program(*words, timeout=1700)
        runs = json.loads(done.stdout)["runs"]
        counted = Counter(record["status"] for record in runs)
        assert len(runs) == counted["verified"] + counted["excluded"] == 20, done.stderr
        assert counted["verified"] >= 5, done.stderr
        plans = json.loads(program("ledger", "--json").stdout)
        assert plans
        assert program.state()["faults"], "no fault struck"
        assert all(codes(record) for record in runs if record["status"] == "excluded")
        if done.returncode == 4:
            program.server.cloud.faults.clear()
            assert program("reap").returncode == 0
        program.settled()
        for record in runs:
            assert program("verify", record["folder"]).returncode == 0
