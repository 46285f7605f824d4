"""The sweeper itself, and what its report proves."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glasshouse.providers.proofs import proof_from_sweep
from glasshouse.remote import sweep_script
from tests.providers.test_local import alive, new_name

GOOD = {"processesLeft": 0, "folderRemoved": True, "killed": 3, "checkedAt": [1.5, 2.0]}


def run_script(*argv: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    source = Path(sweep_script.__file__).read_bytes()
    return subprocess.run(
        [sys.executable, "-I", "-", *argv], input=source, capture_output=True, check=False, cwd=cwd
    )


def test_it_runs_as_source_text_and_spares_itself_and_its_ancestors(tmp_path: Path) -> None:
    name = new_name()
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "file").write_text("x")
    done = run_script(name, f"./{name}", cwd=tmp_path)  # its own command line carries the name, as over SSH
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["processesLeft"], report["folderRemoved"], report["killed"]) == (0, True, 0)
    assert proof_from_sweep(report).proof == "zero"
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "argv", [(), ("gh-20260101-120000-abc234-00",), ("", "/tmp"), ("gh", "gh"), ("python", "/tmp/python")]
)
def test_it_refuses_names_that_could_match_a_stranger(argv: tuple[str, ...], tmp_path: Path) -> None:
    assert run_script(*argv, cwd=tmp_path).returncode == 2


def test_it_refuses_a_folder_that_is_not_the_allocations(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    done = run_script(new_name(), str(tmp_path / "precious"), cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "precious").exists()


def test_it_removes_links_not_what_they_lead_to_and_folders_without_write_bit(tmp_path: Path) -> None:
    name = new_name()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    (tmp_path / name / "locked").mkdir(parents=True)
    (tmp_path / name / "locked" / "file").write_text("x")
    (tmp_path / name / "link").symlink_to(precious)
    (tmp_path / name / "locked").chmod(0o500)
    assert sweep_script.sweep(name, str(tmp_path / name))["folderRemoved"] is True
    assert (precious / "file").read_text() == "keep"
    (tmp_path / name).symlink_to(precious)
    assert sweep_script.sweep(name, str(tmp_path / name))["folderRemoved"] is True
    assert (precious / "file").read_text() == "keep"


def deep(place: Path, folders: int) -> Path:
    """So many folders within each other, a file in each; no path that long can be opened."""
    place.mkdir()
    at = os.open(place, os.O_DIRECTORY)
    for number in range(folders):
        os.mkdir("d", dir_fd=at)
        os.close(os.open(f"file {number}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        inner = os.open("d", os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    return place


def test_it_removes_folders_within_each_other_without_end_and_goes_on_to_the_next(tmp_path: Path) -> None:
    name = new_name()
    places = [deep(tmp_path / name, 1200), Path("/dev/shm") / f"{name}-a", Path("/dev/shm") / f"{name}-b"]
    deep(places[1], 2500)
    places[2].mkdir()
    try:
        done = run_script(name, f"./{name}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(done.stdout)["folderRemoved"] is True
        assert [place for place in places if place.exists()] == []
    finally:
        for place in places:
            sweep_script.remove(place)


def litter(place: Path, precious: Path) -> None:
    """What a job may leave: folders that are shut, odd names, links, a FIFO."""
    deep(place, 1100)
    odd = os.fsencode(place) + b"/d/d/d"
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b" ", b"x" * 255):
        Path(os.fsdecode(odd + b"/" + name + b"/in/it")).mkdir(parents=True)
    for number in range(1000):
        (place / "many" / f"{number}").mkdir(parents=True)
        (place / "many" / f"{number}" / "file").touch()
        (place / "many" / f"{number}").chmod(0)
    (place / "d" / "link").symlink_to(precious)
    os.mkfifo(place / "d" / "fifo")
    for folder in (place / "many", place / "d" / "d" / "d", place / "d", place):
        folder.chmod(0)


def test_whatever_a_job_leaves_is_removed_and_nothing_beside_it(tmp_path: Path) -> None:
    """By somebody who is not root: permissions stand in the way."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    place = Path("/dev/shm") / f"{new_name()}-odd"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            litter(place, precious)
            code = 0 if sweep_script.remove(place) else 2
        finally:
            os._exit(code)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not place.exists()
        assert (precious / "file").read_text() == "keep"
    finally:
        sweep_script.remove(place)
    assert sweep_script.remove(place) is True  # of what is not there nothing is left


