"""A package is sealed in its turn or while a machine boots; what ends either is told, and leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glasshouse.codes import Code
from glasshouse.errors import RentalOver, UsageError
from glasshouse.lifecycle import packer as module
from glasshouse.lifecycle.live_run import LiveRun, StepFailed, create
from glasshouse.lifecycle.packer import Packer, key_for_raw_legs
from glasshouse.lifecycle.screen import Screen
from glasshouse.run import run_sweep
from glasshouse.sealing.container import TensorSpec, open_package
from glasshouse.sealing.memory import overwrite
from glasshouse.sealing.tree import INDEX_NAME, parse_index
from glasshouse.workloads.made import MadeWeights
from glasshouse.workloads.package import Payload, prepare
from tests.e2e.conftest import wait_until
from tests.install.kit import make_wheel
from tests.lifecycle.test_screen import lines
from tests.providers.cloud_kit import VARIABLE, Rented, rented
from tests.specs import make_spec

Tensor = tuple[TensorSpec, memoryview]


@pytest.fixture
def live(tmp_path: Path) -> LiveRun:
    return create(make_spec(), tmp_path, Screen(), [])


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "packer"]


class Endless:
    """Tensors without end, once the first has come `begun` is set."""

    def __init__(self, most: int | None = None) -> None:
        self.begun = threading.Event()
        self._most = most  # of the first pass; in the second, only the end of the test is awaited

    def __iter__(self) -> Iterator[Tensor]:
        number, most = 0, self._most
        self._most = None
        while number != most:
            if most is None:
                self.begun.set()
                time.sleep(0.001)
            yield TensorSpec(f"w{number:08d}", "uint8", (64,)), memoryview(bytes(64))
            number += 1


def swap(monkeypatch: pytest.MonkeyPatch, made: Callable[[], Payload]) -> None:
    """Let the packer find another payload than the settings say."""
    monkeypatch.setattr(module, "prepare", lambda _spec: made())


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_sealed_opens_and_is_no_other_when_it_was_sealed_ahead(
    ahead: bool, live: LiveRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with Packer(live) as packer:
        if ahead:
            packer.begin()
        payload, sealed = packer.payload(), packer.sealed()
        assert packer.sealed() is sealed
        found = open_package(live.folder.package, payload_key=sealed.key, manifest_hash=sealed.manifest_hash)
        with found as package:
            assert sorted(package.files) == sorted(payload.files)
            assert [bytes(view) for _, view in package.tensors.values()] == [
                bytes(view) for _, view in prepare(live.run.spec)
            ]
            assert package.extra["run"] == live.run.id
        # What scans look for stands in a package of its own, under the same key, and differs in every run.
        place = live.folder.path / "markers"
        place.write_bytes(sealed.markers)
        with open_package(place, payload_key=sealed.key, manifest_hash=sealed.markers_hash) as package:
            assert {name: len(data) for name, data in package.files.items()} == {"marker": 32}
            marker = bytes(package.files["marker"])
        assert marker not in sealed.markers + live.folder.package.read_bytes()
        assert sealed.seconds > 0
    assert not any(sealed.key)
    said = capsys.readouterr().err
    assert ("… meanwhile: sealing the package" in said) is ahead
    assert ("… sealing the package" in said) is not ahead
    assert live.ending.failures == []


def test_a_run_without_a_protected_slot_has_a_package_and_no_markers(tmp_path: Path) -> None:
    live = create(make_spec(order="abba", control="aa"), tmp_path, Screen(quiet=True), [])
    with Packer(live) as packer:
        assert packer.launches == 0
        packer.begin()
        sealed = packer.sealed()
        assert live.folder.package.exists()
        assert (sealed.markers, sealed.markers_hash) == (b"", "")


@pytest.mark.parametrize("order", ["raw-first", "protected-first", "abba"])
def test_the_controller_keeps_a_key_for_raw_legs_of_a_public_payload_alone(
    order: str, tmp_path: Path
) -> None:
    key = bytearray(range(32))
    run = create(make_spec(order=order), tmp_path, Screen(quiet=True), []).run
    kept = key_for_raw_legs(run, key)
    overwrite(key)  # as who registers it does: the copy stays
    assert kept == bytes(range(32))
    # No such run can be planned; nor would one get a key, whoever had put it together.
    private = dataclasses.replace(run, spec=run.spec.model_copy(update={"payload": "private"}))
    with pytest.raises(UsageError, match="private"):
        key_for_raw_legs(private, bytearray(range(32)))


@pytest.mark.parametrize("payload", ["public", "private"])
def test_without_raw_legs_no_copy_of_the_key_is_made(payload: str, tmp_path: Path) -> None:
    spec = make_spec(order="protected-only", payload=payload)
    run = create(spec, tmp_path, Screen(quiet=True), []).run
    assert key_for_raw_legs(run, bytearray(range(32))) == b""


def test_what_needs_wheels_is_sealed_with_them_and_never_ahead(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "main.py").write_text("print()\n")
    (folder / "requirements.txt").write_text("alpha\n")
    model = {"kind": "project", "name": "p", "folder": str(folder), "command": ["python", "main.py"]}
    private = {"order": "protected-only", "payload": "private", "duration": None}
    live = create(make_spec(model=model, **private), tmp_path, Screen(quiet=True), [])
    wheel = make_wheel(tmp_path / "wheels", "alpha", "1.0")
    with Packer(live) as packer:
        packer.begin()
        before = packer.payload()
        assert before.needs
        assert not live.folder.package.exists()
        payload = packer.bring([wheel], 1000)
        size = wheel.stat().st_size
        assert payload.scratch_bytes == before.scratch_bytes + size + 1000
        sealed = packer.sealed()
        with open_package(
            live.folder.package, payload_key=sealed.key, manifest_hash=sealed.manifest_hash
        ) as package:
            names = [entry.path for entry in parse_index(package.files[INDEX_NAME]).entries]
        assert names == [f".glasshouse-wheels/{wheel.name}".encode(), b"main.py", b"requirements.txt"]


@pytest.mark.parametrize("where", ["making", "first pass", "second pass"])
def test_who_leaves_ends_the_thread_wherever_it_is(
    where: str, live: LiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless(20 if where == "second pass" else None)
    if where == "making":
        payload = Payload({}, weights=MadeWeights(lambda: iter(endless)))
    else:
        payload = Payload({"f": b"1"}, base=endless)  # type: ignore[arg-type]
    swap(monkeypatch, lambda: payload)
    with Packer(live) as packer:
        packer.begin()
        assert endless.begun.wait(60)
        assert threads()
    assert threads() == []
    assert live.ending.failures == []  # that it was stopped is no failure


def test_a_failure_is_raised_where_the_package_is_waited_for(
    live: LiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Payload:
        raise UsageError("file is gone", field="model.data", value="x")

    swap(monkeypatch, refuse)
    with Packer(live) as packer:
        packer.begin()
        with pytest.raises(StepFailed) as raised:
            packer.payload()
        assert (raised.value.reason, raised.value.exit_code) == (Code.SEAL_FAILED, 2)
        with pytest.raises(StepFailed):
            packer.check()
    assert live.ending.failures == []  # whoever was told notes it


def test_a_failure_that_nobody_was_told_of_is_noted_beside_what_ended_the_run(
    live: LiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Payload:
        raise OSError(28, "No space left on device")

    swap(monkeypatch, refuse)
    live.fail(Code.BOOT_TIMEOUT, "error: still starting", 3)
    with Packer(live) as packer:
        packer.begin()
        wait_until(lambda: threads() == [], 60, "its end")
    assert live.ending.failures == [Code.BOOT_TIMEOUT, Code.SEAL_FAILED]
    assert live.ending.messages[-1] == "error: unexpected OSError: [Errno 28] No space left on device"
    assert live.ending.exit_code == 3


def test_nobody_waits_past_the_end_of_the_rental(live: LiveRun, monkeypatch: pytest.MonkeyPatch) -> None:
    swap(monkeypatch, lambda: Payload({"f": b"1"}, base=Endless()))  # type: ignore[arg-type]
    live.rental.deadline = time.monotonic()
    with Packer(live) as packer:
        packer.begin()
        with pytest.raises(StepFailed) as raised:
            packer.sealed()
        assert raised.value.reason == RentalOver.code
    assert threads() == []


# --- whole runs, as far as a machine that does not boot lets them come ----------------------------------


def ran(it: Rented, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv(VARIABLE[it.kind], it.server.key)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "100")
    return run_sweep([([], it.spec)], out=folder / "runs", quiet=True, as_json=True)


def ended(folder: Path) -> list[str]:
    """The reason codes of what failed outside any leg, in their order."""
    (outcome,) = folder.glob("runs/2*/bundle/outcome.json")
    return list(json.loads(outcome.read_bytes())["codes"])


def check_gone(it: Rented, folder: Path) -> Path:
    """Nothing is left of a run that a booting machine was rented for; return its folder."""
    state = it.state()
    assert (state["created"], state["active"], threads()) == (1, 0, [])
    (run,) = folder.glob("runs/2*")
    assert not (run / "package.sealed").exists()
    left = [path.name for path in folder.glob("tmp/*")]
    assert [name for name in left if not name.startswith("glasshouse-fake-")] == []
    said = lines(run / "controller.log")
    assert not any("uploading" in line for line in said)
    assert any(line.startswith("nothing is left, and that is proven") for line in said)
    return run


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tmp/, where temporary files go."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


@pytest.mark.parametrize("kind", ["runpod", "vastai"])
def test_a_failure_while_a_machine_boots_ends_the_run_and_is_not_masked(
    kind: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The boot has half an hour; the test has three minutes.
    with rented(kind, timing=None, boot_deadline_sec=1800.0) as it:
        it.faults("boot-stuck", times=9)

        def vanish() -> Payload:
            wait_until(lambda: it.state()["created"] == 1, 60, "a machine")
            raise UsageError("cannot read the file: it is gone", field="model.data", value="x")

        swap(monkeypatch, vanish)
        assert ran(it, places, monkeypatch) == 2
        assert ended(places) == [Code.SEAL_FAILED]
        check_gone(it, places)


@pytest.mark.parametrize("where", ["making", "sealing"])
def test_ctrl_c_while_a_machine_boots_ends_the_sealing(
    where: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()

    def press() -> None:
        if endless.begun.wait(60):
            wait_until(lambda: it.state()["created"] == 1, 60, "a machine")
            os.kill(os.getpid(), signal.SIGINT)

    made: dict[str, Any] = (
        {"weights": MadeWeights(lambda: iter(endless))} if where == "making" else {"base": endless}
    )
    with rented("runpod", timing=None, boot_deadline_sec=1800.0) as it:
        it.faults("boot-stuck", times=9)
        swap(monkeypatch, lambda: Payload({"f": b"1"}, **made))
        presses = threading.Thread(target=press, daemon=True)
        presses.start()
        assert ran(it, places, monkeypatch) == 1
        presses.join(60)
        assert ended(places) == [Code.INTERRUPTED]
        said = lines(check_gone(it, places) / "controller.log")
        assert not any(line.startswith("✓ meanwhile: sealing") for line in said)


def test_a_rental_that_fails_ends_the_sealing(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rented("runpod", timing=None) as it:
        it.faults("create-capacity", times=99)
        swap(monkeypatch, lambda: Payload({"f": b"1"}, base=Endless()))  # type: ignore[arg-type]
        assert ran(it, places, monkeypatch) == 3
        assert ended(places) == [Code.NO_CAPACITY]
        assert (it.state()["created"], threads()) == (0, [])
        assert list(places.glob("runs/*/package.sealed")) == []
