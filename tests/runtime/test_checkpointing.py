"""What a session goes on from, written beside it; and legs that seal it while they train."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse.runtime import checkpointing
from glasshouse.runtime.checkpointing import Checkpointed, is_written, steps_in
from glasshouse.runtime.looking import look, marks
from glasshouse.runtime.session import RESERVED
from glasshouse.sealing.outputs import open_outputs
from glasshouse.sealing.tree import INDEX_NAME, write_tree
from tests.runtime import tiny
from tests.runtime.rig import NOBODY, Launched, Rig, rig, wait_until

RESTORABLE = """
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        self.moments = self.__dict__.pop("state")

    def buffers(self):
        return [self.weights, self.moments]

    def state(self):
        return {"weights": self.weights, "moments": self.moments}, {"steps": self.steps}

    def restore(self, tensors, values):
        raise AssertionError("nobody restores it here")
"""


def session(**more: Any) -> Any:
    """A session in this process, with whatever else it is to have."""
    scope: dict[str, Any] = {"Tiny": tiny.Tiny}
    exec(RESTORABLE, scope)
    made = type("Changed", (scope["Workload"],), more)
    return made({}, {}, "cpu")


def test_each_is_whole_when_it_has_its_name_and_the_one_before_goes(tmp_path: Path) -> None:
    folder, made = tmp_path / checkpointing.FOLDER, session()
    one = Checkpointed(made, folder, 0.0)
    assert one.unit == "steps"  # in all else the session
    assert steps_in(folder) is None
    began = time.monotonic()
    for number in (1, 2, 3):
        one.run_unit()
        assert [path.name for path in folder.iterdir()] == [f"checkpoint-{number}"]
        assert steps_in(folder) == number
        assert {mark.root for mark in marks(look(folder, is_written), "")} == {f"checkpoint-{number}"}
    place = folder / "checkpoint-3"
    values = json.loads((place / "state.json").read_bytes())
    assert values.pop(RESERVED)["steps"] == 3
    assert values == {"steps": 3}
    made_by_then = json.loads((place / "made.json").read_bytes())
    assert made_by_then["units"] == 3
    assert 0 <= made_by_then["elapsedSec"] <= time.monotonic() - began
    data = (place / "state.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header == {
        "moments": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]},
        "weights": {"dtype": "F32", "shape": [1024], "data_offsets": [4096, 8192]},
    }
    assert data[8 + size :] == bytes(made.moments.memory) + bytes(made.weights.memory)
    assert struct.unpack_from("<f", data, 8 + size + 4096) == (3.0,)


@pytest.mark.parametrize("own", [{"steps": 1000}, {"steps": "many"}, {"steps": -1}, {"steps": 2**52}, {}])
def test_its_number_does_not_hang_on_what_a_class_says(tmp_path: Path, own: dict[str, Any]) -> None:
    def state(self: Any) -> Any:
        return {"weights": self.weights}, dict(own)

    folder = tmp_path / "checkpoints"
    one = Checkpointed(session(state=state), folder, 0.0, 40)
    for number in (41, 42, 43):
        one.run_unit()
        assert [path.name for path in folder.iterdir()] == [f"checkpoint-{number}"]
        assert steps_in(folder) == number
    values = json.loads((folder / "checkpoint-43" / "state.json").read_bytes())
    ours = values.pop(RESERVED)
    assert (ours["steps"], values) == (43, own)


def test_a_class_that_takes_our_name_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = session(state=lambda self: ({"weights": self.weights}, {RESERVED: 1}))
    Checkpointed(made, tmp_path / "checkpoints", 0.0).run_unit()
    assert f"its state has a value named {RESERVED}, which is ours" in capsys.readouterr().out


def test_one_is_written_at_its_cadence_and_none_before(tmp_path: Path) -> None:
    one = Checkpointed(session(), tmp_path / "checkpoints", 0.3)
    began = time.monotonic()
    while time.monotonic() < began + 0.25:
        one.run_unit()
    assert steps_in(tmp_path / "checkpoints") is None
    while steps_in(tmp_path / "checkpoints") is None:
        one.run_unit()
    assert time.monotonic() >= began + 0.3


def test_what_was_half_written_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / checkpointing.WRITING).mkdir(parents=True)
    (folder / checkpointing.WRITING / "state.safetensors").write_bytes(b"torn")
    assert (steps_in(folder), look(folder, is_written)) == (None, {})
    Checkpointed(session(), folder, 0.0).run_unit()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-1"]


def raising(error: Exception) -> Callable[..., Any]:
    def state(_self: Any) -> Any:
        raise error

    return state


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"restore": None}, "no state() and restore()"),
        ({"state": raising(OSError(28, "No space left on device"))}, "No space left"),
        (
            {"state": lambda self: ({"weights": self.weights}, {"loss": float("nan")})},
            "no checkpoints are made",
        ),
        ({"state": lambda self: (None, {})}, "no checkpoints are made"),
        ({"state": lambda self: ({"weights": self.weights}, None)}, "no checkpoints are made"),
    ],
    ids=["none to go on from", "a full disk", "no JSON", "no tensors", "no values"],
)
def test_a_session_that_cannot_be_written_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "checkpoints"
    one = Checkpointed(session(**more), folder, 0.0)
    assert not folder.exists()  # none was due yet
    for _ in range(checkpointing.TRIES + 1):
        one.run_unit()
    said = capsys.readouterr().out
    assert words in said
    assert said.startswith("glasshouse: no checkpoints")
    assert said.count("\n") == 1  # once
    assert [path.name for path in folder.iterdir()] == [checkpointing.UNABLE]


def test_a_row_says_so_of_a_class_that_has_no_state_once_one_was_due() -> None:
    with rig() as one:  # whose class has none
        leg = keeping(one, seconds=5.0)
        assert leg.wait(60)["status"] == "complete", leg.log
        assert leg.event("zeroized")["keeper"] == {"exit": 0, "ended": "asked", "checkpoints": 0, "missed": 1}
        assert not (leg.folder / "checkpoints").exists()
        with one.open(leg, "log.sealed") as opened:
            said = bytes(opened.files["trainer.log"])
        assert b"glasshouse: no checkpoints are made of it: TypeError: its session has no state()" in said


def keeping(one: Rig, **changes: Any) -> Launched:
    return one.launch(private=True, checkpoint_sec=1.0, deadline_sec=60, **changes)


def points(leg: Launched) -> list[dict[str, Any]]:
    return [event["body"] for event in leg.events() if event["type"] == "checkpoint-sealed"]


def test_a_leg_seals_its_session_while_it_trains_and_searches_who_did(tmp_path: Path) -> None:
    with rig(RESTORABLE) as one:
        leg = keeping(one, seconds=6.0)
        assert leg.wait(60)["status"] == "complete"
        made = points(leg)
        assert len(made) >= 2
        assert [body["number"] for body in made] == list(range(1, len(made) + 1))
        assert {body["state"] for body in made} == {"whole"}
        steps = [body["steps"] for body in made]
        assert steps == sorted(set(steps))
        assert set(made[0]) == {"number", "bytes", "ciphertextSha256", "plaintextSha256", "state", "steps"}
        names = sorted(path.name for path in (leg.folder / "checkpoints").iterdir())
        assert names == [f"{number:06d}.sealed" for number in (len(made) - 1, len(made))]
        end = leg.event("zeroized")
        assert end["keeper"] == {"exit": 0, "ended": "asked", "checkpoints": len(made), "missed": 0}
        assert end["scannedBy"]["keeper"] == end["scannedBy"]["trainer"]
        searched = {each["class"]: each for each in end["needles"] if each["where"] == "keeper"}
        assert {"payload-key-prefix", "kem-seed-prefix", "package-marker", "keeper-marker"} == set(searched)
        assert all(each["after"] == 0 for each in searched.values())
        assert searched["keeper-marker"]["positiveControl"] == 1
        assert searched["package-marker"]["positiveControl"] == 0  # it let go of what it inherited
        assert one.scratch() == []
        body = made[-1]
        assert body["steps"] == leg.event("trained")["result"]["steps"]  # the last is of the end of training
        context = {**leg.names, "manifestHash": one.manifest_hash, "checkpoint": str(body["number"])}
        with open_outputs(
            leg.folder / "checkpoints" / names[-1],
            one.owner,
            context=context,
            plaintext_sha256=body["plaintextSha256"],
        ) as opened:
            write_tree(opened.files[INDEX_NAME], opened.tensors, tmp_path / "opened")
        (place,) = (tmp_path / "opened").iterdir()
        assert place.name == f"checkpoint-{body['steps']}"
        values = json.loads((place / "state.json").read_bytes())
        assert values.pop(RESERVED)["steps"] == body["steps"]
        assert values == {"steps": body["steps"]}


def test_where_no_descriptor_can_be_passed_it_hands_its_memory_over() -> None:
    with rig(RESTORABLE, user=NOBODY) as one:
        leg = keeping(one, seconds=3.0)
        assert leg.wait(60)["status"] == "complete", leg.log
        end = leg.event("zeroized")
        assert end["keeper"]["ended"] == "asked"
        assert end["scannedBy"]["keeper"] == end["scannedBy"]["trainer"]
        searched = {each["class"]: each for each in end["needles"] if each["where"] == "keeper"}
        assert searched["keeper-marker"]["positiveControl"] == 1
        assert all(each["after"] == 0 for each in searched.values())


def roles(leg: Launched) -> tuple[int, int]:
    """Pids of trainer and keeper: children of the supervisor, of which the keeper gives way to the other."""
    nice = {}
    for pid in leg.children():
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if int(fields[1]) == leg.pid:
            nice[pid] = int(fields[16])
    trainer, keeper = sorted(nice, key=nice.__getitem__)
    assert nice[trainer] < nice[keeper]
    return trainer, keeper


def test_a_keeper_that_is_killed_costs_the_leg_nothing_but_its_checkpoints() -> None:
    with rig(RESTORABLE) as one:
        leg = keeping(one, seconds=5.0)
        leg.until("checkpoint-sealed")
        os.kill(roles(leg)[1], signal.SIGKILL)
        assert leg.wait(60)["status"] == "complete", leg.log
        kept = leg.event("zeroized")["keeper"]
        assert (kept["exit"], kept["ended"]) == (-signal.SIGKILL, "died")
        assert kept["checkpoints"] == len(points(leg)) >= 1
        with one.open(leg, "log.sealed") as opened:
            assert b"glasshouse: the process that seals checkpoints ended by itself" in bytes(
                opened.files["trainer.log"]
            )
        assert one.scratch() == []


def test_what_was_sealed_outlives_a_trainer_that_is_killed_and_what_was_half_sealed_does_not() -> None:
    with rig(RESTORABLE) as one:
        leg = keeping(one, seconds=30.0)
        leg.until("checkpoint-sealed")
        wait_until(lambda: len(points(leg)) >= 2, 40, "two checkpoints")
        os.kill(roles(leg)[0], signal.SIGKILL)
        ended = leg.wait(30)
        assert (ended["status"], ended["code"]) == ("failed", "process-died")
        assert leg.events()[-1]["type"] == "failed"
        names = sorted(path.name for path in (leg.folder / "checkpoints").iterdir())
        made = [body["number"] for body in points(leg)]
        assert names == [f"{number:06d}.sealed" for number in made[-2:]]
        assert one.scratch() == []


def test_no_launch_but_a_private_one_has_any() -> None:
    with rig(RESTORABLE) as one:
        params = one.params(checkpoint_sec=1.0)
        done = subprocess.run(
            [sys.executable, "-I", str(one.archive), "launch", str(one.pod / "leg-9")],
            input=json.dumps(params).encode() + b"\n" + bytes(32),
            capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 2
        assert b"ValueError" in done.stderr
