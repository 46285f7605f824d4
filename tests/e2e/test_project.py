"""A project as its owner has it, run unchanged by one command: what comes back, what is said if it fails."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import Program, wait_until
from tests.e2e.phases import on_pod

pytestmark = [pytest.mark.train, pytest.mark.slow]

MAIN = """
import argparse, json, os, pathlib, sys
from pkg.inner import deep
from pkg import tools

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--layers")
parser.add_argument("words", nargs="*")
args = parser.parse_args()
out = pathlib.Path("out")
(out / "sub folder").mkdir(parents=True, exist_ok=True)
said = {
    "lr": args.lr, "layers": args.layers, "words": args.words, "file": __file__ == os.path.abspath("main.py"),
    "variable": os.environ.get("GH_TEST_WORD"), "stdin": sys.stdin.read(), "name": __name__,
    "data": pathlib.Path("data.txt").read_text(),
    "corpus": sorted(map(str, pathlib.Path("data").rglob("*.txt"))),
    "untracked": pathlib.Path("untracked.txt").exists(), "deep": deep(), "doc": tools.source(),
}
(out / "sub folder" / "gesagt ü.json").write_text(json.dumps(said, sort_keys=True))
(out / "run.sh").write_text("#!/bin/sh\\n")
(out / "run.sh").chmod(0o755)
print("done", args.lr)
"""
INNER = "from . import tools\n\ndef deep():\n    return tools.NAME\n"
TOOLS = 'import inspect\n\nNAME = "tools"\n\ndef source():\n    return inspect.getsource(source)\n'


def project(folder: Path, files: dict[str, str]) -> Path:
    """A git repository with these files, all of them tracked."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    return folder


def words(folder: Path, program: Program, *settings: str) -> list[str]:
    return [
        "run", "--json", "--out", str(program.runs), "model=project", f"model.folder={folder}",
        "model.outputs=out",
        "measure.head_interval_sec=0.3", *settings, "--",
    ]  # fmt: skip


def run(
    program: Program, folder: Path, *command: str, settings: tuple[str, ...] = ()
) -> tuple[int, dict, Path, str]:
    done = program(*words(folder, program, *settings), *command)
    assert done.stdout, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    return done.returncode, record, Path(record["folder"]), done.stderr


def opened(program: Program, folder: Path, to: Path) -> Path:
    done = program("open", str(folder), "--to", str(to), "--json")
    assert done.returncode == 0, done.stderr
    return to / "s000-1"


