"""A raw leg, as a program: it opens the package that protected legs open, without markers or a grant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glasshouse.canonical import b64u
from glasshouse.runtime.residue import Needle, ScannedProcess
from tests.runtime.rig import Launched, Rig, processes_of, rig, wait_until

MARK = b"a row that both arms train on, 8d20e1"
FILES = """
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        with open(os.path.join(os.environ["TMPDIR"], "cache"), "wb") as out:  # noqa: PTH123
            out.write(files["rows"])
        if params.get("fails"):
            raise RuntimeError
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with rig(FILES, data={"rows": MARK * 3}) as found:
        yield found


def raw_dir(made: Rig, launch: int) -> Path:
    return made.pod / "raw" / f"s000-{launch}"


def started(made: Rig, launch: int, **changes: object) -> Launched:
    """A raw launch, told what the controller tells one: no ticket, no broker, no markers."""
    given = {"broker_public": "", "broker_port": 0, "allocation_id": "", "markers": "", "markers_hash": ""}
    given |= {"arm": "raw", "raw_dir": str(raw_dir(made, launch)), **changes}
    return made.launch(launch, ticket=made.payload_key, **given)


def test_both_arms_train_on_what_one_package_holds(made: Rig) -> None:
    raw, protected = started(made, 1), made.launch(2)
    ended = raw.wait()
    assert (ended["status"], ended["code"]) == ("complete", None), raw.log
    assert protected.wait()["status"] == "complete"
    theirs, ours = protected.event("trained")["result"], ended["result"]
    assert ours["workloadDigest"] == theirs["workloadDigest"]
    # What opening took is said apart, as a protected leg says it, and is no part of what is measured.
    assert list(ended["timings"]) == ["unsealSec"]
    assert 0 < ended["timings"]["unsealSec"] < 30
    # Nobody granted it anything: nobody was asked.
    assert [made.broker.exchange(made.run, "s000", launch) is not None for launch in (1, 2)] == [False, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory past DUMPABLE takes root")
def test_while_it_trains_its_memory_holds_the_payload_and_neither_marker_nor_key(made: Rig) -> None:
    def search(leg: Launched) -> list[int]:
        """How often each needle is in any of the leg's processes."""
        total = [0, 0, 0, 0]
        for pid in leg.processes():
            process = ScannedProcess(
                *[os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in ("mem", "maps")]
            )
            texts = (MARK, made.marker, made.payload_key, b64u(made.payload_key).encode())
            counts = process.scan([Needle("x", bytearray(text)) for text in texts]).counts
            total = [one + other for one, other in zip(total, counts, strict=True)]
            process.close()
        return total

    protected = made.launch(3, seconds=3)
    protected.until("trainer-hardened")
    assert search(protected)[1] > 0  # the search finds markers where there are any
    assert protected.wait()["status"] == "complete"

    raw = started(made, 4, seconds=3)
    wait_until((raw_dir(made, 4) / "cache").exists, 30, "the workload")
    found = search(raw)
    assert found[0] >= 3
    assert found[1:] == [0, 0, 0]
    assert raw.wait()["status"] == "complete"


def test_the_disk_holds_what_the_workload_writes_and_that_is_gone_at_the_end(made: Rig) -> None:
    leg = started(made, 5, seconds=2)
    cache = raw_dir(made, 5) / "cache"
    wait_until(cache.exists, 30, "the workload")
    holds = [path for path in made.pod.rglob("*") if path.is_file() and MARK in path.read_bytes()]
    assert holds == [cache]
    ended = leg.wait()
    assert (ended["status"], ended["rawFilesRemoved"]) == ("complete", True)
    assert not raw_dir(made, 5).exists()
    assert processes_of(str(leg.folder)) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = [
    pytest.param(_flip, "chunk-authentication-failed", id="altered"),
    pytest.param(_cut, "container-truncated", id="cut"),
    pytest.param(Path.unlink, "container-unreadable", id="removed"),
]


@pytest.mark.parametrize(("damage", "code"), DAMAGES)
@pytest.mark.parametrize(
    ("arm", "which"), [("raw", "package"), ("protected", "package"), ("protected", "markers")]
)
def test_what_the_machine_did_to_a_package_between_legs_ends_the_next_one(
    arm: str, which: str, damage: Callable[[Path], None], code: str
) -> None:
    with rig(FILES, data={"rows": MARK * 3}) as made:
        first = started(made, 1)
        assert first.wait()["status"] == "complete"
        damage(getattr(made, which))
        leg = started(made, 2) if arm == "raw" else made.launch(2)
        ended = leg.wait()
        assert (ended["status"], ended["code"]) == ("failed", code)
        assert ended.get("result") is None
        assert not raw_dir(made, 2).exists()
        assert made.scratch() == []
        assert leg.processes() == []
        assert made.payload_key.hex() not in leg.log


def test_another_key_opens_nothing_and_a_failing_workload_leaves_nothing() -> None:
    with rig(FILES, data={"rows": MARK}, params={"fails": 1}) as made:
        leg = made.launch(1, ticket=bytes(range(32)), arm="raw", raw_dir=str(raw_dir(made, 1)))
        assert leg.wait()["code"] == "key-commitment-mismatch"
        leg = started(made, 2)
        ended = leg.wait()
        assert (ended["code"], ended["rawFilesRemoved"]) == ("workload-error", True)
        assert not raw_dir(made, 2).exists()
        assert "RuntimeError" in leg.log


def test_a_raw_leg_works_without_the_markers_being_there() -> None:
    with rig(data={"rows": MARK}) as made:
        made.markers.unlink()
        assert started(made, 1).wait()["status"] == "complete"
