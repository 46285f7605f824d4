"""The command line: what it loads, what it prints where, what it says about mistakes, what it returns."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import glasshouse
from glasshouse import cli, paths
from glasshouse.canonical import canonical_json
from glasshouse.commands import against, pages, plan, publish, run, tamper, unpublish
from glasshouse.commands import keys as keys_command
from glasshouse.commands.terminal import spark, table
from glasshouse.conf_files import conf_dir
from glasshouse.errors import CleanupNotProven, RemoteError
from glasshouse.lifecycle.ui import Screen
from glasshouse.publishing.tamper import read_tamper
from glasshouse.records import keys, ledger
from glasshouse.records.signing import open_statement
from glasshouse.run import summary_row
from glasshouse.sealing.grant import kem_public_bytes
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.outputs import seal_outputs
from tests.publishing.conftest import enter
from tests.records.factory import Factory
from tests.records.factory import make_spec as make_bundle_spec

ROOT = Path(cli.__file__).resolve().parents[1]
CANARY = "canary-5f1d0c7a-never-to-be-shown"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run commands from an empty folder, without anybody's credentials."""
    monkeypatch.chdir(tmp_path)
    for name in ("RUNPOD_API_KEY", "VAST_API_KEY", "GLASSHOUSE_MAX_USD", "GLASSHOUSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; return exit code, stdout, stderr."""

    def run_it(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on loopback."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        **options,
    )


# --- start and help ----------------------------------------------------------------------------


def test_help_shows_commands_and_groups_and_loads_nothing_heavy() -> None:
    done = python(
        "-c",
        "import sys; from glasshouse.cli import main; code = main(['--help']);"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)",
    )
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", done.stdout, flags=re.MULTILINE)
    assert "h100" in done.stdout
    assert "qwen2.5-7b" in done.stdout
    loaded = set(json.loads(done.stderr.replace("'", '"')))
    assert "glasshouse" in loaded
    heavy = {"torch", "transformers", "numpy", "hydra", "omegaconf", "pydantic", "yaml", "rich", "httpx"}
    assert loaded & (heavy | {"fabric", "asyncssh", "sqlalchemy", "cryptography"}) == set()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_each_command_explains_itself_and_has_json(name: str, call: Call) -> None:
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out
    module = importlib.import_module(f"glasshouse.commands.{name}")
    assert (module.__doc__ or "").splitlines()[0] in out


def test_every_module_of_a_command_is_in_the_table() -> None:
    folder = Path(cli.__file__).parent / "commands"
    commands = {
        path.stem for path in folder.glob("*.py") if "def arguments(" in path.read_text(encoding="utf-8")
    }
    assert commands == set(cli.COMMANDS)


def test_module_and_script_are_one_program() -> None:
    assert (
        python("-m", "glasshouse", "--version").stdout
        == f"glasshouse {importlib.import_module('glasshouse').__version__}\n"
    )


# --- mistakes ----------------------------------------------------------------------------------

SSH = ["provider=ssh", "provider.host=h", "provider.user=u"]
MISTAKES = [
    (["pln"], "command=pln", "did you mean plan"),
    (["gpu=h1000"], "gpu=h1000", "did you mean h100"),
    (["duration=-5"], "duration=-5", "greater than 0"),
    (["duratoin=5"], "duratoin=5", "did you mean duration"),
    (["plan", "duratoin=5"], "duratoin=5", "did you mean duration"),
    (["plan", "gpu=a4000,h100"], "gpu=a4000,h100", "-m"),
    (["plan", "--frobnicate"], "command=glasshouse plan", "--frobnicate"),
    (["--frobnicate"], "command=glasshouse run", "--frobnicate"),
    (["run", "duration"], "argument=duration", "NAME=VALUE"),
    ([*SSH, "provider.key=/no/key"], "provider.key=/no/key", "exists"),
    ([*SSH, f"provider.key={ROOT / 'pyproject.toml'}"], "pyproject.toml", "private key"),
    (["provider.python=/no/python", "duration=2"], "provider.python=/no/python", "Python 3.11"),
    (["plan", "--against", "no-such-ref"], "against=no-such-ref", ""),
    (["plan", "--against=--output=x"], "against=--output=x", "not a git revision"),
    (["plan", "provider=runpod"], "gpu.max_usd_per_hour.runpod=None", "gpu=auto"),
    (["gpu=a4000", "duration=60"], "environment=GLASSHOUSE_MAX_USD", "spend.max_usd="),
    (["gpu=a4000", "duration=60", "spend.max_usd=0.01"], "cap=0.01", "more than the cap"),
    (["gpu=a4000", "duration=60", "spend.max_usd=5"], "RUNPOD_API_KEY", ""),
    (["-m", "gpu=a4000,h100", "duration=60", "spend.max_usd=1"], "cap=1.00", "more than the cap"),
    (["show", "nothing"], "run=nothing", "glasshouse runs"),
    (["open", "nothing"], "run=nothing", "glasshouse runs"),
    (["verify", "nothing"], "path=nothing", "run or bundle folder"),
    (["ledger", "check", "one"], "command=ledger check", "OLD NEW"),
    (["ledger", "check", "no", "no"], "checkpoint=no", "file"),
    (["broker", "--port", "99999"], "port=99999", "65535"),
    (["broker", "--store", "nosuch://x"], "store=nosuch://x", "postgresql+psycopg://"),
    (["broker", "--store", "no url"], "store=withheld", "not a database URL"),
    (["broker", "--store", "sqlite:////no/such/x.db"], "store=sqlite:////no/such/x.db", "sqlite:////path"),
    (["broker", "--store", "postgresql+psycopg://me:hush@127.0.0.1:1/x"], "me:***@127.0.0.1", "server"),
    (["tamper", "--out", "/no/such/x.json"], "out=/no/such/x.json", "can be written"),
    (["tamper", "--out", "/"], "out=/", "it is a folder"),
    (["verify", "x", "--keys", "/no/ring.json"], "keys=/no/ring.json", "glasshouse keys --json"),
    (["verify", "x", "--keys", str(ROOT / "pyproject.toml")], "pyproject.toml", "not a keyring file"),
    (["ledger", "check", str(ROOT / "LICENSE"), "x"], "LICENSE", "not a checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named", "said"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES]
)
def test_a_mistake_exits_2_with_one_line_and_leaves_nothing_behind(
    words: list[str], named: str, said: str, call: Call, elsewhere: Path
) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert named in err
    assert said in err
    assert "Traceback" not in err
    assert list(elsewhere.iterdir()) == []