def files(folder: Path) -> dict[str, tuple[bytes, bool]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = (path.read_bytes(), os.access(path, os.X_OK))
    return found


def test_it_runs_unchanged_and_its_files_come_back_as_without_us(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GH_TEST_WORD", "a b")
    mine = project(
        tmp_path / "mine",
        {
            "main.py": MAIN,
            "pkg/__init__.py": "",
            "pkg/inner.py": INNER,
            "pkg/tools.py": TOOLS,
            "data.txt": "tracked",
        },
    )
    (mine / "untracked.txt").write_text("stays here")
    corpus = tmp_path / "corpus"
    (corpus / "deep er").mkdir(parents=True)
    (corpus / "deep er" / "ü.txt").write_text("far")
    command = ["python", "main.py", "--lr=3e-4", "--layers", "1,2", "${x}", "it's", "--", "--json"]

    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(mine), str(copy)], check=True)
    (copy / "untracked.txt").unlink()
    subprocess.run(["cp", "-r", str(corpus), str(copy / "data")], check=True)
    (copy / "data").rename(copy / "data_")
    (copy / "data").mkdir()
    (copy / "data_").rename(copy / "data" / "corpus")
    subprocess.run([sys.executable, *command[1:]], cwd=copy, check=True, stdin=subprocess.DEVNULL)

    environment = {**program.environment, "GH_TEST_WORD": "a b"}
    said = subprocess.run(
        [sys.executable, "-m", "glasshouse",
         *words(mine, program, f"model.data=[{corpus}]", "model.env=[GH_TEST_WORD]"), *command],
        cwd=program.root, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    record = json.loads(said.stdout)["runs"][0]
    assert (record["status"], record["method"]) == ("verified", 3)
    assert {"runtime-ended", "loss-unseen"} <= set(record["caveats"])
    assert "self-counted" not in record["caveats"]  # it has no torch
    assert not {"short", "network-open", "reads-unconfined", "payload-disclosed"} & set(record["caveats"])
    assert "exec-in-leg" not in record["caveats"]
    assert execs(Path(record["folder"])) == [{"started": 0, "refused": 0, "counted": "notified"}]
    assert "sealing 6 files" in said.stderr
    back = files(opened(program, Path(record["folder"]), tmp_path / "back"))
    assert back == files(copy / "out")
    assert program("verify", record["folder"]).returncode == 0
    # Nothing of it stands where others read it.
    plan = (Path(record["folder"]) / "bundle/plan.dsse.json").read_bytes()
    assert b"main.py" not in plan
    assert "private-project" in record["id"]


SAVES = """
import os, pathlib, sys, signal, threading
def never():
    import no_such_module_of_anybody
out = pathlib.Path("out")
out.mkdir()
(out / "saved.txt").write_text("saved")
print("said before the end", flush=True)
pathlib.Path("beside.txt").write_text("not in the outputs")
pathlib.Path("nowhere").symlink_to("/proc/1/root/x")
how = sys.argv[1]
if how == "raise":
    from broken import inner
    inner({})
elif how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif how == "exit":
    os._exit(7)
elif how == "words":
    sys.exit("a sentence")
elif how == "flood":
    print("first line")
    for number in range(50_000):
        print("x" * 1000)
    print("last line")
"""


@pytest.mark.parametrize(
    ("how", "words_", "line"),
    [
        ("exit", "the command ended with 7", "said before the end"),
        ("kill", "the command was killed by SIGKILL", "said before the end"),
        ("raise", "the command ended with 1", "return value['there is no such key']"),
        ("words", "the command ended with 1", "a sentence"),
    ],
)
def test_whatever_ends_it_its_files_come_back_and_its_end_is_named(
    program: Program, tmp_path: Path, how: str, words_: str, line: str
) -> None:
    broken = "def inner(value):\n    return value['there is no such key']\n"
    mine = project(tmp_path / "mine", {"main.py": SAVES, "broken.py": broken})
    code, record, folder, err = run(program, mine, "python", "main.py", how)
    assert code == 1
    assert (record["status"], record["exclusion"]["codes"]) == ("excluded", ["job-failed"])
    assert words_ in err
    assert "not found among the packages of the machine's Python: no_such_module_of_anybody" in err
    assert f"| {line}" in re.sub(r"\| +", "| ", err)
    assert "written outside of out, and lost with the machine: beside.txt\n" in err
    ends = {"exit": (7, None), "kill": (None, "SIGKILL")}
    code, name = ends.get(how, (1, None))
    assert record["exit"] == {"code": code, "signal": name, "outOfMemory": False, "outOfTime": False}
    assert files(opened(program, folder, tmp_path / "back")) == {"saved.txt": (b"saved", False)}


ELSEWHERE = """
import pathlib, subprocess, sys
place = pathlib.Path(sys.argv[1])
place.mkdir(parents=True, exist_ok=True)
(place / "log.txt").write_text("log")
(place / "model.pt").write_bytes(bytes(100_000))
print(subprocess.run(["git", "rev-parse", "HEAD"]).returncode)
"""


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("runs/exp", "There is no folder out (model.outputs): give model.outputs=runs"),
        ("src/runs", "There is no folder out (model.outputs): give model.outputs=src/runs"),
        ("src", "There is no folder out (model.outputs): have it written into out/"),
    ],
)
def test_results_in_another_folder_are_loudly_lost(
    program: Program, tmp_path: Path, place: str, remedy: str
) -> None:
    mine = project(tmp_path / "mine", {"main.py": ELSEWHERE, "src/a.py": ""})
    code, record, _, err = run(program, mine, "python", "main.py", place)
    assert (code, record["status"], record["exit"]["code"]) == (0, "verified", 0)
    assert "  comes back: out/ (model.outputs), and nothing that it writes elsewhere\n" in err
    lost = f"{place}/model.pt, {place}/log.txt; the largest has 100000 bytes. {remedy}"
    assert f"\nwhat it wrote is lost with the machine: {lost}\n" in err
    assert "  its log is sealed for you: " in err
    assert "its files" not in err
    assert "  .git does not go along: what git would say can be a variable, " in err


