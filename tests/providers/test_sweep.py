"""The sweeper itself, and what its report proves."""

from __future__ import annotations

import json
import os
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
