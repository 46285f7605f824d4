"""What is missing is named in one line, and the line to copy installs it from where the program came."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from glasshouse import cli, extras
from glasshouse.errors import UsageError
from glasshouse.paths import DISTRIBUTION, Workspace

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_name_is_the_projects() -> None:
    assert PROJECT["name"] == DISTRIBUTION


@pytest.mark.parametrize("extra", sorted(extras.EXTRAS))
def test_an_extra_is_looked_for_by_what_it_installs(extra: str) -> None:
    provided = metadata.packages_distributions()
    found = {provided[module.partition(".")[0]][0].lower() for module in extras.EXTRAS[extra]}
    assert found == {Requirement(line).name for line in PROJECT["optional-dependencies"][extra]}
    assert extras.missing(extra) == []


def test_commands_name_extras_that_there_are() -> None:
    assert set(cli.NEEDS) <= set(cli.COMMANDS)
    assert set(cli.NEEDS.values()) <= set(extras.EXTRAS)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("sqlalchemy", "run"),
        ("jinja2.ext", "site"),
        ("cryptography.hazmat.primitives.asymmetric.mlkem", "run"),
        ("psycopg", "postgres"),
    ],
)
def test_a_failed_import_is_said_as_the_extra_it_lacks(module: str, extra: str) -> None:
    said = extras.lacking(ModuleNotFoundError(name=module))
    assert said is not None
    assert f"(extra={extra}): install it with pip install" in said.line()


@pytest.mark.parametrize("name", ["glasshouse.nothing", "cryptography.nothing", "mkdocsx", None])
def test_another_failed_import_is_none_of_theirs(name: str | None) -> None:
    assert extras.lacking(ModuleNotFoundError(name=name)) is None


WHEEL = "file:///tmp/a%20folder/glasshouse_train-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({}, "'glasshouse-train[site]'"),
        ({"url": WHEEL, "archive_info": {}}, f"'glasshouse-train[site] @ {WHEEL}'"),
        ({"url": "file:///a/tree", "dir_info": {}}, "'glasshouse-train[site] @ file:///a/tree'"),
        (
            {"url": "https://host.example/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "'glasshouse-train[site] @ git+https://host.example/x.git@abc'",
        ),
        ({"url": 5}, "'glasshouse-train[site]'"),
    ],
)
def test_the_line_to_copy_follows_what_pip_noted(
    origin: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = Workspace(root=tmp_path, conf=tmp_path, work=tmp_path, source=False)
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: installed)
    monkeypatch.setattr(extras, "_origin", lambda: origin)
    assert extras.install_line("site") == f"pip install {line}"


def test_in_a_source_tree_the_line_installs_that_tree() -> None:
    assert extras.install_line("train") == f"pip install -e '{ROOT}[train]'"


def test_what_is_missing_is_joined_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_there", lambda module: module in ("numpy", "fabric", "rich"))
    with pytest.raises(UsageError) as caught:
        extras.require("run", "a run")
    said = caught.value.line()
    assert said.startswith(
        "a run needs Paramiko, AsyncSSH, PyNaCl, SQLAlchemy and cryptography 50 (extra=run)"
    )
    assert "install them with" in said
    extras.require("run", "a run", only=("numpy", "rich"))
