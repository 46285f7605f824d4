"""A keeper with its supervisor's side, as real processes; and that side against whatever a keeper may say."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse.canonical import sha256_hex
from glasshouse.errors import SealError
from glasshouse.runtime import keeper, kept
from glasshouse.runtime.channel import ChannelClosedError, channel_pair
from glasshouse.runtime.keeper import Duties, Ends
from glasshouse.runtime.kept import Kept
from glasshouse.runtime.linux import PR_SET_CHILD_SUBREAPER, prctl
from glasshouse.runtime.residue import Needle, open_self
from glasshouse.runtime.results import Keeping
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.sealing.memory import private_region
from glasshouse.sealing.outputs import open_outputs
from glasshouse.sealing.tree import INDEX_NAME, write_tree
from tests.runtime.rig import wait_until
from tests.runtime.test_linux import in_child, needs_landlock

CONTEXT = {"run": "r", "leg": "s000", "launch": "1"}
OWNER = generate_kem_key()


class Watched:
    """What a test does in the process that stands for supervisor and trainer."""

    def __init__(self, base: Path, **changes: Any) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        keeper.MIN_EVERY_SEC = 0.2
        self.outputs, self.leg = base / "outputs", base / "leg"
        self.outputs.mkdir()
        self.leg.mkdir()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.lines: list[bytes] = []
        ours, theirs = channel_pair()
        read_end, write_end = os.pipe()
        duties = Duties(
            folder=self.outputs, owner_public=kem_public_bytes(OWNER), context=CONTEXT, steps=lambda: 7,
            **{"checkpoint_sec": 0.2, "ready": "", "watch_sec": 0.0, **changes},
        )  # fmt: skip
        self._region = private_region(4096)
        with Path("/dev/urandom").open("rb", buffering=0) as source:  # so that it lies nowhere else
            source.readinto(self._region)
        package: Any = SimpleNamespace(region=self._region, beside=None)
        keeper.fork(Ends(theirs, write_end), duties, package, supervisor=os.getpid())
        self.kept = Kept(ours, read_end, self.leg, self._event, self.lines.append)
        self.kept.start()

    def _event(self, kind: str, body: Any) -> None:
        self.events.append((kind, dict(body)))

    def until(self, count: int) -> list[str]:
        """The states of so many checkpoints, once there are as many."""
        wait_until(lambda: len(self.events) >= count, 20, f"{count} events: {self.events}")
        return [body["state"] for kind, body in self.events if kind == "checkpoint-sealed"]

    def pid(self) -> int:
        wait_until(lambda: self.kept.pid is not None, 20, "the keeper's pid")
        assert self.kept.pid is not None
        return self.kept.pid

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.leg)) for path in self.leg.rglob("*") if path.is_file())

    def end(self) -> tuple[Keeping, list[Needle]]:
        ended, found, _ = self.kept.end([Needle("secret", bytearray(self._region[:24]))])
        with contextlib.suppress(ChildProcessError):
            assert os.waitpid(-1, os.WNOHANG) == (0, 0), "it was not reaped"
        return ended, found


def save(folder: Path, name: str, size: int = 1000) -> None:
    """As transformers' Trainer does it."""
    writing = folder / f"tmp-{name}"
    writing.mkdir()
    (writing / "weights.bin").write_bytes(os.urandom(size))
    time.sleep(0.02)
    writing.rename(folder / name)


