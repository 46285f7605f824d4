"""A function that is called as soon as a module has been loaded, and leaves no trace of how."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from glasshouse.runtime.on_import import when_imported


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a package, not loaded yet."""
    package = tmp_path / "watched_package"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\nseen = inner.called\n")
    (package / "inner.py").write_text("called = False\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    finders = [*sys.meta_path]
    yield "watched_package.inner"
    sys.meta_path[:] = finders
    for module in ("watched_package", "watched_package.inner"):
        sys.modules.pop(module, None)


def test_it_is_called_at_once_where_the_module_is_loaded_and_before_anybody_else_sees_it(name: str) -> None:
    calls: list[ModuleType] = []

    def call(module: ModuleType) -> None:
        calls.append(module)
        module.called = True  # type: ignore[attr-defined]

    finders = [*sys.meta_path]
    when_imported(name, call)
    assert name not in sys.modules  # not loaded by us
    assert importlib.import_module("watched_package").seen is True
    assert [module.__name__ for module in calls] == [name]
    assert sys.meta_path == finders
    assert "exec_module" not in vars(calls[0].__loader__)
    assert "exec_module" not in vars(calls[0].__spec__.loader)  # type: ignore[union-attr]
    when_imported(name, calls.append)
    assert len(calls) == 2  # loaded already
    importlib.reload(calls[0])
    assert len(calls) == 2
    assert sys.meta_path == finders


def test_one_that_failed_to_load_is_watched_for_when_it_does(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "watched_package" / "inner.py"
    inner.write_text("raise RuntimeError('not yet')\n")
    calls: list[ModuleType] = []
    when_imported(name, calls.append)
    assert importlib.util.find_spec("no_such_module_of_anybody") is None
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module("watched_package")
    assert calls == []
    inner.write_text("called = 'a longer text than before'\n")
    importlib.invalidate_caches()
    importlib.import_module("watched_package")
    assert len(calls) == 1


def test_looking_for_a_module_does_not_count_as_loading_it(name: str) -> None:
    calls: list[ModuleType] = []
    when_imported(name, calls.append)
    spec = importlib.util.find_spec("watched_package")
    assert spec is not None
    assert calls == []
    assert importlib.util.find_spec("watched_package.nothing_there") is None  # loads the package
    assert len(calls) == 1