def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, out, err = call("broker", "--store", "postgresql+psycopg://me@127.0.0.1:1/x")
    assert (code, out) == (2, "")
    assert "driver is not installed (store=postgresql+psycopg://me@127.0.0.1:1/x)" in err
    assert "'.[postgres]'" in err


@pytest.mark.parametrize("words", [["keys"], ["duration=2"]])
def test_a_home_that_cannot_be_made_is_named(
    words: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "file").touch()
    monkeypatch.setenv("GLASSHOUSE_HOME", str(elsewhere / "file"))
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: cannot make the folder for keys and state")
    assert "set GLASSHOUSE_HOME" in err
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


def test_pages_go_nowhere_they_cannot_be_written(
    call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "file").touch()
    monkeypatch.setattr(pages, "read_publication", lambda *_, **__: None)
    monkeypatch.setattr(pages, "render", lambda _: {"x.md": b"x"})
    code, _, err = call("pages", "--out", "file")
    assert code == 2
    assert "(out=file): give a place that can be written" in err


def test_the_same_in_a_process_of_its_own(elsewhere: Path) -> None:
    done = python("-m", "glasshouse", "-m", "gpu=h100,h1000", cwd=elsewhere)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: unknown gpu \(gpu=h1000\): did you mean h100\?.*\n", done.stderr)