def test_a_folder_of_results_that_stays_empty_is_no_alarm_where_nothing_was_written(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"main.py": "import os; os.mkdir('out')"})
    code, _, folder, err = run(program, mine, "python", "main.py")
    assert code == 0
    assert "  nothing comes back: nothing lies in out (model.outputs)\n" in err
    assert "its files" not in err
    assert program("open", str(folder)).stdout.endswith("s000-1: 0 files, 0 bytes\n")


REFUSED = "raise PermissionError(13, 'Permission denied', '/tmp/x')"


def test_a_tmp_that_is_not_its_own_is_explained(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": REFUSED})
    _, _, _, err = run(program, mine, "python", "main.py")
    assert "it may write to $TMPDIR, as tempfile does" in err
    assert "named in model.data" not in err


RESUMES = """
import pathlib
last = pathlib.Path("runs/last.txt")
step = int(last.read_text()) if last.exists() else 0
last.parent.mkdir(exist_ok=True)
last.write_text(str(step + 1))
print("entries", len(list(last.parent.iterdir())))
"""


def test_runs_in_the_projects_own_outputs_folder_stay_here_and_it_resumes(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"main.py": RESUMES})
    runs = mine / "runs"
    given = ["run", "--json", "--out", str(runs), "model=project", f"model.folder={mine}"]
    first = program(*given, "model.outputs=runs", "--", "python", "main.py")
    assert first.returncode == 0, first.stderr
    back = opened(program, Path(json.loads(first.stdout)["runs"][0]["folder"]), tmp_path / "back")
    (runs / "last.txt").write_bytes((back / "last.txt").read_bytes())
    more = ["model.outputs=runs", "model.include=[runs/**]", "--", "python", "main.py"]
    second = program(*given, *more)
    assert second.returncode == 0, second.stderr
    (before,) = [path.name for path in runs.iterdir() if path.is_dir() and path.name in first.stdout]
    assert f"left out: Glasshouse's own: runs/{before}\n" in second.stderr
    again = opened(program, Path(json.loads(second.stdout)["runs"][0]["folder"]), tmp_path / "again")
    assert files(again) == {"last.txt": (b"2", False)}


