"""`glasshouse --version`: which program this is, and what it writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import glasshouse
from glasshouse import origin
from glasshouse.judgement.rules import METHOD
from glasshouse.paths import Workspace
from glasshouse.sealing.layout import FORMATS
from tests.commands.kit import Call


def test_it_says_version_commit_formats_and_method(call: Call) -> None:
    code, out, err = call("--version", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["version"], said["method"]) == (glasshouse.__version__, METHOD)
    assert said["formats"]["container"] == ", ".join(FORMATS.values())
    assert set(said["formats"]) == {"container", "evidence", "plan", "bundle", "artifact"}
    lines = call("--version")[1].splitlines()
    assert lines[0] == f"glasshouse {glasshouse.__version__}"
    assert {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines[1:]} == {
        "commit": said["commit"],
        **{name: str(value) for name, value in said["formats"].items()},
        "method": str(METHOD),
    }


def test_other_words_are_refused(call: Call) -> None:
    code, out, err = call("--version", "gpu=h100")
    assert (code, out) == (2, "")
    assert "(argument=gpu=h100)" in err


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_of_a_source_tree_is_gits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin.of_tree(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    assert origin.of_tree(tmp_path) == "unknown"  # no commit yet
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "file").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    name = git(tmp_path, "rev-parse", "HEAD")
    assert origin.of_tree(tmp_path) == name
    (tmp_path / "runs").touch()
    assert origin.of_tree(tmp_path) == name
    (tmp_path / "conf" / "file").write_text("2")
    assert origin.of_tree(tmp_path) == f"{name} with changes"
    (tmp_path / "conf" / "file").write_text("1")
    (tmp_path / "conf" / "another").touch()
    assert origin.of_tree(tmp_path) == f"{name} with changes"
    (tmp_path / "conf" / "another").unlink()
    (tmp_path / "conf" / "__pycache__").mkdir()
    (tmp_path / "conf" / "__pycache__" / "x.pyc").touch()
    (tmp_path / ".git" / "info" / "exclude").write_text("build/\n__pycache__/\n*.pem\n")
    assert origin.of_tree(tmp_path) == name
    for path in ("conf/build/more", "conf/x.pem", "setup.py", "mkdocs.yml", "pyproject.toml", "MANIFEST.in"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
        assert origin.of_tree(tmp_path) == f"{name} with changes", path
        (tmp_path / path).unlink()
    # What git hooks leave in the environment names another tree.
    (tmp_path / "conf" / "file").write_text("2")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "other")
    with monkeypatch.context() as patch:
        patch.setenv("GIT_DIR", str(other / ".git"))
        patch.setenv("GIT_WORK_TREE", str(other))
        assert origin.of_tree(tmp_path) == f"{name} with changes"
    # A folder inside somebody's repository says nothing about that repository.
    inside = tmp_path / "inside"
    inside.mkdir()
    assert origin.of_tree(inside) == "unknown"


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ("0" * 40 + "\n", "0" * 40),
        ("a" * 40 + " with changes\n", "a" * 40 + " with changes"),
        ("main\n", "unknown"),
        ("é", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_commit_of_a_wheel_is_what_was_noted_in_it(
    noted: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Workspace(root=tmp_path, conf=tmp_path / "conf", work=tmp_path, source=False)
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: installed)
    monkeypatch.setattr(origin, "PACKAGE_DATA", tmp_path)
    if noted is not None:
        (tmp_path / origin.COMMIT_FILE).write_text(noted, encoding="utf-8")
    assert origin.commit() == said
