"""Sealed outputs come home whatever goes wrong beside them: a dead connection, Ctrl-C, a failed leg."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.codes import Code
from glasshouse.errors import LegError, OutcomeUnknown
from glasshouse.lifecycle import collect
from glasshouse.lifecycle.arms import outputs_kept
from glasshouse.lifecycle.follow import CARRY
from glasshouse.lifecycle.leg import Leg, job_sec, leg_deadline_sec
from glasshouse.lifecycle.live_run import LiveRun, create
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.money import JOB_GRACE_SEC
from glasshouse.remote.pod import Pod
from glasshouse.runtime.cadence import report_every
from glasshouse.runtime.supervisor import MAX_EVENTS
from glasshouse.spec import MAX_HOURS
from tests.lifecycle.test_upload import Cutting
from tests.specs import make_spec

DATA = os.urandom(24_000_000)
PROJECT = {
    "kind": "project", "name": "project", "folder": "/f", "outputs": "out", "command": ["python", "a.py"],
}  # fmt: skip


def sealed(pod: Pod, out: Path, screen: Screen, data: bytes = DATA) -> tuple[LiveRun, Leg]:
    """A leg whose events at home name sealed outputs that lie on the pod."""
    live = create(make_spec(order="protected-only"), out, screen, [])
    leg = Leg(live.run.schedule[0], 1, f"{pod.endpoint.workdir}/pod", "protected leg")
    place = Path(leg.pod_folder)
    place.mkdir(parents=True)
    (place / "outputs.sealed").write_bytes(data)
    (place / "log.sealed").write_bytes(b"a log")
    body = {"ciphertextSha256": hashlib.sha256(DATA).hexdigest(), "bytes": len(DATA)}
    event = json.dumps({"type": "sealed-outputs", "body": body}).encode()
    live.folder.write_bytes(leg.file("events.jsonl"), event + b"\n")
    return live, leg


def home(live: LiveRun, name: str = "outputs.sealed") -> bytes:
    return live.folder.sealed("s000", 1, name).read_bytes()


def test_a_fetch_goes_on_from_what_arrived_over_a_connection_that_dies(pod: Pod, tmp_path: Path) -> None:
    screen = Cutting(pod, 1)
    live, leg = sealed(pod, tmp_path / "runs", screen)
    collect.fetch_outputs(live, pod, leg)
    assert home(live) == DATA
    assert screen.warned == ["connection lost while fetching; reconnecting, and going on from what arrived"]


def test_a_pod_that_cuts_every_connection_at_once_is_given_up(pod: Pod, tmp_path: Path) -> None:
    screen = Cutting(pod, 1000)
    live, leg = sealed(pod, tmp_path / "runs", screen, b"not what was signed")
    part = live.folder.sealed("s000", 1, "outputs.sealed.part")
    live.folder.outputs.mkdir()
    cut = pod.exists

    def exists(path: str) -> bool:
        pod.drop_transport()
        return cut(path)

    pod.exists = exists  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        collect.fetch_outputs(live, pod, leg)
    assert len(screen.warned) == CARRY.tries - 1
    assert not part.exists()


class Interrupted(Screen):
    """Somebody presses Ctrl-C at the first sign of progress."""

    pressed = False

    def progress(self, text: str, *, plain: bool = True) -> None:
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt


def test_ctrl_c_while_outputs_are_fetched_loses_none_of_them(pod: Pod, tmp_path: Path) -> None:
    live, leg = sealed(pod, tmp_path / "runs", Interrupted(quiet=True))
    with pytest.raises(KeyboardInterrupt), outputs_kept(live, pod, leg):
        collect.fetch_outputs(live, pod, leg)
    assert home(live) == DATA
    assert home(live, "log.sealed") == b"a log"


def test_a_leg_that_fails_after_it_sealed_loses_none_of_them_and_keeps_its_reason(
    pod: Pod, tmp_path: Path
) -> None:
    live, leg = sealed(pod, tmp_path / "runs", Screen(quiet=True))
    with pytest.raises(LegError) as raised, outputs_kept(live, pod, leg):
        raise LegError("the events fetched are not all there were", code=Code.EVENT_CHAIN_BROKEN)
    assert raised.value.code == Code.EVENT_CHAIN_BROKEN
    assert home(live) == DATA


def test_outputs_that_were_altered_are_not_kept_and_the_first_reason_stands(
    pod: Pod, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live, leg = sealed(pod, tmp_path / "runs", Screen(), b"x" * len(DATA))
    with pytest.raises(LegError) as raised, outputs_kept(live, pod, leg):
        raise LegError("the leg failed", code=Code.PROCESS_DIED)
    assert raised.value.code == Code.PROCESS_DIED
    assert not live.folder.sealed("s000", 1, "outputs.sealed").exists()
    assert "its sealed outputs could not be fetched: a file came back damaged" in capsys.readouterr().err


@pytest.mark.parametrize("hours", [None, 2.0])
@pytest.mark.parametrize("left", [300.0, 1000.0, 7300.0])
def test_a_project_is_asked_to_end_early_enough_to_save_before_its_rental_is_over(
    tmp_path: Path, hours: float | None, left: float
) -> None:
    spec = make_spec(
        model={**PROJECT, "max_hours": hours}, order="protected-only", payload="private", duration=None
    )
    live = create(spec, tmp_path, Screen(quiet=True), [])
    live.rental.deadline = time.monotonic() + left  # what boot and upload left of the rental
    deadline = leg_deadline_sec(live, live.run.schedule[0])
    asked = job_sec(spec, deadline)
    after = JOB_GRACE_SEC + spec.measure.leg_deadline_extra_sec
    assert 0 < asked <= max(left - after, left / 2)
    unhurried = replace(live.rental, deadline=float("inf"))
    live = replace(live, rental=unhurried)
    if hours is not None:
        assert job_sec(spec, leg_deadline_sec(live, live.run.schedule[0])) == hours * 3600
    assert job_sec(make_spec(), 100.0) == 0.0


def test_the_end_of_a_log_has_no_halves_of_escape_sequences() -> None:
    bar = "  5%| 3/64 [00:00<00:03]\x1b[A"
    log = f"{bar}glasshouse: what comes back of out: 0 files, 0 bytes\n"
    log += "\x1b[31mred\x1b[0m\x1b]52;c;aGk=\x07\x1b[3"
    assert collect.readable_lines(log) == [
        "  5%| 3/64 [00:00<00:03]",
        "glasshouse: what comes back of out: 0 files, 0 bytes",
        "red",
    ]
    assert all(line.isprintable() for line in collect.readable_lines("\x1b[\x9b1m\u202e\x1b\x1b[A\x00x\x1b]"))


def test_the_longest_job_reports_less_often_than_its_leg_has_room_for() -> None:
    at, reports = 0.0, 0
    while at < MAX_HOURS * 3600:
        at, reports = at + report_every(at), reports + 1
    assert reports < MAX_EVENTS / 10  # one event too many ends a leg, and its outputs are not sealed by then