def test_what_rests_is_sealed_and_what_is_renamed_is_whole(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        time.sleep(0.6)
        assert one.events == []  # an empty folder is none
        (one.outputs / "a.bin").write_bytes(b"a" * 1000)
        assert one.until(1) == ["unmarked"]
        time.sleep(0.8)
        assert len(one.events) == 1  # an unchanged one neither
        save(one.outputs, "checkpoint-5")
        assert one.until(2) == ["unmarked", "whole"]
        ended, found = one.end()
        return {
            "ended": [ended.exit, ended.ended, ended.checkpoints, ended.missed],
            "found": {needle.klass: [needle.positive_control, needle.after] for needle in found},
            "events": one.events, "files": one.files(), "lines": len(one.lines), "how": one.kept.how,
        }  # fmt: skip

    said = in_child(work)
    assert said["ended"] == [0, "asked", 2, 0]
    assert said["found"] == {
        "secret": [0, 0],
        "keeper-marker": [1, 0],
    }  # nothing of the package, and it can tell
    assert said["files"] == ["checkpoints/000001.sealed", "checkpoints/000002.sealed"]
    assert said["lines"] == 0
    for number, (kind, body) in enumerate(said["events"], 1):
        data = (tmp_path / "leg" / "checkpoints" / kept.sealed_name(number)).read_bytes()
        assert kind == "checkpoint-sealed"
        assert (body["number"], body["bytes"], body["steps"]) == (number, len(data), 7)
        assert body["ciphertextSha256"] == hashlib.sha256(data).hexdigest()
    path = tmp_path / "leg" / "checkpoints" / "000002.sealed"
    with pytest.raises(SealError):  # under no other number
        open_outputs(path, OWNER, context={**CONTEXT, "checkpoint": "1"})
    context = {**CONTEXT, "checkpoint": "2"}
    digest = said["events"][1][1]["plaintextSha256"]
    with open_outputs(path, OWNER, context=context, plaintext_sha256=digest) as opened:
        write_tree(opened.files[INDEX_NAME], opened.tensors, tmp_path / "opened")
    assert (tmp_path / "opened" / "a.bin").read_bytes() == b"a" * 1000
    assert (tmp_path / "opened" / "checkpoint-5" / "weights.bin").stat().st_size == 1000


def test_a_folder_that_never_rests_is_taken_all_the_same_and_what_is_whole_in_it_is_said_to_be(
    tmp_path: Path,
) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        over = threading.Event()

        def log() -> None:
            with (one.outputs / "log.jsonl").open("a") as file:
                while not over.wait(0.005):
                    file.write("a line\n")
                    file.flush()

        writer = threading.Thread(target=log)
        writer.start()
        states = one.until(2)[:2]
        save(one.outputs, "checkpoint-5", 200_000)
        wait_until(lambda: one.events[-1][1]["state"] == "whole", 20, "the whole one")
        whole = len(one.events)
        one.until(whole + 2)
        over.set()
        writer.join()
        one.end()
        return {"states": states, "whole": whole, "files": one.files(), "count": len(one.events)}

    said = in_child(work)
    assert said["states"] == ["unmarked", "unmarked"]
    # What is known to be good stays, however many follow of which nobody knows.
    assert f"checkpoints/{kept.sealed_name(said['whole'])}" in said["files"]
    assert len(said["files"]) == 2


def test_one_in_the_middle_of_sealing_is_given_up_at_the_end(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        with (one.outputs / "large.bin").open("wb") as file:
            file.truncate(2 << 30)  # nothing in it, and long enough to be in the middle of
        wait_until(lambda: "checkpoints/000001.sealed.partial" in one.files(), 20, "it begins")
        began = time.monotonic()
        ended, _ = one.end()
        return [ended.exit, ended.ended, ended.checkpoints], one.events, one.files(), time.monotonic() - began

    ended, events, files, took = in_child(work)
    assert ended == [0, "asked", 0]
    assert (events, files) == ([], [])
    assert took < kept.END_SEC


def test_one_with_very_many_files_to_look_at_ends_when_it_is_told_to(tmp_path: Path) -> None:
    def slowly(_name: str) -> bool:  # as of a slow disk
        time.sleep(0.001)
        return True

    def work() -> Any:
        kept.END_SEC = 3.0
        one = Watched(tmp_path, only=slowly)
        for number in range(6000):
            (one.outputs / f"{number}").touch()
        time.sleep(0.5)
        ended, _ = one.end()
        return [ended.exit, ended.ended]

    assert in_child(work) == [0, "asked"]


def test_at_the_end_there_is_one_more_checkpoint_where_it_is_wanted(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(tmp_path, checkpoint_sec=1000.0, marked_only=True)
        save(one.outputs, "checkpoint-5")
        one.pid()
        ended, found, _ = one.kept.end([], one_more=True)
        return [ended.exit, ended.ended, ended.checkpoints, ended.missed], len(found), one.events, one.files()

    ended, found, events, files = in_child(work)
    assert ended == [0, "asked", 1, 0]
    assert found == 1  # its marker
    assert [(kind, body["number"], body["state"]) for kind, body in events] == [
        ("checkpoint-sealed", 1, "whole")
    ]
    assert files == ["checkpoints/000001.sealed"]


def test_one_in_the_middle_of_sealing_is_begun_anew_where_one_more_is_wanted(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        with (one.outputs / "large.bin").open("wb") as file:
            file.truncate(1 << 28)
        wait_until(lambda: "checkpoints/000001.sealed.partial" in one.files(), 20, "it begins")
        ended, _, _ = one.kept.end([], one_more=True)
        return [ended.exit, ended.ended, ended.checkpoints], one.events, one.files()

    ended, events, files = in_child(work)
    assert ended == [0, "asked", 1]
    assert [body["number"] for _, body in events] == [1]
    assert files == ["checkpoints/000001.sealed"]


def test_the_last_one_is_given_up_where_it_takes_too_long(tmp_path: Path) -> None:
    def work() -> Any:
        keeper.LAST_SEC = 0.5
        one = Watched(tmp_path, checkpoint_sec=1000.0)
        with (one.outputs / "large.bin").open("wb") as file:
            file.truncate(4 << 30)
        one.pid()
        ended, _, _ = one.kept.end([], one_more=True)
        return [ended.exit, ended.ended, ended.checkpoints], one.events, one.files()

    assert in_child(work) == [[0, "asked", 0], [], []]


@pytest.mark.parametrize(
    ("number", "how", "words"),
    [(signal.SIGKILL, "died", "ended by itself"), (signal.SIGSTOP, "killed", "did not end when told to")],
)
def test_one_that_dies_or_hangs_is_ended_and_its_owner_is_told(
    tmp_path: Path, number: signal.Signals, how: str, words: str
) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        kept.END_SEC = 1.0
        (one.outputs / "a.bin").write_bytes(b"a" * 1000)
        one.until(1)
        os.kill(one.pid(), number)
        time.sleep(0.3)
        ended, found = one.end()
        return [ended.exit, ended.ended, ended.checkpoints], found, b"".join(one.lines).decode()

    ended, found, said = in_child(work)
    assert ended == [-signal.SIGKILL, how, 1]
    assert found == []
    assert words in said
    assert said.startswith("glasshouse: ")


def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(tmp_path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # of the side that writes to disk
        os.truncate(os.open(one.outputs / "a.bin", os.O_WRONLY | os.O_CREAT), 0)
        (one.outputs / "a.bin").write_bytes(b"a" * 90_000)
        (one.outputs / "b.bin").write_bytes(b"b" * 90_000)
        wait_until(lambda: one.kept._missed["checkpoint"] > 1, 20, "it misses some")
        assert one.files() == []
        (one.outputs / "b.bin").unlink()
        (one.outputs / "a.bin").write_bytes(b"a" * 1000)
        states = one.until(1)
        ended, _ = one.end()
        return states, one.events[0][1]["number"], [ended.exit, ended.ended], ended.missed > 1, len(one.lines)

    assert in_child(work) == [["unmarked"], 1, [0, "asked"], True, 1]


def test_records_come_at_their_own_cadence_and_in_one_size(tmp_path: Path) -> None:
    def work() -> Any:
        one = Watched(
            tmp_path, watch_sec=0.2, collect=lambda due: b"r" * (int(due is None) + 3), checkpoint_sec=0
        )
        wait_until(lambda: len(one.events) >= 3, 20, "records")
        ended, _ = one.end()
        return [ended.exit, ended.ended, ended.checkpoints], one.events[:3]

    ended, events = in_child(work)
    assert ended == [0, "asked", 0]
    assert [kind for kind, _ in events] == ["watched"] * 3
    assert [body["number"] for _, body in events] == [1, 2, 3]
    assert {frozenset(body) for _, body in events} == {frozenset({"number", "bytes", "ciphertextSha256"})}
    assert len({body["bytes"] for _, body in events}) == 1
    path = tmp_path / "leg" / "watch" / "000002.sealed"
    with open_outputs(path, OWNER, context={**CONTEXT, "watch": "2"}) as opened:
        assert {name: bytes(view) for name, view in opened.files.items()} == {"record": b"rrrr"}


@needs_landlock
def test_at_the_end_there_is_one_more_record(tmp_path: Path) -> None:
    """Whatever it is doing when it is told to end; its checkpoint comes to nothing then."""

    def collect(due: float | None) -> bytes:
        return b"waits" if due is not None else b"last"

    def work() -> Any:
        one = Watched(tmp_path, watch_sec=1000.0, collect=collect, checkpoint_sec=0.2)
        (one.outputs / "large.bin").write_bytes(bytes(64 << 20))
        place = tmp_path / "leg" / "checkpoints" / "000001.sealed.partial"
        wait_until(place.exists, 20, "a checkpoint on its way")
        return one.end()[0].ended, one.events, one.files()

    ended, events, files = in_child(work)
    assert ended == "asked"
    assert [kind for kind, _ in events][-1] == "watched"
    assert files[-1] == "watch/000001.sealed"
    with open_outputs(tmp_path / "leg" / files[-1], OWNER, context={**CONTEXT, "watch": "1"}) as opened:
        assert bytes(opened.files[keeper.RECORD]) == b"last"


def test_it_writes_no_file_and_is_closed_to_others(tmp_path: Path) -> None:
    def work() -> Any:
        def collect(_due: float | None) -> bytes:
            try:
                (tmp_path / "written").touch()
            except OSError as error:
                return str(error.errno).encode()
            return b"written"

        one = Watched(tmp_path, watch_sec=0.2, collect=collect)
        wait_until(lambda: bool(one.events), 20, "a record")
        status = Path(f"/proc/{one.pid()}/status").read_text()
        held = sorted(str(path.readlink()) for path in Path(f"/proc/{one.pid()}/fd").iterdir())
        return status, held, one.end()[0].exit

    status, held, code = in_child(work)
    assert code == 0
    assert "NoNewPrivs:\t1" in status
    assert not (tmp_path / "written").exists()
    with open_outputs(
        tmp_path / "leg" / "watch" / "000001.sealed", OWNER, context={**CONTEXT, "watch": "1"}
    ) as opened:
        assert bytes(opened.files["record"]) == b"13"  # EACCES
    kinds = sorted({one.partition(":")[0] for one in held if one != os.devnull})
    assert len([one for one in held if one != os.devnull]) == 2, held
    assert kinds == ["pipe", "socket"]


# --- the supervisor's side against any keeper -------------------------------------------------------


@pytest.fixture(scope="module")
def child() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def hear(
    folder: Path, child: object, say: Callable[[Any, int], None]
) -> tuple[Kept, list[tuple[str, dict[str, Any]]]]:
    """Have a supervisor's side hear everything that `say` says, and its end."""
    events: list[tuple[str, dict[str, Any]]] = []
    ours, theirs = channel_pair()
    read_end, write_end = os.pipe()
    served = Kept(
        ours, read_end, folder, lambda kind, body: events.append((kind, dict(body))), lambda _: None
    )
    opened = open_self()

    def speak() -> None:
        with contextlib.suppress(ChannelClosedError, OSError):
            theirs.send_descriptors(opened)
            theirs.send("hardened", {"pid": child, "dumpable": 0, "no_new_privs": True})
            say(theirs, write_end)
        theirs.close()
        os.close(write_end)

    speaking = threading.Thread(target=speak)
    speaking.start()
    try:
        served.run()  # in this thread: an exception is to be seen
    finally:
        ours.close()
        os.close(read_end)
        speaking.join()
        for descriptor in (*opened, served._wake, served._waker):
            os.close(descriptor)
        if served._scannable is not None:
            served._scannable.close()
    return served, events


def good(number: int, data: bytes, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {
        "kind": "checkpoint", "number": number, "bytes": len(data), "ciphertextSha256": digest,
        "plaintextSha256": "0" * 64, "state": "whole", "steps": None, **changes,
    }  # fmt: skip


def test_a_file_has_its_name_once_it_is_what_was_said(tmp_path: Path, child: int) -> None:
    def say(channel: Any, pipe: int) -> None:
        for number in (1, 2, 3):
            channel.send("sealing", {"kind": "checkpoint", "number": number})
            os.write(pipe, b"x" * number)
            channel.send("sealed", good(number, b"x" * number))
            assert channel.receive(20).kind == "kept"

    served, events = hear(tmp_path, child, say)
    assert [body["number"] for _, body in events] == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "000002.sealed",
        "000003.sealed",
    ]
    assert (tmp_path / "checkpoints" / "000003.sealed").read_bytes() == b"xxx"
    assert served.pid == child


WRONG: dict[str, dict[str, Any]] = {
    "another number": {"number": 2},
    "no number": {"number": None},
    "a true number": {"number": True},
    "more bytes than came": {"bytes": 6},
    "fewer bytes than came": {"bytes": 4},
    "no bytes": {"bytes": 0},
    "bytes below none": {"bytes": -1},
    "a float of bytes": {"bytes": 5.0},
    "too many bytes": {"bytes": (64 << 30) + 1},
    "another digest": {"ciphertextSha256": "0" * 64},
    "no digest": {"ciphertextSha256": "x"},
    "a digest with a newline": {"ciphertextSha256": hashlib.sha256(b"12345").hexdigest() + "\n"},
    "a path for a digest": {"plaintextSha256": "../" * 21 + "x"},
    "an unknown state": {"state": "perfect"},
    "no state": {"state": None},
    "steps below none": {"steps": -1},
    "steps beyond all numbers": {"steps": 2**70},
    "steps in words": {"steps": "7"},
    "true steps": {"steps": True},
    "another kind": {"kind": "watch"},
    "an unknown kind": {"kind": "result"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_nothing_is_signed_of_what_is_wrong(tmp_path: Path, child: int, changes: dict[str, Any]) -> None:
    def say(channel: Any, pipe: int) -> None:
        channel.send("sealing", {"kind": "checkpoint", "number": 1})
        os.write(pipe, b"12345")
        channel.send("sealed", {**good(1, b"12345"), **changes})

    _, events = hear(tmp_path, child, say)
    assert events == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("pid", [0, 1, -1, 2**31, True, "7", None, "own"])
def test_one_that_is_no_child_of_ours_is_not_believed(tmp_path: Path, pid: object) -> None:
    def say(channel: Any, _pipe: int) -> None:
        channel.send("sealing", {"kind": "checkpoint", "number": 1})

    served, events = hear(tmp_path, os.getpid() if pid == "own" else pid, say)
    assert (served.pid, events, list(tmp_path.iterdir())) == (None, [], [])


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4), st.integers(), st.text(max_size=5),
    st.sampled_from(["checkpoint", "watch", "whole", "unmarked", "0" * 64, sha256_hex(b"xxx")]),
)  # fmt: skip
BODIES = st.dictionaries(
    st.sampled_from(["kind", "number", "bytes", "ciphertextSha256", "plaintextSha256", "state", "steps"]),
    VALUES,
)
SAID = st.tuples(
    st.sampled_from(["sealing", "sealed", "given-up", "missed", "ended", "hardened", "stop", ""]),
    st.one_of(BODIES, st.builds(good, st.integers(1, 3), st.just(b"xxx"))),
    st.binary(max_size=4),
    st.sampled_from([b"", b"", b"xxx", b"x"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(SAID, max_size=8))
def test_whatever_it_says_events_are_in_order_and_files_are_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, child: int, said: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("leg")

    def say(channel: Any, pipe: int) -> None:
        for kind, body, raw, data in said:
            channel.send(kind, body, raw=bytearray(raw))
            os.write(pipe, data)

    _, events = hear(folder, child, say)
    for kind in ("checkpoint-sealed", "watched"):
        numbers = [body["number"] for event, body in events if event == kind]
        assert numbers == list(range(1, len(numbers) + 1))
    states = {
        body["number"]: body["ciphertextSha256"] for event, body in events if event == "checkpoint-sealed"
    }
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "checkpoints":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == states[int(path.stem)]
    assert not list(folder.rglob("*.partial"))
    json.dumps(events)
