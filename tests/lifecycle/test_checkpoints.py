"""What a leg seals while it goes on comes home in chunks, though the connection dies; nothing else does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.errors import OutcomeUnknown
from glasshouse.lifecycle import checkpoints
from glasshouse.lifecycle.checkpoints import Inflow, fetch, records, stored
from glasshouse.lifecycle.follow import Event, EventLog
from glasshouse.lifecycle.leg import Leg
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.lifecycle.screen import Screen
from glasshouse.records.keys import public_bytes
from glasshouse.remote.pod import Pod
from glasshouse.runtime.events import EventWriter, event_hash
from glasshouse.schema import Slot

SLOT = Slot(0, None, 0, "protected", True, 0.0, None, 1, False, 0.0)
KEY, OPERATOR, GRANT = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), "a.b.c"


class Sealing:
    """A leg's folder on a pod, in which files are sealed one after the other; and the run's at home."""

    def __init__(self, base: Path, pod: Pod) -> None:
        self.pod, self.leg = pod, Leg(SLOT, 1, str(base / "pod"), "protected leg")
        self.there = Path(self.leg.pod_folder)
        self.there.mkdir(parents=True)
        self.folder = RunFolder(base / "run")
        self.home = self.folder.parts / self.leg.folder
        self.home.mkdir(parents=True)
        self.events = self.there / "events.jsonl"
        self._descriptor = os.open(self.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._writer = EventWriter(self._descriptor, KEY, 0.0)
        self._writer.begin(GRANT)
        self.log = EventLog(self.home, OPERATOR, run="r", leg="s000", launch=1, interval=1000.0)
        self.log.begin(public_bytes(KEY), GRANT)
        self.screen = Screen()
        self.inflow = Inflow(self.folder, self.screen, pod, self.leg)
        self._numbers = {"checkpoint": 0, "watch": 0}
        self.progress()

    def close(self) -> None:
        os.close(self._descriptor)

    def progress(self) -> None:
        self._writer.append("progress", {"phase": "job", "elapsedSec": 1.0, "units": 0})

    def seal(self, data: bytes, kind: str = "checkpoint", state: str = "whole", **changes: Any) -> Path:
        number = self._numbers[kind] = self._numbers[kind] + 1
        path = self.there / checkpoints.FOLDERS[kind] / f"{number:06d}.sealed"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        body = {"number": number, "bytes": len(data), "ciphertextSha256": hashlib.sha256(data).hexdigest()}
        if kind == "checkpoint":
            body |= {"plaintextSha256": "0" * 64, "state": state, "steps": number}
        self._writer.append(
            {"checkpoint": "checkpoint-sealed", "watch": "watched"}[kind], {**body, **changes}
        )
        return path

    def poll(self) -> list[Event]:
        found = self.log.feed(self.events.read_bytes()[self.log.size :])
        for event in found:
            self.inflow.heard(event)
        return found

    def steps(self) -> int:
        count = 0
        while self.inflow.step():
            count += 1
        return count

    def at_home(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder.path))
            for place in ("checkpoints", "watch")
            for path in (self.folder.path / place).rglob("*")
            if path.is_file()
        )


@pytest.fixture
def sealing(tmp_path: Path, pod: Pod) -> Iterator[Sealing]:
    made = Sealing(tmp_path, pod)
    yield made
    made.close()


def beside(number: int) -> list[str]:
    place = f"checkpoints/s000-1/{number:06d}"
    return [f"{place}.events.jsonl", f"{place}.heads.jsonl", f"{place}.sealed"]


def test_each_comes_with_the_chain_up_to_it_and_what_of_that_was_countersigned(sealing: Sealing) -> None:
    first = os.urandom(3_000_000)
    sealing.seal(first)
    sealing.progress()  # both in one poll: the head of the checkpoint is signed all the same
    sealing.poll()
    assert not sealing.at_home()
    assert sealing.steps() >= 2  # a chunk at a time
    assert sealing.at_home() == beside(1)
    (one,) = stored(sealing.folder.path)
    assert (one.number, one.leg, one.launch) == (1, "s000", 1)
    assert one.path.read_bytes() == first
    assert one.path.stat().st_mode & 0o077 == 0
    lines = sealing.events.read_bytes().splitlines(keepends=True)
    assert one.events.read_bytes() == b"".join(lines[:2])
    heads = [json.loads(line) for line in one.heads.read_bytes().splitlines()]
    assert (heads[-1]["seq"], heads[-1]["head"]) == (1, event_hash(lines[1].rstrip(b"\n")))
    assert list((sealing.there / "checkpoints").iterdir()) == [
        sealing.there / "checkpoints" / "000001.sealed"
    ]


def test_two_are_kept_and_records_all(sealing: Sealing, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 4):
        sealing.seal(bytes([number]) * 1000, state="unmarked")
        sealing.seal(bytes([number]) * 100, "watch")
        sealing.poll()
        sealing.steps()
    assert [each.number for each in stored(sealing.folder.path)] == [3, 2]
    assert [number for _, _, number, _ in records(sealing.folder.path)] == [1, 2, 3]
    assert "checkpoint 3 is home, 0.0 MB sealed, which nothing marks as whole" in capsys.readouterr().err


def test_how_to_mark_a_set_is_said_once_and_numbers_never_go_back(
    sealing: Sealing, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        sealing.seal(bytes([number]) * 1000, state="unmarked")
        if number != 2:  # 2 and 3 wait together: the newer one comes first
            sealing.poll()
            sealing.steps()
    said = [line for line in capsys.readouterr().err.splitlines() if "is home" in line]
    assert [line.split()[1] for line in said] == ["1", "3"]
    assert [line.endswith("the file that model.checkpoint_ready names)") for line in said] == [True, False]
    assert [each.number for each in stored(sealing.folder.path)] == [3, 2]


def test_of_many_that_wait_the_newest_comes_first_and_the_rest_not_at_all(sealing: Sealing) -> None:
    for number in range(1, 6):
        sealing.seal(bytes([number]) * 1000, state="whole" if number == 2 else "unmarked")
    sealing.poll()
    sealing.inflow.step()
    assert [each.number for each in stored(sealing.folder.path)] == [5]
    sealing.steps()
    assert [each.number for each in stored(sealing.folder.path)] == [5, 2]  # the one that is known to be good


def test_a_lost_connection_costs_nothing_but_the_chunk(sealing: Sealing) -> None:
    data = os.urandom(5_000_000)
    sealing.seal(data)
    sealing.poll()
    sealing.inflow.step()
    sealing.pod.drop_transport()
    with pytest.raises(OutcomeUnknown):
        sealing.steps()
    part = sealing.folder.path / "checkpoints" / "s000-1" / "000001.sealed.part"
    had = part.stat().st_size
    assert 0 < had < len(data)
    sealing.pod.reconnect()
    sealing.steps()
    assert stored(sealing.folder.path)[0].path.read_bytes() == data


def test_what_the_pod_removes_meanwhile_comes_to_its_end(sealing: Sealing) -> None:
    data = os.urandom(5_000_000)
    path = sealing.seal(data)
    sealing.poll()
    sealing.inflow.step()
    path.unlink()  # as its second successor has it
    sealing.steps()
    assert stored(sealing.folder.path)[0].path.read_bytes() == data
    assert list(path.parent.iterdir()) == []  # no second name of it is left either


def test_what_is_gone_before_it_was_begun_is_passed_over(sealing: Sealing) -> None:
    sealing.seal(b"1" * 1000).unlink()
    sealing.seal(b"2" * 1000, state="unmarked")
    sealing.poll()
    sealing.steps()
    assert [each.number for each in stored(sealing.folder.path)] == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(b"x" * 2_000_000), "is not on the machine what the leg signed"),
        (lambda path: os.truncate(path, 1_500_000), "is shorter on the machine than it was signed"),
    ],
    ids=["altered", "shortened"],
)
def test_what_is_not_what_was_signed_has_no_name_here(
    sealing: Sealing, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], words: str
) -> None:
    change(sealing.seal(os.urandom(2_000_000)))
    sealing.poll()
    sealing.steps()
    assert sealing.at_home() == []
    assert f"checkpoint 1 {words}" in capsys.readouterr().err
    assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []
    assert [path for path in sealing.at_home() if path.endswith(".sealed")] == []


@pytest.mark.parametrize(
    "changes",
    [{"number": 0}, {"number": -1}, {"number": "../../x"}, {"number": 10**9}, {"bytes": 0}, {"bytes": True},
     {"bytes": 1 << 40}, {"ciphertextSha256": "x"}, {"ciphertextSha256": None}],
    ids=str,
)  # fmt: skip
def test_an_event_that_says_odd_things_brings_nothing(sealing: Sealing, changes: dict[str, Any]) -> None:
    sealing.seal(b"1" * 1000, **changes)
    sealing.poll()
    assert sealing.steps() == 0
    assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []
    assert sealing.at_home() == []


def test_who_comes_later_goes_on_from_what_there_is(sealing: Sealing) -> None:
    data = os.urandom(4_000_000)
    sealing.seal(b"1" * 1000)
    sealing.seal(data)
    sealing.seal(b"r" * 100, "watch")
    sealing.poll()
    sealing.inflow.step()  # the record, which somebody may wait for
    sealing.inflow.step()
    part = sealing.folder.path / "checkpoints" / "s000-1" / "000002.sealed.part"
    assert part.exists()
    home = fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg)
    assert [(each.kind, each.number) for each in home] == [("checkpoint", 2), ("checkpoint", 1)]
    assert stored(sealing.folder.path)[0].path.read_bytes() == data
    assert sealing.at_home() == [*beside(1), *beside(2), "watch/s000-1/000001.sealed"]
    assert fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg) == []


def test_records_alone_come_where_the_outputs_did(sealing: Sealing) -> None:
    sealing.seal(b"1" * 1000)
    sealing.seal(b"r" * 100, "watch")
    sealing.poll()
    home = fetch(sealing.folder, sealing.screen, sealing.pod, sealing.leg, most=0)
    assert [(each.kind, each.number) for each in home] == [("watch", 1)]


def test_newest_means_of_the_last_launch(tmp_path: Path) -> None:
    for leg, number in (("s000-1", 7), ("s000-2", 1), ("s000-10", 1)):
        place = tmp_path / "checkpoints" / leg
        place.mkdir(parents=True)
        (place / f"{number:06d}.sealed").touch()
        (place / f"{number:06d}.sealed.part").touch()
    (tmp_path / "checkpoints" / "other").mkdir()
    (tmp_path / "checkpoints" / "file").touch()
    assert [(each.launch, each.number) for each in stored(tmp_path)] == [(10, 1), (2, 1), (1, 7)]
    assert stored(tmp_path / "nowhere") == []