def test_it_takes_few_descriptors_and_says_what_is_left(tmp_path: Path) -> None:
    deep(tmp_path / "tree", 300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 12, hard))
    try:
        assert sweep_script.remove(tmp_path / "tree") is True
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sweep_script.remove("/proc/self/limits") is False


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_stays_and_what_cannot_be_moved_is_removed_in_its_place(tmp_path: Path) -> None:
    precious, lower, place = tmp_path / "precious", tmp_path / "lower", tmp_path / "place"
    precious.mkdir()
    (precious / "file").write_text("keep")
    (lower / "of" / "the" / "image").mkdir(parents=True)
    (lower / "of" / "the" / "image" / "file").touch()
    for folder in ("upper", "work", "place"):
        (tmp_path / folder).mkdir()
    layers = f"lowerdir={lower},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "-o", layers, "overlay", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not allow overlays")
    try:
        deep(place / "made", 100)
        for at in ("bound", "made/d/bound"):
            (place / at).mkdir()
            subprocess.run(["mount", "--bind", precious, place / at], check=True)
        assert sweep_script.remove(place) is False
        assert (precious / "file").read_text() == "keep"
        bound = [point for point in sweep_script._mounts_under(place) if point != str(place)]
        assert len(bound) == 2
        assert {Path(point).name for point in bound} == {"bound"}
        for point in bound:
            subprocess.run(["umount", point], check=True)
        sweep_script.remove(place)
        assert list(place.iterdir()) == []
        assert (precious / "file").read_text() == "keep"
    finally:
        for point in reversed(sweep_script._mounts_under(place)):
            subprocess.run(["umount", point], check=True)


def test_it_removes_scratch_entries_of_the_same_name_only(tmp_path: Path) -> None:
    name, other = new_name(), new_name()
    mine, theirs = Path("/dev/shm") / f"{name}-work", Path("/dev/shm") / f"{other}-work"
    mine.mkdir()
    theirs.mkdir()
    try:
        assert sweep_script.sweep(name, str(tmp_path / name))["folderRemoved"] is True
        assert not mine.exists()
        assert theirs.exists()
    finally:
        theirs.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_it_unmounts_before_it_removes(tmp_path: Path) -> None:
    name = new_name()
    (tmp_path / name / "mnt").mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    bound = subprocess.run(
        ["mount", "--bind", precious, tmp_path / name / "mnt"], capture_output=True, check=False
    )
    if bound.returncode != 0:
        pytest.skip("this machine does not allow mounts")
    assert sweep_script.sweep(name, str(tmp_path / name))["folderRemoved"] is True
    assert (precious / "file").read_text() == "keep"


def test_a_stopped_process_and_a_whole_session_go(tmp_path: Path) -> None:
    name = new_name()
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 302 & kill -STOP $!; echo $!; wait", name],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    time.sleep(0.1)
    try:
        report = sweep_script.sweep(name, str(tmp_path / name))
    finally:
        leader.kill()
        leader.wait(5)
        leader.stdout.close()
    assert (report["processesLeft"], report["killed"]) == (0, 2)
    assert not alive(child)


@pytest.mark.parametrize(
    ("changes", "proof", "active"),
    [
        ({}, "zero", 0),
        ({"processesLeft": 2}, "nonzero", 2),
        ({"folderRemoved": False}, "nonzero", 1),
        ({"processesLeft": 1, "folderRemoved": False}, "nonzero", 2),
        ({"processesLeft": -1}, "unknown", None),
        ({"processesLeft": False}, "unknown", None),
        ({"processesLeft": "0"}, "unknown", None),
        ({"folderRemoved": 1}, "unknown", None),
        ({"checkedAt": [1.0]}, "unknown", None),
        ({"checkedAt": None}, "unknown", None),
    ],
)
def test_only_a_whole_report_proves_anything(
    changes: dict[str, object], proof: str, active: int | None
) -> None:
    judged = proof_from_sweep(GOOD | changes)
    assert (judged.proof, judged.active) == (proof, active)


@pytest.mark.parametrize("report", [None, [], "zero", {}])
def test_something_else_proves_nothing(report: object) -> None:
    assert proof_from_sweep(report).proof == "unknown"
