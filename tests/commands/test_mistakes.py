"""Mistakes on the command line: one line that names field, value and remedy, exit code 2, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.commands import pages
from tests.commands.kit import ROOT, Call, python

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
    (["plan", "provider=runpod"], "gpu.max_usd_per_hour.runpod=nothing", "such as gpu=h100"),
    (["gpu=a4000", "duration=60"], "environment=GLASSHOUSE_MAX_USD", "spend.max_usd="),
    (["gpu=a4000", "duration=60", "spend.max_usd=0.01"], "cap=0.01", "more than the cap"),
    (["gpu=a4000", "duration=60", "spend.max_usd=5"], "RUNPOD_API_KEY", ""),
    (["-m", "gpu=a4000,h100", "duration=60", "spend.max_usd=1"], "cap=1.00", "more than the cap"),
    (["show", "nothing"], "run=nothing", "glasshouse runs"),
    (["show", "x", "--out", "no/runs"], "out=no/runs", "a folder of run folders"),
    (["runs", "--out", "no/runs"], "out=no/runs", "a folder of run folders"),
    (["hydra.run.dir=x"], "hydra.run.dir=x", "--out DIR"),
    (["-m", "hydra.output_subdir=x", "repeat=0,1"], "hydra.output_subdir=x", "--out DIR"),
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


WITHOUT_DRIVER = """
import sys
from glasshouse import cli
sys.modules["psycopg"] = None
sys.exit(cli.main(["broker", "--store", "postgresql+psycopg://me@127.0.0.1:1/x"]))
"""


def test_a_driver_that_is_not_installed_is_named_with_its_extra(elsewhere: Path) -> None:
    done = python("-c", WITHOUT_DRIVER)
    assert (done.returncode, done.stdout) == (2, "")
    assert "driver is not installed (store=postgresql+psycopg://me@127.0.0.1:1/x)" in done.stderr
    assert f"pip install -e '{ROOT}[postgres]'" in done.stderr


@pytest.mark.parametrize("words", [["keys"], pytest.param(["duration=2"], marks=pytest.mark.train)])
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


@pytest.mark.train
@pytest.mark.parametrize("port", ["http://127.0.0.1:80", "0", "65536", "²"])
def test_a_broker_that_is_no_port_is_refused_before_anything_exists(
    port: str, call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("GLASSHOUSE_BROKER", port)
    code, out, err = call("duration=2")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"(GLASSHOUSE_BROKER={port})" in err
    assert list(elsewhere.iterdir()) == []


def test_pages_go_nowhere_they_cannot_be_written(
    call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "file").touch()
    monkeypatch.setattr(pages, "read_publication", lambda *_, **__: None)
    monkeypatch.setattr(pages, "render", lambda _: {"x.md": b"x"})
    code, _, err = call("pages", "--out", "file")
    assert code == 2
    assert "(out=file): give a place that can be written" in err
