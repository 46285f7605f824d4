"""What a project needs, fetched once for each machine; what cannot be kept here is one line."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.errors import UsageError
from glasshouse.lifecycle.supply import Supply
from glasshouse.runtime.wheel import WheelError
from glasshouse.workloads.dependencies import Dependencies
from glasshouse.workloads.installed import Installed
from glasshouse.workloads.pip import Target
from tests.install.kit import make_wheel

MACHINE = Installed(Target("3.12"), {"beta": "1.0"}, {}, frozenset({"beta"}))


@pytest.fixture
def needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dependencies:
    folder = tmp_path / "wheels"
    make_wheel(folder, "alpha", "1.0", ["beta"], more={"inner/__init__.py": ""})
    make_wheel(folder, "beta", "1.0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = (f"--find-links {folder.as_uri()}", "--no-index")
    return Dependencies(("alpha", "beta"), source="requirements.txt", places=places)


def test_a_machine_is_sent_what_it_lacks_and_nothing_is_fetched_twice(
    needs: Dependencies, tmp_path: Path
) -> None:
    said = list[str]()
    with Supply(needs) as supply:
        first = supply.fetch(MACHINE, said.append)
        assert [path.name for path in first.wheels] == ["alpha-1.0-py3-none-any.whl"]
        assert first.modules == {"alpha", "inner"}
        assert first.line.startswith(
            "needs: the machine has beta; sealed with the project: alpha 1.0 (1 wheel, "
        )
        count = len(said)
        assert supply.fetch(replace(MACHINE, source="asked again"), said.append) is first
        assert len(said) == count
        bare = supply.fetch(replace(MACHINE, packages={}), said.append)
        assert [path.name.partition("-")[0] for path in bare.wheels] == ["alpha", "beta"]
        assert all(path.exists() for path in first.wheels)
    assert not list(tmp_path.glob("glasshouse-*"))


def test_what_the_machine_alone_names_is_said_apart(needs: Dependencies, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "gamma", "1.0")
    machine = replace(MACHINE, extras={"beta": ("gamma; extra == 'more'",)})
    with Supply(replace(needs, requirements=("alpha", "beta[more]"))) as supply:
        line = supply.fetch(machine, print).line
        assert line.endswith("; of these the machine's own list names gamma, as needed for an extra")
        assert "gamma" not in supply.fetch(replace(machine, extras={}), print).line
    with Supply(needs) as supply:
        assert [path.name.partition("-")[0] for path in supply.fetch(machine, print).wheels] == ["alpha"]


def test_what_cannot_be_kept_or_opened_is_one_line(
    needs: Dependencies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels", "alpha", "2.0", more={"a\\b.py": ""})
    with Supply(needs) as supply, pytest.raises(WheelError) as bad:
        supply.fetch(MACHINE, print)
    assert (bad.value.value, bad.value.exit_code) == ("alpha-2.0-py3-none-any.whl", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with Supply(needs) as supply, pytest.raises(UsageError, match="cannot keep wheels here: No such file"):
        supply.fetch(MACHINE, print)