def test_fifty_megabytes_of_output_hurt_nobody(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": SAVES})
    code, _, folder, err = run(program, mine, "python", "main.py", "flood")
    assert code == 0, err
    opened(program, folder, tmp_path / "back")
    (log,) = (tmp_path / "back").glob("*trainer.log")
    text = log.read_text()
    assert text.startswith("said before the end\nfirst line\n")
    assert "\nlast line\nglasshouse: what comes back of out: 1 file, 5 bytes\n" in text
    assert len(text) < 5 << 20


LOOP = """
import pathlib, signal, sys, time
out = pathlib.Path("out")
out.mkdir()
(out / "began.txt").write_text("began")
def save(*_):
    (out / "saved.txt").write_text("saved on request")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while True:
    time.sleep(0.05)
"""


def test_ctrl_c_lets_it_save_and_brings_that_home(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": LOOP})
    process = program.start(*words(mine, program), "python", "main.py")
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    record = json.loads(out)["runs"][0]
    assert "interrupted" in record["exclusion"]["codes"], "".join(seen) + err
    assert "asking the command to end" in err
    back = files(opened(program, Path(record["folder"]), tmp_path / "back"))
    assert back["saved.txt"] == (b"saved on request", False)
    assert program("verify", record["folder"]).returncode == 0
    assert program.pods() == []


DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("out").mkdir()
while True:
    time.sleep(1)
"""


def test_ctrl_c_once_more_does_not_wait_for_a_job_that_does_not_end(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": DEAF})
    process = program.start(*words(mine, program), "python", "main.py")
    assert process.stderr is not None
    seen = ""
    for word in ("running", "asking the command to end"):
        while word not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert "not waiting for it; what was not sealed by now is lost" in err
    record = json.loads(out)["runs"][0]
    assert "interrupted" in record["exclusion"]["codes"]
    assert program.pods() == []


LARGE = """
import pathlib
out = pathlib.Path("out")
out.mkdir()
(out / "metrics.json").write_text("{}")
with (out / "big.ckpt").open("wb") as large:
    large.truncate(65 << 30)  # of holes
"""


def test_what_is_too_large_to_come_back_is_said_last_and_excludes_the_row(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"main.py": LARGE})
    code, record, folder, err = run(program, mine, "python", "main.py")
    assert (code, record["exclusion"]["codes"]) == (1, ["outputs-left-out"])
    assert "what comes back of out: 1 file, 2 bytes" in err
    lost = "NOT BROUGHT BACK: big.ckpt: all files together would be more than 67645734912 bytes"
    assert err.count(lost) == 1
    assert err.index(lost) > err.index("releasing the allocation")
    assert files(opened(program, folder, tmp_path / "back")) == {"metrics.json": (b"{}", False)}


def test_it_is_ended_at_the_end_of_its_time(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": LOOP})
    code, record, folder, err = run(
        program, mine, "python", "main.py", settings=(f"model.max_hours={2 / 3600}",)
    )
    assert code == 1
    assert record["exclusion"]["codes"] == ["job-failed"]
    assert "was ended at the end of its time" in err
    assert f"it was asked to end: model.max_hours={2 / 3600:g} was over\n" in err
    assert "saved.txt" in files(opened(program, folder, tmp_path / "back"))
    how = json.loads((tmp_path / "back/s000-1-exit.json").read_text())
    assert how == {
        "code": 0, "signal": None, "outOfMemory": False, "outOfTime": True, "endedBy": "model.max_hours"
    }  # fmt: skip


LINKS = """
import os, pathlib, sys

def leave():
    out = pathlib.Path("out")
    (out / "checkpoint-3").mkdir(parents=True)
    (out / "checkpoint-3" / "weights").write_text(" ".join([sys.argv[0], *sys.argv[1:]]))
    (out / "latest").symlink_to("checkpoint-3")
    (out / "checkpoint-3" / "best").symlink_to("../checkpoint-3/weights")
    (out / "inside").symlink_to((out / "checkpoint-3" / "weights").resolve())
    os.link(out / "checkpoint-3" / "weights", out / "hard")
    (out / "passwd").symlink_to("/etc/passwd")
    for number in range(5):
        (out / f"up{number}").symlink_to("../links.py")
"""


def test_links_in_the_outputs_stay_links_and_those_that_lead_out_are_named(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"links.py": LINKS})
    code, _, folder, err = run(program, mine, "python", "-c", "import links; links.leave()", "--lr=3")
    assert code == 0, err
    assert "left out of it: passwd: the link leads to an absolute path" in err
    assert "left out of it: up0: the link leads out of the folder" in err
    assert "left out of it: 1 more, which `open` names" in err
    back = opened(program, folder, tmp_path / "back")
    links = {path.name: str(path.readlink()) for path in back.rglob("*") if path.is_symlink()}
    assert links == {
        "latest": "checkpoint-3", "best": "../checkpoint-3/weights", "inside": "checkpoint-3/weights",
    }  # fmt: skip
    assert (back / "latest/weights").read_text() == (back / "hard").read_text() == "-c --lr=3"
    assert not os.path.lexists(back / "passwd")
    again = program("open", str(folder), "--to", str(tmp_path / "again"))
    assert "left out on the pod: up4: the link leads out of the folder" in again.stdout


def test_what_fails_after_its_outputs_were_sealed_loses_none_of_them(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"main.py": SAVES, "broken.py": ""})
    process = program.start(*words(mine, program), "python", "main.py", "nothing")
    wait_until(lambda: on_pod(program, "legs/s000-1/events.jsonl"), 60, "the leg")
    (leg,) = program.pods()[0].glob("home/*/legs/s000-1")
    (leg / "result.json.partial").mkdir()  # as on a disk that is full by then: the leg has no last word
    out, err = process.communicate(timeout=90)
    record = json.loads(out)["runs"][0]
    assert (process.returncode, record["status"]) == (1, "excluded"), err
    assert "lost-leg" in record["exclusion"]["codes"]
    assert "its outputs were sealed before that; fetching them" in err
    assert files(opened(program, Path(record["folder"]), tmp_path / "back")) == {
        "saved.txt": (b"saved", False)
    }


TRAINS = """
import os, signal, sys
import torch
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(40):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
print("trained", flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("how", "end", "weights"),
    [
        ("end", "ended with 0", "its weights, where sampled, changed"),
        ("kill", "was killed by SIGKILL", "whether its weights changed was not seen"),
    ],
)
def test_the_steps_it_took_are_counted_whatever_ends_it(
    program: Program, tmp_path: Path, how: str, end: str, weights: str
) -> None:
    mine = project(tmp_path / "mine", {"train.py": TRAINS})
    code, record, folder, err = run(program, mine, "python", "train.py", how)
    assert code == (0 if how == "end" else 1), err
    assert re.search(rf"the command {end} after \d+\.\d s; 40 optimizer steps\n", err)
    assert {"self-counted", "loss-unseen"} <= set(record["caveats"])
    assert record["figures"]["protected"]["steps"] == 40
    said = json.loads((folder / "bundle" / "record.json").read_bytes())["figures"]["weights"]
    assert (said["firstDigest"] is None, said["lastDigest"] is None) == (False, how == "kill")
    opened(program, folder, tmp_path / "back")
    assert json.loads((tmp_path / "back/s000-1-exit.json").read_text())["steps"] == 40
    shown = program("show", str(folder))
    assert f"the command counted 40 optimizer steps; {weights}\n" in shown.stdout
    verified = program("verify", str(folder))
    assert verified.returncode == 0
    assert "it says that it took 40 optimizer steps" in verified.stdout


REACHES = """
import json, pathlib, socket, sys
port, secret = int(sys.argv[1]), sys.argv[2]
tried = {}
def attempt(name, action):
    try:
        tried[name] = repr(action())
    except BaseException as error:
        tried[name] = type(error).__name__
attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), timeout=2).sendall(b"out"))
attempt("read", lambda: pathlib.Path(secret).read_text())
attempt("write", lambda: pathlib.Path(secret + ".new").write_text("x"))
attempt("home", lambda: (pathlib.Path.home() / "x").write_text("x"))
out = pathlib.Path("out")
out.mkdir()
(out / "tried.json").write_text(json.dumps(tried))
"""


def test_it_reaches_no_server_and_reads_and_writes_nothing_elsewhere(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"main.py": REACHES})
    secret = tmp_path / "another's"
    secret.write_text(secrets.token_hex(16))
    heard = []

    def hear(listening: socket.socket) -> None:
        while True:
            try:
                heard.append(listening.accept())
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=hear, args=(listening,), daemon=True).start()
        port = listening.getsockname()[1]
        code, _, folder, err = run(program, mine, "python", "main.py", str(port), str(secret))
        time.sleep(0.2)
        assert heard == []
        listening.shutdown(socket.SHUT_RDWR)
    assert code == 0, err
    tried = json.loads(files(opened(program, folder, tmp_path / "back"))["tried.json"][0])
    assert set(tried) == {"connect", "read", "write", "home"}
    assert tried["connect"].endswith("Error")
    assert tried["read"] in ("PermissionError", "FileNotFoundError")
    assert tried["write"] in ("PermissionError", "FileNotFoundError", "OSError")
    assert tried["home"] == "1"  # in its own scratch folder
    assert not secret.with_name(f"{secret.name}.new").exists()


