"""The command line itself: what it loads, what it prints where, how errors become exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse import cli
from glasshouse.commands import plan
from glasshouse.commands.terminal import spark, table
from glasshouse.errors import CleanupNotProven, RemoteError
from tests.commands.kit import ROOT, Call, python


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


@pytest.mark.parametrize("kind", [SystemExit, RuntimeError, RemoteError])
def test_what_ends_a_command_is_one_line_that_no_terminal_obeys(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def end(_args: object) -> int:
        raise kind("\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\n\u202everified")

    monkeypatch.setattr("glasshouse.commands.runs.run", end)
    code, out, err = call("runs")
    assert (code, out) == (3 if kind is RemoteError else 1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not [char for char in err[:-1] if not char.isprintable()]


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
    said = python("-m", "glasshouse", "--version").stdout.splitlines()[0]
    assert said == f"glasshouse {importlib.import_module('glasshouse').__version__}"


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
        (SystemExit("a word\nand another"), 1, "error: a word and another\n"),
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


def test_tables_align_and_curves_are_drawn_to_scale() -> None:
    assert table(["name", "n"], [["a", 1], ["bb", 20]]).splitlines() == [
        "name   n",
        "----  --",
        "a      1",
        "bb    20",
    ]
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert spark([5, 5]) == "▁▁"
    assert spark([5, 10], scale=[0, 10, 20]) == "▃▅"
    assert len(spark(list(range(1000)), width=60)) <= 60
    assert spark([]) == ""


def test_ctrl_c_while_the_program_is_loaded_is_one_line() -> None:
    pressed = """
import os, runpy, signal, sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "glasshouse.errors":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Pressed())
sys.argv = ["glasshouse", "--help"]
runpy.run_module("glasshouse", run_name="__main__", alter_sys=True)
"""
    done = python("-c", pressed)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
