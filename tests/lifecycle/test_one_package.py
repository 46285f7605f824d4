"""A run has one package on its machine: who opens it beside by a grant, and whose outputs come home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse import run as program
from glasshouse.lifecycle.collect import leave_outputs
from glasshouse.lifecycle.leg import Leg, protected_params, raw_params, returns_outputs
from glasshouse.lifecycle.live_run import LiveRun, create
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import Ready
from glasshouse.remote.pod import Pod
from glasshouse.runtime.params import LaunchParams, parse_launch, write_launch
from glasshouse.schema import Slot
from tests.specs import make_spec


def looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[LiveRun, Ready], None], **changes: Any
) -> Ready:
    """Run a local pod as far as its legs, and look at it there; what was ready, now that all has ended."""
    seen: list[Ready] = []

    def legs(live: LiveRun, ready: Ready) -> None:
        look(live, ready)
        seen.append(ready)

    monkeypatch.setattr(program, "_legs", legs)
    program.run_sweep([([], make_spec(**changes))], out=folder / "runs", quiet=True, as_json=True)
    return seen[0]


def as_told(launch: LaunchParams) -> LaunchParams:
    """What the pod reads of a launch."""
    line, _, secret = write_launch(launch).partition(b"\n")
    return parse_launch(line, bytearray(secret))


@pytest.mark.parametrize("payload", ["private", "public"])
def test_without_raw_slots_nothing_opens_the_package_but_a_grant(
    payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(live: LiveRun, ready: Ready) -> None:
        leg = Leg(live.run.schedule[0], 1, ready.root, "")
        given = as_told(protected_params(live, ready, leg, ticket=bytes(range(32)), broker_port=1))
        assert (given.secret, given.private) == (bytes(range(32)), payload == "private")
        assert ready.raw_key == b""
        with pytest.raises(ValueError, match="payload key"):  # there is none to tell
            as_told(raw_params(live, ready, leg))
        if payload == "private":  # and were there one, the machine would refuse it
            ready.raw_key = bytearray(range(32))
            with pytest.raises(ValueError, match="no raw launch opens a private payload"):
                as_told(raw_params(live, ready, leg))

    looked_at(tmp_path, monkeypatch, look, order="protected-only", payload=payload)


def test_raw_slots_of_a_public_run_are_told_the_key_and_no_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(live: LiveRun, ready: Ready) -> None:
        raw, protected = (Leg(slot, 1, ready.root, "") for slot in live.run.schedule)
        clear = as_told(raw_params(live, ready, raw))
        sealed = as_told(protected_params(live, ready, protected, ticket=bytes(range(32)), broker_port=1))
        assert any(clear.secret)
        assert (clear.package, clear.manifest_hash) == (sealed.package, sealed.manifest_hash)
        assert (clear.markers, clear.markers_hash) == ("", "")
        assert sealed.markers == f"{ready.root}/markers.sealed"
        assert sealed.secret == bytes(range(32))
        found = sorted(ready.pod.check(["ls", ready.root], "looking").decode().split())
        assert found == ["markers.sealed", "package.sealed", Path(ready.archive).name]

    ready = looked_at(tmp_path, monkeypatch, look, order="raw-first")
    assert len(ready.raw_key) == 32
    assert not any(ready.raw_key)  # the run has ended


@pytest.mark.parametrize("order", ["raw-first", "protected-first", "abba", "protected-only"])
def test_the_last_protected_slot_returns_outputs_and_no_other(order: str, tmp_path: Path) -> None:
    live = create(make_spec(order=order, measure={"burn_in_slots": 2}), tmp_path, Screen(quiet=True), [])
    protected = [slot for slot in live.run.schedule if slot.lifecycle]
    assert [slot for slot in protected if returns_outputs(live, slot)] == protected[-1:]


def test_outputs_that_do_not_come_home_are_removed_and_the_log_is_not_lost(pod: Pod, tmp_path: Path) -> None:
    live = create(make_spec(order="abba"), tmp_path, Screen(quiet=True), [])
    root = pod.check(["pwd"], "looking").decode().strip()
    leg = Leg(Slot(0, 0, 0, "protected", True, 0.0, 1.0, None, False, 0.0), 1, root, "")
    for name in ("outputs.sealed", "log.sealed", "events.jsonl"):
        pod.put(name.encode(), f"{leg.pod_folder}/{name}")
    for _ in range(2):  # also where there are none
        leave_outputs(live, pod, leg)
    assert {path.name: path.read_bytes() for path in live.folder.outputs.iterdir()} == {
        "s000-1-log.sealed": b"log.sealed"
    }
    there = pod.check(["ls", leg.pod_folder], "looking").decode().split()
    assert sorted(there) == ["events.jsonl", "log.sealed"]
