"""A project that says what it needs runs unchanged: what the machine lacks is sealed with it, and found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import Program, processes_of, wait_until
from tests.e2e.test_cloud import renting
from tests.e2e.test_project import files, opened, project, run, words
from tests.install import kit
from tests.runtime.test_wheel import native_wheel

pytestmark = [pytest.mark.train, pytest.mark.slow]

MAIN = """
import importlib.metadata, importlib.resources, json, os, pathlib, shutil, subprocess, sys
import torch_like, ghneeded, packaging
from ghneeded_more import inner
out = pathlib.Path("out")
out.mkdir()
called = subprocess.run([sys.executable, "-c", "import ghneeded; print(ghneeded.VERSION)"],
                        capture_output=True, text=True)
program = subprocess.run(["gh-say", "x"], capture_output=True, text=True)
said = {
    "version": importlib.metadata.version("ghneeded"), "module": ghneeded.VERSION, "under": inner.VERSION,
    "data": importlib.resources.files("ghneeded_more").joinpath("words.txt").read_text(),
    "child": called.stdout.strip(), "program": program.stdout.strip(), "own": torch_like.__file__ is not None,
    "wheels": pathlib.Path(".glasshouse-wheels").exists(),
    "other": [packaging.VERSION, importlib.metadata.version("packaging")],
}
(out / "said.json").write_text(json.dumps(said, sort_keys=True))
"""
SAID = {
    "version": "1.5", "module": "1.5", "under": "2", "data": "words", "child": "1.5", "program": "said ['x']",
    "own": True, "wheels": False, "other": ["20.0", "20.0"],
}  # fmt: skip


@pytest.fixture
def program(tmp_path: Path, index: kit.Index) -> Program:
    (tmp_path / "t").mkdir()
    pip = {
        "PIP_INDEX_URL": f"{index.url}/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": "0",
        "PIP_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "t"),
    }  # fmt: skip
    return Program(tmp_path / "home", tmp_path / "runs", variables=tuple(pip.items()))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[kit.Index]:
    with kit.serving(tmp_path / "index") as served:
        main = "import sys\ndef main():\n    print('said', sys.argv[1:])\n"
        more = {"ghsay.py": main, "INFO/entry_points.txt": "[console_scripts]\ngh-say = ghsay:main\n"}
        served.add("ghneeded", "1.5", ["ghunder"], more=more)
        served.add("ghneeded", "2.0")
        served.add("packaging", "20.0")  # the machine has a later one
        inner = {"ghneeded_more/__init__.py": "", "ghneeded_more/inner.py": "VERSION = '2'\n"}
        served.add("ghunder", "1", more={**inner, "ghneeded_more/words.txt": "words"})
        yield served


def needy(
    folder: Path, requirements: str = "torch\nghneeded<2\npackaging==20.0\nnumpy ; python_version < '3'\n"
) -> Path:
    return project(folder, {"main.py": MAIN, "torch_like.py": "", "requirements.txt": requirements})


def test_what_the_machine_lacks_is_sealed_with_the_project(
    program: Program, tmp_path: Path, index: kit.Index
) -> None:
    mine = needy(tmp_path / "mine")
    code, record, folder, err = run(program, mine, "python", "main.py")
    assert code == 0, err
    assert record["status"] == "verified"
    back = files(opened(program, folder, tmp_path / "back"))
    assert json.loads(back["said.json"][0]) == SAID
    assert (
        "needs, by requirements.txt: torch, ghneeded, packaging, numpy (model.requirements=none ignores it)"
        in err
    )
    assert (
        "the machine has torch; sealed with the project: ghneeded 1.5, ghunder 1, packaging 20.0 (3 wh" in err
    )
    assert f"in place of the machine's packaging {metadata.version('packaging')}" in err
    assert "not found among" not in err  # also of what a requirement brings along
    assert not any(path.startswith("/simple/torch/torch") for path in index.asked)
    # Nothing says so where others read it.
    for path in (folder / "bundle").rglob("*"):
        assert path.is_dir() or b"ghneeded" not in path.read_bytes(), path
    assert not list((tmp_path / "t").glob("glasshouse-needs-*"))


def test_a_command_of_a_package_that_is_sent_is_run(program: Program, tmp_path: Path) -> None:
    mine = needy(tmp_path / "mine")
    code, _, folder, err = run(program, mine, "gh-say", "y", settings=("model.outputs=out",))
    assert code == 0, err
    opened(program, folder, tmp_path / "back")
    (log,) = (tmp_path / "back").glob("*trainer.log")
    assert "said ['y']" in log.read_text()


def test_what_cannot_be_had_ends_before_there_is_a_run(program: Program, tmp_path: Path) -> None:
    mine = needy(tmp_path / "mine", "ghneeded==9\n")
    done = program(
        "run", "--out", str(program.runs), "model=project", f"model.folder={mine}", "--", "python", "main.py"
    )
    assert done.returncode == 2
    assert "error: requirements.txt line 1: no such version, the newest is 2.0 (depend" in done.stderr
    assert "(dependencies=ghneeded==9)" in done.stderr
    assert not program.runs.exists() or not list(program.runs.iterdir())
    ignored = project(tmp_path / "other", {"main.py": "", "requirements.txt": "ghneeded==9\n"})
    code, *_, err = run(program, ignored, "python", "main.py", settings=("model.requirements=none",))
    assert code == 0, err


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "error: interrupted"), (signal.SIGTERM, 143, "error: terminated")],
)
def test_ending_it_while_pip_works_is_a_line_and_leaves_nothing(
    program: Program, tmp_path: Path, number: signal.Signals, code: int, line: str
) -> None:
    mine = needy(tmp_path / "mine")
    with kit.silent() as url:
        silent = replace(program, variables=(*program.variables, ("PIP_INDEX_URL", f"{url}/simple")))
        process = silent.start(
            *("run", "--out", str(program.runs), "model=project", f"model.folder={mine}"),
            *("--", "python", "main.py"),
        )
        wait_until(lambda: any((tmp_path / "t").rglob("pip-*")), 60, "pip")
        process.send_signal(number)  # to it alone: pip does not hear it
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (code, line)
    assert not program.runs.exists() or not list(program.runs.iterdir())
    assert not processes_of(str(tmp_path / "t"))
    assert list((tmp_path / "t").iterdir()) == []


def test_a_rented_machine_is_asked_and_then_sent_what_it_lacks(program: Program, tmp_path: Path) -> None:
    paid = ("provider=runpod", "gpu=a4000", "model.max_hours=0.1", "provider.request_timeout_sec=1")
    with renting("runpod", tmp_path / "rented") as rents:
        renter = replace(rents, variables=program.variables)
        mine = needy(tmp_path / "mine")
        code, record, folder, err = run(renter, mine, "python", "main.py", settings=paid)
        # The fake's GPU is a program in a folder that a confined job does not reach, so no row comes of it.
        assert record["exclusion"]["codes"] == ["same-machine-not-proven", "gpu-not-as-asked"], err
        assert "the command ended with 0" in err
        assert json.loads(files(opened(renter, folder, tmp_path / "back"))["said.json"][0]) == SAID
        # What it turns out not to be able to have ends the rental, and nothing was uploaded.
        lost = needy(tmp_path / "lost", "ghneeded==9\n")
        code, record, folder, err = run(renter, lost, "python", "main.py", settings=paid)
        assert code == 2
        assert "dependencies-unmet" in record["exclusion"]["codes"]
        assert "requirements.txt line 1: no such version, the newest is 2.0" in err
        assert "uploading" not in err
        rents.settled()


NATIVE = """
import ghnative, os, pathlib
out = pathlib.Path("out")
out.mkdir()
(out / "where").write_text(f"{os.statvfs('.').f_flag & os.ST_NOEXEC} {os.readlink(ghnative.PART)}")
"""


def test_compiled_modules_load_where_shared_memory_lets_nothing_be_executed(
    program: Program, tmp_path: Path
) -> None:
    """As containers have it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    wheel = native_wheel(tmp_path)
    mine = project(tmp_path / "mine", {"main.py": NATIVE, "requirements.txt": f"{wheel}\n--no-index\n"})
    mount = 'mount -t tmpfs -o noexec,size=2g tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-m", "glasshouse",
         *words(mine, program), "python", "main.py"],
        cwd=program.root, env=program.environment, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    if "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["runs"][0]["folder"])
    flag, _, link = files(opened(program, folder, tmp_path / "back"))["where"][0].decode().partition(" ")
    assert flag != "0"
    assert link.startswith("/proc/self/fd/")


@pytest.mark.sshd
def test_over_openssh_the_machine_is_asked_first(program: Program, sshd: Sshd, tmp_path: Path) -> None:
    mine = needy(tmp_path / "mine")
    code, _, folder, err = run(
        program, mine, "python", "main.py",
        settings=(
            "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}",
            f"provider.user={sshd.user}", f"provider.key={sshd.key}",
            f"provider.known_hosts={sshd.known_hosts}", f"provider.python={sys.executable}",
            f"provider.workdir={tmp_path}/pod",
        ),
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(files(opened(program, folder, tmp_path / "back"))["said.json"][0]) == SAID