STARTS = """
import pathlib, subprocess
pathlib.Path("out").mkdir()
pathlib.Path("out/before.txt").write_text("saved")
done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
pathlib.Path("out/said.txt").write_text(done.stderr)
"""


def execs(folder: Path) -> list[dict]:
    (events,) = (folder / "bundle" / "legs").glob("*/events.jsonl")
    said = [json.loads(line) for line in events.read_text().splitlines()]
    return [event["body"] for event in said if event["type"] == "execs-counted"]


def test_programs_that_it_starts_work_and_are_counted_and_told(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": STARTS})
    code, record, folder, err = run(program, mine, "python", "main.py")
    assert code == 0, err
    assert record["status"] == "verified"
    assert "exec-in-leg" in record["caveats"]
    assert "the command started 1 program by itself, and the row says so: exec-in-leg" in err
    back = files(opened(program, folder, tmp_path / "back"))
    assert b"not a git repository" in back["said.txt"][0]
    assert execs(folder) == [{"started": 1, "refused": 0, "counted": "notified"}]
    checked = program("verify", str(folder))
    assert checked.returncode == 0
    assert (
        "s000-protected launch 1: verified again; its project started 1 program by itself\n" in checked.stdout
    )
    shown = program("show", str(folder))
    assert "the command started 1 program by itself\n" in shown.stdout
    assert "caveat exec-in-leg: Programs were started in the leg." in shown.stdout
    told = json.loads((folder / "bundle" / "record.json").read_bytes())["figures"]["execs"]
    assert told == {"started": 1, "refused": 0, "counted": "notified"}
    for secret in (b"git", b"rev-parse"):  # neither what was started nor with what
        assert secret not in json.dumps(execs(folder)).encode()


def test_a_strict_policy_refuses_them_and_says_what_holds(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": STARTS})
    code, record, folder, err = run(program, mine, "python", "main.py", settings=("policy=strict",))
    assert code == 1
    assert (record["status"], record["exclusion"]["codes"]) == ("excluded", ["job-failed"])
    assert "exec-in-leg" not in record["caveats"]
    assert "| PermissionError: [Errno 1] Operation not permitted: 'git'" in err
    assert "policy=strict lets a command start no programs of its own" in err
    assert "refused by the system call filter" in err
    assert execs(folder) == [{"started": 0, "refused": 1, "counted": "notified"}]
    assert files(opened(program, folder, tmp_path / "back")) == {"before.txt": (b"saved", False)}


@pytest.mark.sshd
def test_over_openssh_its_files_come_back_too(program: Program, sshd: Sshd, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": SAVES})
    code, record, folder, err = run(
        program, mine, "python", "main.py", "nothing",
        settings=(
            "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}",
            f"provider.user={sshd.user}", f"provider.key={sshd.key}",
            f"provider.known_hosts={sshd.known_hosts}", f"provider.python={sys.executable}",
            f"provider.workdir={tmp_path}/pod",
        ),
    )  # fmt: skip
    assert code == 0, err
    assert record["status"] == "verified"
    assert files(opened(program, folder, tmp_path / "back")) == {"saved.txt": (b"saved", False)}


@pytest.mark.soak  # most of a minute; the order of such events: tests/records/test_chain.py
def test_outputs_that_take_long_to_seal_count(program: Program, tmp_path: Path) -> None:
    large = (
        "import os\nos.mkdir('out')\n"
        "with open('out/weights.bin', 'wb') as file:\n    file.truncate(768 << 20)\n"  # sealed like any bytes
    )
    mine = project(tmp_path / "mine", {"main.py": large})
    code, record, folder, err = run(program, mine, "python", "main.py")
    assert code == 0, err
    assert (record["status"], record["exclusion"]) == ("verified", None)
    (path,) = (folder / "bundle" / "legs").glob("*/events.jsonl")
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    kinds = [event["type"] for event in events]
    after = events[kinds.index("trained") + 1 : kinds.index("sealed-outputs")]
    assert after
    assert {(event["type"], event["body"]["phase"]) for event in after} == {("progress", "sealing")}
    checked = program("verify", str(folder / "bundle"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