def test_with_json_a_mistake_is_a_document_too(call: Call) -> None:
    code, out, err = call("plan", "--json", "gpu=h1000")
    assert code == 2
    assert json.loads(out) == {"ok": False, "error": err.removeprefix("error: ").rstrip(), "exitCode": 2}


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RemoteError("no answer", field="host", value="h"), 3, "error: no answer (host=h)\n"),
        (CleanupNotProven("left"), 4, "error: left\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (RuntimeError("two\nlines"), 1, "error: unexpected RuntimeError: two lines: "),
        (BrokenPipeError("another pipe"), 1, "error: unexpected BrokenPipeError: "),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, line: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr(plan, "run", fail)
    found, out, err = call("plan")
    assert (found, out) == (code, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise RuntimeError("inside")

    monkeypatch.setattr(plan, "run", fail)
    monkeypatch.setenv("GLASSHOUSE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="inside"):
        cli.main(["plan"])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m glasshouse --cfg job | head -c 1"
    # More than a pipe and a buffer hold: the write itself fails, and nothing is left to flush.
    program = (
        "import sys; from glasshouse import cli; from glasshouse.commands import plan;"
        "plan.run = lambda _: sys.stdout.write('x' * (1 << 20)); sys.exit(cli.main(['plan']))"
    )
    for line in (command, f'{sys.executable} -c "{program}" | head -c 1'):
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=True,
        )
        assert done.stderr == b""


# --- plan --------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.usefixtures("offline")
def test_plan_json_bounds_hours_and_dollars(call: Call) -> None:
    code, out, err = call("plan", "-m", "--json", "gpu=h100,pro6000", "duration=1800")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [cell["overrides"] for cell in document["cells"]] == [
        ["gpu=h100", "duration=1800"],
        ["gpu=pro6000", "duration=1800"],
    ]
    for cell in document["cells"]:
        spec = cell["spec"]
        assert spec["provider"]["kind"] == "runpod"
        hourly = spec["gpu"]["max_usd_per_hour"]["runpod"]
        assert cell["maxUsd"] == pytest.approx(cell["hours"] * hourly)
        # Two arms of half an hour in 40 slots, a burn-in, and what each discards fit, and so does a boot.
        assert cell["scheduledHours"] == pytest.approx(41 * (90 + 5) / 3600)
        assert cell["hours"] > cell["scheduledHours"] + spec["provider"]["boot_deadline_sec"] / 3600
    for total in ("hours", "maxUsd"):
        assert document[total] == pytest.approx(sum(cell[total] for cell in document["cells"]))


@pytest.mark.usefixtures("offline")
def test_plan_draws_schedules_and_says_whether_the_cap_fits(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("plan", "-m", "gpu=a4000", "order=protected-first,abba", "duration=60")
    code, out, _ = call(*words)
    assert code == 0
    assert "cell 0 schedule: PR\n" in out
    blocks = re.search(r"cell 1 schedule: \[R\]((?: (?:RPPR|PRRP)){10})\n", out)
    assert blocks
    assert blocks[1].count("RPPR") == blocks[1].count("PRRP") == 5
    assert "no cap is set" in out
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "0.10")
    assert "cap 0.10 USD: it does not fit" in call(*words)[1]
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "100")
    assert "cap 100.00 USD: it fits" in call(*words)[1]


@pytest.fixture
def edited_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository whose working tree has other prices than its last commit, and a GPU more."""
    repository = tmp_path / "repository"
    shutil.copytree(conf_dir(), repository / "conf")
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "before"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    gpu = repository / "conf" / "gpu"
    text = (gpu / "h100.yaml").read_text(encoding="utf-8")
    (gpu / "h100.yaml").write_text(text.replace("runpod: 3.50", "runpod: 7.00"), encoding="utf-8")
    (gpu / "b200.yaml").write_text(text.replace("name: h100", "name: b200"), encoding="utf-8")
    monkeypatch.setattr(against, "conf_dir", lambda: repository / "conf")
    return repository


@pytest.mark.usefixtures("edited_conf")
def test_plan_against_a_revision_shows_what_resolves_differently(call: Call) -> None:
    code, out, _ = call("plan", "-m", "gpu=h100,a4000", "duration=60", "--against", "HEAD")
    assert code == 0
    assert "### `gpu=a4000 duration=60`: no setting differs" in out
    assert "### `gpu=h100 duration=60`: 1 setting differs" in out
    assert "| `gpu.max_usd_per_hour.runpod` | `3.5` | `7.0` |" in out
    document = json.loads(call("plan", "--json", "gpu=h100", "--against", "HEAD")[1])
    (cell,) = document["cells"]
    assert cell["settings"] == [{"setting": "gpu.max_usd_per_hour.runpod", "before": 3.5, "after": 7.0}]
    assert cell["after"]["maxUsd"] == pytest.approx(2 * cell["before"]["maxUsd"])


@pytest.mark.usefixtures("edited_conf")
def test_plan_against_a_revision_without_the_choice_says_so(call: Call) -> None:
    code, out, _ = call("plan", "gpu=b200", "--against", "HEAD")
    assert code == 0
    assert "There the overrides do not resolve: `unknown gpu (gpu=b200)" in out
    assert "### `gpu=b200`: added" in out


def test_settings_print_as_they_resolve(call: Call) -> None:
    code, out, _ = call("--cfg", "job", "gpu=h100", "--json")
    assert code == 0
    assert json.loads(out)["provider"]["kind"] == "runpod"
    assert "max_usd_per_hour:" in call("--cfg", "job", "gpu=h100")[1]


# --- runs, show, verify, open --------------------------------------------------------------------


def test_sweeps_reach_the_story_whole_and_budgeted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(cells: Any, *, out: Path, as_json: bool = False, skipped: Any = ()) -> int:
        assert not skipped
        seen.append((cells, out, as_json))
        return 1

    monkeypatch.setattr(run, "run_sweep", record)
    assert call("-m", "order=raw-first,protected-first", "repeat=0,1")[0] == 1
    ((cells, out, as_json),) = seen
    assert cells[0][0] == ["order=raw-first", "repeat=0"]
    assert [(spec.order, spec.repeat) for _, spec in cells] == [
        ("raw-first", 0), ("raw-first", 1), ("protected-first", 0), ("protected-first", 1),
    ]  # fmt: skip
    assert (out, as_json) == (Path("runs"), False)
    assert call("run", "--json", "duration=3")[0] == 1
    assert [(overrides, spec.duration) for overrides, spec in seen[1][0]] == [(["duration=3"], 3)]
    assert seen[1][2] is True


def test_other_launchers_run_each_cell(call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launched: list[Any] = []

    def launch(overrides: list[str], job: Any) -> list[int]:
        launched.append((overrides, job.out))
        return [0, 4, 1]

    monkeypatch.setattr(run.config, "launch", launch)
    words = ["repeat=0,1", "hydra/launcher=joblib"]
    assert call("-m", *words)[0] == 4
    assert launched == [(words, elsewhere / "runs")]
    code, _, err = call("-m", "--json", *words)
    assert code == 2
    assert "hydra/launcher=joblib" in err


@pytest.fixture
def some_run(elsewhere: Path) -> Path:
    """A run folder with a record to show, and outputs sealed to this machine's owner key."""
    folder = elsewhere / "runs" / "20260102-030405-abcdef"
    leg = folder / "bundle" / "legs" / "s001-protected"
    leg.mkdir(parents=True)
    record = {
        "run": folder.name,
        "id": "2026-01-02-local-cpu-mlp-60s-raw-first-abcdef",
        "status": "excluded",
        "exclusion": {"codes": ["final-loss-missing"], "observed": "no final loss in s001"},
        "caveats": ["not-a-tee", "short"],
        "figures": {
            "unit": "epochs",
            "overheadPct": 1.25,
            "protected": {"slots": 1, "units": 30, "elapsedSec": 60.5, "perSec": 0.5, "finalLoss": None},
            "raw": {"slots": 1, "units": 31, "elapsedSec": 60.25, "perSec": 0.51, "finalLoss": 0.25},
            "overhead": {"ciLowPct": None, "ciHighPct": None, "n": 1},
            "fixedCostSec": {"sealSec": 0.5},
        },
        "checks": [{"code": "final-loss-missing", "ok": False, "detail": "no final loss in s001"}],
    }
    (folder / "bundle" / "record.json").write_bytes(canonical_json(record))
    raw = folder / "bundle" / "legs" / "s000-raw"
    raw.mkdir()
    curve = {"lossCurve": [[1, 2.0], [2, 1.0], [3, 0.25]], "throughputCurve": [[0, 0], [1, 10], [2, 30]]}
    (raw / "result.json").write_bytes(canonical_json(curve))
    (leg / "reference.json").write_bytes(canonical_json({"run": folder.name, "manifest_hash": "ab" * 32}))
    context = {"run": folder.name, "leg": "s001", "launch": "1", "manifestHash": "ab" * 32}
    public = kem_public_bytes(keys.owner_key())
    (folder / "outputs").mkdir()
    weights = struct.pack("<4f", 1, 2, 3, 4)
    tensors = [
        (TensorSpec("layer.weight", "float32", (2, 2)), weights),
        (TensorSpec("flag", "uint8", (1,)), b"\x07"),
    ]
    with (folder / "outputs" / "s001-1-outputs.sealed").open("wb") as out:
        report = seal_outputs(out, owner_public=public, context=context, files={}, tensors=iter(tensors))
    with (folder / "outputs" / "s001-1-log.sealed").open("wb") as out:
        seal_outputs(
            out, owner_public=public, context=context, files={"logs/trainer.log": b"said\n"}, tensors=()
        )
    event = {"seq": 0, "type": "zeroized", "body": {"outputs": report}}
    (leg / "events.jsonl").write_bytes(canonical_json(event) + b"\n")
    (elsewhere / "runs" / "20260101-000000-aaaaaa").mkdir()
    (elsewhere / "runs" / ".sweeps").mkdir()
    return folder


def test_runs_lists_what_is_there(some_run: Path, call: Call) -> None:
    code, out, _ = call("runs", "--json")
    assert code == 0
    first, second = json.loads(out)["runs"]
    assert (first["run"], first["status"]) == ("20260101-000000-aaaaaa", "unfinished")
    assert second == {
        "path": f"runs/{some_run.name}",
        "run": some_run.name,
        "id": "2026-01-02-local-cpu-mlp-60s-raw-first-abcdef",
        "status": "excluded",
        "overheadPct": 1.25,
        "control": None,
        "exclusion": ["final-loss-missing"],
        "caveats": ["not-a-tee", "short"],
    }
    assert "final-loss-missing" in call("runs")[1]


@pytest.mark.parametrize("name", ["20260102-030405-abcdef", "20260102", "runs/20260102-030405-abcdef"])
def test_show_prints_figures_checks_caveats_and_curves(name: str, some_run: Path, call: Call) -> None:
    code, out, _ = call("show", name)
    assert code == 0
    assert f"run {some_run.name}: excluded" in out
    assert "overhead 1.25 %" in out
    assert "FAILED" in out
    assert "caveat not-a-tee: " in out
    assert re.search(r"s000-raw loss +█▄▁  2 to 0.25", out)
    assert re.search(r"s000-raw throughput +▁█  10 to 20 a second", out)
    assert json.loads(call("show", name, "--json")[1])["record"]["run"] == some_run.name


def rewrite(folder: Path, **figures: Any) -> None:
    """Change figures of a run folder's record."""
    path = folder / "bundle" / "record.json"
    record = json.loads(path.read_bytes())
    record["figures"] |= figures
    path.write_bytes(canonical_json(record))


LOST = {"ciLowPct": None, "ciHighPct": None, "n": 1, "method": "none", "blocks": 1, "droppedBlocks": 7}
AA = {"kind": "aa", "outcome": "inconclusive", "expectedPct": 0.0, "reason": "no interval"}


def summary_of(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    record = json.loads((folder / "bundle" / "record.json").read_bytes())
    Screen().summary([summary_row(record)])
    return capfd.readouterr().err


def test_a_control_is_never_shown_as_a_result(
    some_run: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(some_run, overheadPct=34.49, control=AA)
    said = "control aa (raw against raw), not a result: inconclusive, no interval"
    out = call("show", "20260102")[1]
    assert f"this is a {said}; a difference of 0.00 % was to be seen, 34.49 % was" in out
    assert "raw as protected" in out
    assert "steady-state overhead" not in out
    listed = json.loads(call("runs", "--json")[1])["runs"][1]
    assert (listed["overheadPct"], listed["control"]["outcome"]) == (None, "inconclusive")
    summary = summary_of(some_run, capfd)
    assert f"is a {said}" in summary
    assert "excluded control" in summary
    assert "+34.49%" not in summary


def test_blocks_without_an_interval_state_no_overhead(
    some_run: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(some_run, order="abba", overheadPct=34.49, overhead=LOST)
    said = "1 of 8 blocks left after dropping disturbed and incomplete ones: no figure"
    assert f"no overhead is stated: {said}" in call("show", "20260102")[1]
    summary = summary_of(some_run, capfd)
    assert f"states no overhead: {said}" in summary
    assert "34.49" not in summary + call("show", "20260102")[1] + call("runs")[1]
    rewrite(some_run, control=AA)
    assert "34.49" not in summary_of(some_run, capfd) + call("show", "20260102")[1]


def test_show_tells_checks_that_held_from_checks_with_nothing_to_look_at(some_run: Path, call: Call) -> None:
    path = some_run / "bundle" / "record.json"
    record = json.loads(path.read_bytes())
    record["checks"] += [
        {"code": "runtime-not-zeroized", "ok": True, "detail": "no payload was released: nothing to check"},
        {"code": "cleanup-not-proven", "ok": True, "detail": ""},
    ]
    path.write_bytes(canonical_json(record))
    out = call("show", "20260102")[1]
    assert re.search(r"^nothing checked +runtime-not-zeroized +no payload was released", out, re.MULTILINE)
    assert re.search(r"^ok +cleanup-not-proven +nothing of the run is left", out, re.MULTILINE)


def test_show_asks_which_when_several_runs_begin_so(some_run: Path, call: Call) -> None:
    code, _, err = call("show", "202601")
    assert code == 2
    assert "several runs" in err
    assert "no record" in call("show", "20260101")[1]
    assert some_run.exists()


def test_open_writes_private_safetensors_that_match_the_events(some_run: Path, call: Call) -> None:
    code, out, _ = call("open", "20260102", "--to", "adapters", "--json")
    assert code == 0
    files = {Path(item["path"]).name: item for item in json.loads(out)["files"]}
    assert set(files) == {"s001-1.safetensors", "s001-1-logs_trainer.log"}
    assert files["s001-1.safetensors"]["matchesEvents"]
    path = Path("adapters/s001-1.safetensors")
    assert path.stat().st_mode & 0o077 == 0
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    assert size % 8 == 0
    assert header["layer.weight"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    assert struct.unpack("<4f", body[:16]) == (1, 2, 3, 4)
    start, end = header["flag"]["data_offsets"]
    assert body[start:end] == b"\x07"
    assert Path("adapters/s001-1-logs_trainer.log").read_bytes() == b"said\n"
    assert some_run.exists()


def test_open_says_where_it_cannot_write_and_whose_key_it_lacks(
    some_run: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    Path("file").touch()
    code, _, err = call("open", "20260102", "--to", "file")
    assert code == 2
    assert "(to=file): give a place that can be written" in err
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("another")))
    code, _, err = call("open", "20260102", "--to", "adapters")
    assert code == 1
    assert "sealed for another owner's key than this machine's" in err
    assert "GLASSHOUSE_HOME of then" in err
    assert not Path("adapters").exists()
    assert some_run.exists()


def test_open_refuses_outputs_that_the_events_do_not_name(some_run: Path, call: Call) -> None:
    events = some_run / "bundle" / "legs" / "s001-protected" / "events.jsonl"
    body = {"outputs": {"plaintextSha256": "00" * 32}}
    events.write_bytes(canonical_json({"seq": 0, "type": "zeroized", "body": body}) + b"\n")
    code, _, err = call("open", "20260102")
    assert code == 1
    assert "manifest-hash-mismatch" in err


def test_verify_reports_each_check_and_fails_on_what_is_no_bundle(some_run: Path, call: Call) -> None:
    # This folder has a record and no signature: its checks say so, and the exit code does.
    code, out, err = call("verify", str(some_run), "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    (found,) = document["runs"]
    assert document["ok"] is False
    assert set(found) == {"path", "ok", "status", "overheadPct", "signer", "checks"}
    assert any(not check["ok"] for check in found["checks"])
    code, out, _ = call("verify", str(some_run))
    assert code == 1
    assert "NOT VERIFIED" in out


# --- publish, verify what is published, unpublish ------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkout of its own whose conf/trust lists the signers of one good run; returns it and the run."""
    factory = Factory(tmp_path / "factory")
    name, files = factory.parts(make_bundle_spec())
    files["inclusion.json"] = factory.inclusion(files)
    bundle = tmp_path / "runs" / name / "bundle"
    bundle.parent.mkdir(parents=True)
    enter(factory, bundle, name, files)
    root = tmp_path / "checkout"
    (root / "conf" / "trust").mkdir(parents=True)
    entries = [{**entry.as_json(), "local": False} for entry in factory.keyring.entries]
    (root / "conf" / "trust" / "keyring.json").write_bytes(canonical_json({"keys": entries}))
    for module in (publish, unpublish, keys_command):
        monkeypatch.setattr(module, "conf_dir", lambda: root / "conf")
    for module in (publish, unpublish):
        monkeypatch.setattr(module, "Ledger", lambda: factory.ledger)
        monkeypatch.setattr(module, "publisher_key", lambda: factory.publisher)
    return root, bundle.parent


def test_publishing_verifies_and_a_published_row_verifies_again(
    repository: tuple[Path, Path], call: Call
) -> None:
    root, folder = repository
    ring = str(root / "conf" / "trust" / "keyring.json")
    code, out, err = call("publish", str(folder), "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    artifact = root / "site" / "research" / "artifacts" / f"{row}.json"
    assert artifact.is_file()
    assert json.loads(call("publish", str(folder), "--json")[1])["written"] == []
    code, out, _ = call("verify", str(artifact), str(folder), "--keys", ring, "--json")
    assert code == 0
    assert [(item["ok"], item["status"]) for item in json.loads(out)["runs"]] == [(True, "verified")] * 2
    # By another keyring the same row has no known signer.
    assert call("verify", str(artifact))[0] == 1
    with served(root / "site") as address:
        url = f"{address}/research/artifacts/{row}.json"
        code, out, _ = call("verify", url, "--keys", ring, "--json")
        assert code == 0, out
        (item,) = json.loads(out)["runs"]
        assert (item["path"], item["ok"]) == (url, True)
        record = root / "site" / "research" / "bundles" / row / "record.json"
        record.write_bytes(record.read_bytes().replace(b"verified", b"verifiee"))
        code, out, _ = call("verify", url, "--keys", ring)
        assert code == 1
        assert "digest-mismatch" in out
        assert "NOT VERIFIED" in out
        code, _, err = call("verify", f"{address}/research/artifacts/none.json")
        assert code == 3
        assert "the site answered 404" in err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/rows/x/", "not a row of a site"),
        ("https://user:secret@example.org/research/artifacts/x.json", "not a row of a site"),
        ("http://example.org/research/artifacts/x.json", "use https"),
    ],
)
def test_urls_that_are_no_rows_are_refused_before_anything_is_fetched(
    url: str, said: str, call: Call
) -> None:
    code, _, err = call("verify", url)
    assert code == 2
    assert said in err


def test_a_signer_that_nobody_committed_is_not_published(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    (root / "conf" / "trust" / "keyring.json").write_bytes(b'{"keys":[]}')
    code, _, err = call("publish", str(folder))
    assert code == 1
    assert "signer-unknown" in err
    assert "glasshouse keys --trust LABEL" in err
    code, _, err = call("publish", "--local", str(folder))
    assert code == 1
    assert err.startswith(f"error: {folder}: ")
    assert "publish it where it was made" in err
    assert not (root / "site").exists()
    assert call("keys", "--trust", "a lab")[0] == 0
    ring = keys.parse_keyring((root / "conf" / "trust" / "keyring.json").read_bytes())
    assert sorted(entry.label for entry in ring.entries) == [
        "a lab, broker",
        "a lab, operator",
        "a lab, publisher",
    ]
    assert not any(entry.local for entry in ring.entries)
    before = (root / "conf" / "trust" / "keyring.json").read_bytes()
    assert call("keys", "--trust", "another name")[0] == 0
    assert (root / "conf" / "trust" / "keyring.json").read_bytes() == before


def test_unpublish_keeps_the_row_and_says_why(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    (row,) = json.loads(call("publish", str(folder), "--json")[1])["rows"]
    assert call("unpublish", row)[0] == 2  # no reason
    code, out, _ = call("unpublish", row, "--reason", "the clock was wrong")
    assert code == 0
    assert row in out
    kept = json.loads((root / "site" / "research" / "artifacts" / f"{row}.json").read_bytes())
    assert kept["retracted"]["reason"] == "the clock was wrong"
    assert "retracted already" in call("unpublish", row, "--reason", "again")[1]
    code, _, err = call("unpublish", "no-such-row", "--reason", "x")
    assert code == 2
    assert "site/research/artifacts" in err
    # Whoever publishes or verifies it again is told.
    out = call("publish", str(folder))[1]
    assert f"published {row} as RETRACTED, it counts for nothing: the clock was wrong" in out
    assert json.loads(call("publish", str(folder), "--json")[1])["retracted"] == {row: "the clock was wrong"}
    artifact = root / "site" / "research" / "artifacts" / f"{row}.json"
    code, out, _ = call("verify", str(artifact), "--keys", str(root / "conf" / "trust" / "keyring.json"))
    assert code == 0
    assert "RETRACTED: its evidence verifies, and the row was retracted on " in out
    assert "the clock was wrong" in out


@pytest.mark.parametrize("local", [[], ["--local"]])
def test_publishing_names_the_runs_it_withholds(
    local: list[str], repository: tuple[Path, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = repository
    publish.Ledger().register_plan("20260301-000000-zzzzzz", lambda serial, now: b"envelope")
    ring = keys.parse_keyring((root / "conf" / "trust" / "keyring.json").read_bytes())
    monkeypatch.setattr(publish, "load_keyring", lambda: ring)
    code, out, _ = call("publish", str(folder), *local)
    assert code == 0
    assert "withheld: 1 registered runs are not published\n  20260301-000000-zzzzzz" in out


def test_the_history_is_imported_again(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    shutil.copytree(conf_dir() / "history", root / "conf" / "history")
    code, out, _ = call("publish", "--history", "--json")
    assert code == 0
    document = json.loads(out)
    assert len(document["rows"]) == len(document["written"]) == 26
    assert all((root / path).is_file() for path in document["written"])
    assert "nothing to write" in call("publish", "--history")[1]
    assert call("publish", "--history", str(folder))[0] == 2
    assert call("publish", "--history", "--local")[0] == 2


def test_the_tamper_report_is_published_with_its_day_and_version(
    repository: tuple[Path, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = repository
    (root / "site" / "research").mkdir(parents=True)
    monkeypatch.setattr(tamper, "conf_dir", lambda: root / "conf")
    assert call("tamper", "--publish", "--json")[0] == 0
    failures: list[str] = []
    report = read_tamper(root / "site" / "research" / "tamper-report.json", failures)
    assert failures == []
    assert report is not None
    assert report["version"] == glasshouse.__version__


# --- the others ----------------------------------------------------------------------------------


def test_ledger_check_passes_growth_and_catches_a_removed_leaf(call: Call, elsewhere: Path) -> None:
    log = ledger.Ledger()
    log.register_plan("20260101-000000-aaaaaa", lambda serial, now: b"envelope")
    Path("old").write_text(call("ledger", "checkpoint")[1])
    log.register_plan("20260102-000000-bbbbbb", lambda serial, now: b"envelope")
    Path("new").write_text(call("ledger", "checkpoint")[1])
    code, out, _ = call("ledger", "check", "old", "new", "--json")
    assert code == 0
    assert (json.loads(out)["oldSize"], json.loads(out)["newSize"]) == (1, 2)
    assert call("ledger", "check", "new", "old")[0] == 1
    listed = json.loads(call("ledger", "list", "--json")[1])
    assert [leaf["run"] for leaf in listed["leaves"]] == ["20260101-000000-aaaaaa", "20260102-000000-bbbbbb"]
    assert listed["openPlans"] == [0, 1]
    assert "open: no row yet" in call("ledger")[1]

    lines = (paths.state_dir() / "ledger" / "leaves.jsonl").read_bytes().splitlines()
    Path("shorter").write_bytes(lines[0] + b"\n")
    code, _, err = call("ledger", "check", "old", "new", "--leaves", "shorter")
    assert code == 1
    assert "ledger-shrunk" in err
    Path("altered").write_bytes(lines[0] + b"\n" + lines[1].replace(b"bbbbbb", b"cccccc") + b"\n")
    code, _, err = call("ledger", "check", "old", "new", "--leaves", "altered")
    assert code == 1
    assert "ledger-rewritten" in err
    # Another machine's keyring does not list this log's signer.
    Path("ring.json").write_text('{"keys":[]}')
    code, _, err = call("ledger", "check", "old", "new", "--keys", "ring.json")
    assert code == 1
    assert "signer-unknown" in err
    assert elsewhere.exists()


def test_keys_are_made_once_and_list_only_public_halves(call: Call) -> None:
    assert "no keys yet" in call("keys")[1] or (conf_dir() / "trust" / "keyring.json").exists()
    first = call("keys", "--make", "--json")[1]
    assert first == call("keys", "--make", "--json")[1]
    own = [entry for entry in json.loads(first)["keys"] if entry["local"]]
    assert {entry["role"] for entry in own} == {"operator", "broker", "publisher"}
    ring = keys.parse_keyring(first.encode())  # what is printed is a keyring file
    assert {entry.keyid for entry in ring.entries} >= {entry["keyid"] for entry in own}
    secrets = [path.read_bytes() for path in paths.keys_dir().glob("*.pem")]
    assert secrets
    assert all(secret.split(b"\n")[1] not in first.encode() for secret in secrets)


def test_reap_with_nothing_left_says_so(call: Call) -> None:
    assert call("reap")[0:2] == (0, "nothing to reap: every allocation in the journal is proven gone\n")
    assert json.loads(call("reap", "--dry-run", "--json")[1]) == {"ok": True, "allocations": []}


def test_doctor_names_a_remedy_and_never_a_secret(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "12.50")
    code, out, err = call("doctor", "gpu=a4000", "--json")
    assert (code, err) == (0, "")
    assert CANARY not in out
    document = json.loads(out)
    found = {item["what"]: item for item in document["findings"]}
    assert found["runpod key"]["state"] == "ok"
    assert found["vastai key"]["state"] == "limited"
    assert found["cost cap"]["detail"] == "12.50 USD"
    assert all(item["remedy"] for item in document["findings"] if item["state"] != "ok")
    assert {"python", "landlock", "memfd_secret", "huge pages", "swap", "state store"} <= set(found)
    assert CANARY not in call("doctor", "gpu=a4000")[1]


def test_doctor_fails_where_the_run_could_not_start(call: Call, elsewhere: Path) -> None:
    code, out, _ = call("doctor", "gpu=a4000")
    assert code == 1
    assert "export RUNPOD_API_KEY" in out
    (elsewhere / "key").touch(mode=0o600)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    host = ["provider=ssh", "provider.host=127.0.0.1", "provider.user=me", "provider.key=key"]
    code, out, _ = call("doctor", *host, f"provider.port={port}")
    assert code == 1
    assert f"sshd at 127.0.0.1:{port}" in out
    assert "check host, port and firewall" in out


def test_tamper_signs_its_report_and_fails_on_a_deviation(
    call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    report = {
        "ok": True,
        "unwrapCalls": 0,
        "scenarios": [
            {"code": "x/control", "released": True, "expected": True, "reasonCodes": [], "ok": True},
            {"code": "x", "released": False, "expected": False, "reasonCodes": ["x"], "ok": True},
        ],
    }
    monkeypatch.setattr(tamper, "run_suite", lambda: report)
    code, out, _ = call("tamper", "--json", "--out", "result.json")
    assert (code, json.loads(out)) == (0, report)
    opened = open_statement(
        (elsewhere / "result.json").read_bytes(),
        keys.load_keyring(),
        role="operator",
        predicate_type="https://in-toto.io/attestation/test-result/v0.1",
    )
    assert opened.predicate["result"] == "PASSED"
    assert opened.predicate["passedTests"] == ["x/control", "x"]
    assert "1 attacks, 1 controls, as expected" in call("tamper")[1]
    report["ok"] = report["scenarios"][1]["ok"] = False  # type: ignore[index]
    code, out, _ = call("tamper", "--out", "result.json")
    assert code == 1
    assert "DEVIATES" in out


def test_broker_serves_until_it_is_told_to_stop(elsewhere: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "glasshouse", "broker", "--port", "0", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
    )
    assert process.stdout
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        said = json.loads("".join(lines))
        with urllib.request.urlopen(
            f"http://127.0.0.1:{said['port']}/.well-known/jwks.json", timeout=10
        ) as answer:
            assert json.load(answer)["keys"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "")
    kek = paths.keys_dir() / "broker.kek"
    assert kek.stat().st_mode & 0o777 == 0o600


def test_pages_writes_what_the_site_is_made_of(call: Call, elsewhere: Path) -> None:
    code, out, _ = call("pages", "--out", "pages", "--committed", "--json")
    assert code == 0
    written = {
        str(path.relative_to(elsewhere / "pages"))
        for path in (elsewhere / "pages").rglob("*")
        if path.is_file()
    }
    assert written == set(json.loads(out)["files"])
    assert any(name.startswith("rows/") for name in written)


def test_tables_align_and_curves_are_drawn_to_scale() -> None:
    assert table(["name", "n"], [["a", 1], ["bb", 20]]).splitlines() == [
        "name   n",
        "----  --",
        "a      1",
        "bb    20",
    ]
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert spark([5, 5]) == "▁▁"
    assert len(spark(list(range(1000)), width=60)) <= 60
    assert spark([]) == ""
