"""What a full disk here, and a machine that announces more than a disk holds, do to what comes home."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import NoRoom, ProviderError
from glasshouse.lifecycle import arms, checkpoints, disk, finish, slots, unattended
from glasshouse.lifecycle.checkpoints import Inflow, Store, fetch, give_room, records, stored
from glasshouse.lifecycle.follow import Event
from glasshouse.lifecycle.leg import Leg
from glasshouse.lifecycle.live_run import LeftWaiting, create
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.journal import Journal
from glasshouse.providers.local import LocalProvider
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod
from glasshouse.runtime import kept
from glasshouse.runtime.events import event_hash
from glasshouse.spec import LocalProvider as LocalSpec
from tests.lifecycle.test_checkpoints import SLOT, Sealing, beside, sealing
from tests.lifecycle.test_reap import QUIET
from tests.lifecycle.test_unattended import PRIVATE, ends, job, launch, taken
from tests.specs import make_spec

__all__ = ["sealing"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def disk_of(monkeypatch: pytest.MonkeyPatch, folder: Path, total: int) -> None:
    """From now on the disk beneath `folder` has so many bytes, of which its files take theirs."""

    def usage(_: object) -> Usage:
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Usage(total, used, total - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_what_keeps_coming_leaves_a_tenth_of_the_disk_and_what_comes_last_a_tenth_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_of(monkeypatch, tmp_path, 1000)
    assert (disk.room(tmp_path), disk.room(tmp_path, last=True)) == (900, 900)
    (tmp_path / "file").write_bytes(bytes(950))
    assert (disk.room(tmp_path), disk.room(tmp_path, last=True)) == (0, 45)
    disk_of(monkeypatch, tmp_path, 1 << 40)
    assert disk.room(tmp_path) == (1 << 40) - 950 - disk.KEEP_FREE_BYTES


def points(folder: RunFolder, *sizes: int) -> None:
    place = folder.path / "checkpoints" / "s000-1"
    place.mkdir(parents=True)
    for number, size in enumerate(sizes, start=1):
        (place / f"{number:06d}.sealed").write_bytes(bytes(size))
        (place / f"{number:06d}.events.jsonl").write_bytes(bytes(10))


def test_checkpoints_go_where_outputs_need_their_room_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    points(folder, 300, 300)
    disk_of(monkeypatch, tmp_path, 1000)
    assert give_room(folder, 300) == []
    assert [each.number for each in give_room(folder, 500)] == [1]
    assert [each.number for each in stored(tmp_path)] == [2]
    assert not (tmp_path / "checkpoints" / "s000-1" / "000001.events.jsonl").exists()
    with pytest.raises(NoRoom, match=r"outputs need 0\.0 MB") as caught:
        give_room(folder, 901)
    assert caught.value.exit_code == 3
    assert [each.number for each in stored(tmp_path)] == [2]  # nothing goes for nothing
    assert [each.number for each in give_room(folder, 900)] == [2]


def test_a_checkpoint_without_room_is_left_there_and_said_once(
    sealing: Sealing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        disk_of(patch, sealing.folder.path, 100_000)
        for number in range(1, 4):
            sealing.seal(bytes([number]) * 95_000, state="unmarked")
            sealing.poll()
            sealing.steps()
        sealing.seal(bytes(1000), "watch")
        sealing.poll()
        sealing.steps()
        assert sealing.at_home() == ["watch/s000-1/000001.sealed"]
        assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []
    assert capsys.readouterr().err.count("checkpoint 1 is not fetched: it needs 0.1 MB") == 1
    home = fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg)
    assert [each.number for each in home] == [3, 2]
    assert sealing.at_home() == [*beside(2), *beside(3), "watch/s000-1/000001.sealed"]


def test_numbers_that_skip_and_records_of_another_size_bring_nothing(sealing: Sealing) -> None:
    sealing.seal(b"1" * 100, "watch", number=2)
    sealing.seal(bytes(kept.MAX_BYTES["watch"] + 1), "watch", number=1)
    sealing.seal(b"1" * 100, number=7)
    sealing.poll()
    assert sealing.steps() == 0
    assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []
    path = sealing.seal(b"3" * 100, "watch", number=1)
    path.rename(path.with_name("000001.sealed"))
    sealing.poll()
    sealing.steps()
    assert sealing.at_home() == ["watch/s000-1/000001.sealed"]
    # Who goes on with it knows what was heard.
    later = Inflow(sealing.folder, sealing.screen, sealing.pod, sealing.leg)
    later.heard(
        Event("watched", {"number": 1, "bytes": 1, "ciphertextSha256": hashlib.sha256(b"").hexdigest()})
    )
    assert not later.step()


def test_the_records_of_a_run_have_a_most_size_in_all(
    sealing: Sealing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_RECORDS_BYTES", 250)
    for _ in range(4):
        sealing.seal(b"1" * 100, "watch")
    sealing.poll()
    sealing.steps()
    assert [number for _, _, number, _ in records(sealing.folder.path)] == [1, 2]
    assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []


def test_many_announced_records_cost_one_look_each(
    tmp_path: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.parts.mkdir(parents=True)
    inflow = Inflow(folder, Screen(), pod, Leg(SLOT, 1, str(tmp_path / "pod"), ""))
    looks = []
    monkeypatch.setattr(Store, "has", lambda _, signed: looks.append(signed.number))
    digest = hashlib.sha256(b"").hexdigest()
    for number in range(1, 5001):
        inflow.heard(Event("watched", {"number": number, "bytes": 1, "ciphertextSha256": digest}))
    assert inflow.step()
    assert len(looks) == 5000


# --- outputs for which there is no room ----------------------------------------------------------


def test_outputs_without_room_wait_on_the_machine_until_somebody_gives_them_up(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = job(endpoint, tmp_path)
    events = (it.pod / "ended.jsonl").read_bytes().splitlines()
    done: dict[str, object] = {
        "status": "complete", "code": None, "reasonCodes": [], "timings": {},
        "eventsHead": event_hash(events[-1]), "eventCount": len(events),
    }  # fmt: skip
    ends(it, done)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 990, 10))
    for stay in (False, True):
        found = taken(it, stay=stay)
        assert (found.goes_on, found.over) == (True, False)
        assert found.why.startswith("its outputs need 3.1 MB of this computer's disk, which has 0.0 MB")
        assert "make room and reap again" in found.why
    assert (it.pod / "outputs.sealed").exists()
    assert not (it.live.folder.parts / it.leg.file("launch.json")).exists()
    assert not it.outputs.exists()
    monkeypatch.undo()
    unattended.ask_stop(it.live.folder.path, "end")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 990, 10))
    assert taken(it).over
    assert launch(it)["code"] == "no-room-at-home"


def test_a_controller_leaves_them_there_and_a_job_that_is_to_stop_loses_them(
    tmp_path: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = create(make_spec(**PRIVATE), tmp_path, QUIET, [])
    leg = Leg(live.run.schedule[0], 1, str(tmp_path / "pod"), "protected leg")
    missing = NoRoom("its outputs need 5.1 MB of this computer's disk, which has 1.7 MB for them")
    with pytest.raises(NoRoom), arms.outputs_kept(live, pod, leg):
        raise missing
    live.rental.unattended_until = time.time() + 600
    with pytest.raises(LeftWaiting) as caught, arms.outputs_kept(live, pod, leg):
        raise missing
    line = caught.value.line()
    assert line.startswith(f"{missing.what}: they wait on its machine until ")
    assert f"glasshouse reap --stop {live.run.id} gives them up" in line
    assert caught.value.exit_code == 3

    def raising(error: Exception) -> object:
        def arm(*_: object) -> None:
            raise error

        return arm

    class Ready:
        root = str(tmp_path)

    for error, written in ((caught.value, False), (missing, True)):
        monkeypatch.setattr(arms, "protected", raising(error))
        with pytest.raises(Exception, match="its outputs need") as left:
            slots.launched(live, Ready(), Leg(leg.slot, 1 + written, "", ""))  # type: ignore[arg-type]
        place = live.folder.parts / Leg(leg.slot, 1 + written, "", "").file("launch.json")
        assert place.exists() == written
        assert left.value.code == (Code.NO_ROOM_AT_HOME if written else None)  # type: ignore[attr-defined]
    assert parse_json(place.read_bytes())["code"] == "no-room-at-home"


def test_a_release_that_was_proven_and_not_written_down_is_no_doubt_about_a_machine(tmp_path: Path) -> None:
    live = create(make_spec(**PRIVATE), tmp_path, QUIET, [])
    with Journal() as journal, LocalProvider(LocalSpec(kind="local")) as provider:
        journal.intend(live.run.id, live.run.allocation, "local", {})
        live.folder.parts.rename(tmp_path / "gone")
        live.folder.parts.write_bytes(b"no folder")
        with pytest.raises(FileExistsError) as caught:
            finish.release(live, provider, journal)
        said = finish.broken_off(live, provider, journal, caught.value)
    assert isinstance(said, ProviderError)
    assert (said.exit_code, "is given back, and that is proven" in said.line()) == (3, True)
