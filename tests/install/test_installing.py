"""tools/install.py with a real pip and index: what is installed, what is said when something fails."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.install.kit import TOOLS, Index, Project, closed, entry, make_wheel


def test_a_group_gets_what_it_needs_and_progress_is_shown(project: Project) -> None:
    done = project.install("site")
    assert done.returncode == 0, done.stderr
    assert project.installed() == {"alpha": "1.0", "beta": "1.1", "gamma": "1.2", "small": "1.0"}
    assert "installing into .venv for site" in done.stdout
    assert "packages: 2 of 2, unpacking" in done.stdout
    assert re.search(r"installed in \d+ s$", done.stdout.strip())
    assert done.stderr == ""
    assert not any("torch" in path for path in project.index.asked)


def test_a_file_that_is_not_the_one_that_was_locked(project: Project) -> None:
    project.lock(entry("beta", "1.1", "sha256:" + "0" * 64, "base"))
    done = project.install()
    assert done.returncode == 3
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "beta==1.1" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: installing failed: a file is not the one that was locked"
    )
    assert "beta" not in project.installed()


def test_a_version_that_the_index_does_not_have(project: Project) -> None:
    project.lock(entry("beta", "9.9", "sha256:" + "0" * 64, "base"))
    done = project.install()
    assert done.returncode == 3
    assert "No matching distribution found for beta==9.9" in done.stderr
    assert "pip's index has no such file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_index_that_is_out_of_reach(project: Project) -> None:
    done = project.install(PIP_INDEX_URL=closed())
    assert done.returncode == 3
    assert "Connection refused" in done.stderr  # pip's own reason
    assert "look at the network and the proxy" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) < 8


def test_what_debian_lacks_is_one_line_with_its_command(project: Project, tmp_path: Path) -> None:
    without = tmp_path / "without"
    without.mkdir()
    (without / "ensurepip.py").write_text("raise ImportError('Debian ships it apart')\n", encoding="utf-8")
    done = project.install(PATH=str(without), PYTHONPATH=str(without))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: missing venv with ensurepip for ")
    assert line.endswith("and git and make: on Debian, apt install python3-venv git make")
    assert "apt install git" in project.install(PATH=str(without)).stderr


def test_no_code_of_the_current_folder_is_run(project: Project, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    for name in ("pip", "venv", "ensurepip"):
        (project.folder / name).mkdir()
        for file in ("__init__", "__main__"):
            (project.folder / name / f"{file}.py").write_text(f"open({str(seen)!r}, 'a').write({name!r})\n")
    done = project.install("site")
    assert not seen.exists(), seen.read_text()
    assert done.returncode == 0, done.stderr
    shutil.rmtree(project.folder / ".venv")
    done = project.install()  # with an environment to make
    assert not seen.exists(), seen.read_text()
    assert done.returncode == 0, done.stderr


def test_an_old_python_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import install  # type: ignore[import-not-found]

    monkeypatch.setattr(sys, "version_info", (3, 11, 1))
    assert install.main() == 2
    assert "too old" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("groups", "torch", "words"),
    [
        (["nonsense"], "", ["group=nonsense", "give any of base site train"]),
        (["train"], "newest", ["TORCH=newest", "a version"]),
        (["train"], "http://[x", ["TORCH=http://[x", "an index's address"]),
        (["train"], "http://me:secret@[x", ["TORCH=http://[x", "an index's address"]),
        (["train"], "/no/torch-2.13.0.whl", ["TORCH=/no/torch-2.13.0.whl", "a wheel's file"]),
        (["train"], "ftp://me:secret@there/simple", ["TORCH=ftp://there/simple", "an index's address"]),
    ],
)
def test_a_mistake_is_one_line(project: Project, groups: list[str], torch: str, words: list[str]) -> None:
    done = project.install(*groups, TORCH=torch)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line
    assert "secret" not in done.stdout + done.stderr


# --- torch ----------------------------------------------------------------------------------


def test_without_a_gpu_pytorchs_own_index_comes_first(project: Project, index: Index) -> None:
    index.add("torch", "2.13.0")
    index.add("torch", "2.13.0+cpu", under="whl/cpu")
    done = project.install("train")
    assert done.returncode == 0, done.stderr
    assert "torch 2.13.0 (cpu) from PyTorch's index" in done.stdout
    assert project.installed()["torch"] == "2.13.0+cpu"
    index.asked.clear()
    assert project.install("train").returncode == 0
    assert index.asked == []  # what is there is not asked for again


def test_a_build_that_was_seen_is_held_to_its_hash(project: Project, index: Index) -> None:
    project.lock(
        entry("beta", "1.1", index.add("beta", "1.1"), "base train"),
        cpu=entry("torch", f"2.13.0 ; sys_platform == '{sys.platform}'", "sha256:" + "0" * 64, "train"),
    )
    index.add("torch", "2.13.0+cpu", under="whl/cpu")
    done = project.install("train")
    assert done.returncode == 3
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "torch" not in project.installed()


def test_torch_is_whatever_is_asked_for(project: Project, index: Index, tmp_path: Path) -> None:
    index.add("torch", "2.13.0")
    index.add("torch", "2.14.0+cpu", under="whl/cpu")
    index.add("torch", "2.13.0+mine", under="mine")
    wheel = make_wheel(tmp_path / "wheels", "torch", "2.13.0+file")
    for wanted, version in (
        ("2.14.0", "2.14.0+cpu"),
        (str(wheel), "2.13.0+file"),
        (index.url.replace("http://", "http://me:secret@") + "/mine", "2.13.0+mine"),
    ):
        done = project.install("train", TORCH=wanted)
        assert done.returncode == 0, done.stderr
        assert project.installed()["torch"] == version
        log = (project.folder / ".venv" / "install.log").read_text(encoding="utf-8")
        assert "secret" not in done.stdout + done.stderr + log
