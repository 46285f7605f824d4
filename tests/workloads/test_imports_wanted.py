"""What a project imports that neither Python nor the project has: read, never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from glasshouse.runtime.command import Command
from glasshouse.workloads import imports
from glasshouse.workloads.folder import select
from glasshouse.workloads.imports import DISTRIBUTIONS, distribution, wanted

MAIN = Command("file", "train.py")


def wants(folder: Path, files: Mapping[str, str | bytes], command: Command = MAIN) -> list[str]:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return list(wanted(select(folder).files, command))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch, os.path, yaml as y", ["torch", "yaml"]),
        ("from PIL import Image\nfrom sklearn.svm import SVC", ["PIL", "sklearn"]),
        ("import torch.nn.functional as F", ["torch"]),
        ("def late():\n    import wandb", ["wandb"]),
        ("class A:\n    import a", ["a"]),
        ("from __future__ import annotations\nimport tomllib, sys", []),
        ("try:\n    import apex\nexcept ImportError:\n    apex = None", []),
        ("try:\n    import apex\nexcept (ValueError, ModuleNotFoundError):\n    import other", ["other"]),
        ("try:\n    import apex\nexcept:\n    pass", []),
        ("try:\n    import apex\nexcept ImportError as e:\n    raise SystemExit from e", ["apex"]),
        ("try:\n    import apex\nexcept KeyError:\n    pass", ["apex"]),
        ("try:\n    pass\nfinally:\n    import apex", ["apex"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import b", ["b"]),
        ("import typing as t\nif t.TYPE_CHECKING:\n    import a", []),
        ("if not TYPE_CHECKING:\n    import a", ["a"]),
        ("with contextlib.suppress(ImportError):\n    import a", []),
        ("with suppress(KeyError), open(x):\n    import a", ["a"]),
        ("if True:\n    import a", ["a"]),
        ("import importlib\nimportlib.import_module('a.b')\n__import__('c')", ["a", "c"]),
        ("import importlib\nimportlib.import_module(name)\nimportlib.import_module('.x', 'p')", []),
        ("x = '\\d'\nimport a", ["a"]),
        ("def broken(", []),
        (b"\0", []),
        ("# -*- coding: latin-1 -*-\nx = '\xe9'\nimport a".encode("latin-1"), ["a"]),
        ("(" * 5000, []),
    ],
)
def test_one_file(tmp_path: Path, source: str | bytes, found: list[str]) -> None:
    assert wants(tmp_path, {"train.py": source}) == found


def test_code_on_the_command_line_is_read_too(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/train.py": "import yaml\nfrom . import *",
        "other.py": "import wandb",
    }
    command = Command("code", "import pkg.train, torch; pkg.train.main()")
    assert wants(tmp_path, files, command) == ["torch", "yaml"]
    assert wants(tmp_path, files, Command("code", "def broken(")) == []


def test_nothing_is_run(tmp_path: Path) -> None:
    source = f"import a\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
    assert wants(tmp_path, {"train.py": source, "sitecustomize.py": source}) == ["a"]
    assert not (tmp_path / "ran").exists()


def test_what_is_read_is_what_the_command_leads_to(tmp_path: Path) -> None:
    files = {
        "train.py": "import helper\nfrom pkg.sub import leaf, value\nimport lonely_folder.thing",
        "helper.py": "import a\nimport train",
        "pkg/__init__.py": "from . import side\nfrom .. import beyond",
        "pkg/side.py": "from .sub.other import x",
        "pkg/sub/__init__.py": "import b",
        "pkg/sub/leaf.py": "from ..deep import *\nfrom ...too.far import y",
        "pkg/sub/other.py": "import c",
        "pkg/deep.py": "import d",
        "pkg/unread.py": "import never",
        "lonely_folder/thing.py": "import e",
        "tests/test_x.py": "import pytest",
    }
    assert wants(tmp_path, files) == ["a", "b", "c", "d", "e"]


def test_a_file_finds_what_lies_beside_it_first(tmp_path: Path) -> None:
    files = {
        "scripts/run.py": "import util, lib, top",
        "scripts/util.py": "import a",
        "src/lib/__init__.py": "import b",
    }
    files |= {"util.py": "import never", "top.py": "import c"}
    assert wants(tmp_path, files, Command("file", "scripts/run.py")) == ["a", "b", "c"]
    assert wants(tmp_path, {"scripts/__init__.py": ""}, Command("module", "scripts.run")) == [
        "b",
        "c",
        "never",
    ]


def test_a_module_begins_where_python_does(tmp_path: Path) -> None:
    files = {"pkg/__init__.py": "import a", "pkg/__main__.py": "import b", "pkg/other.py": "import never"}
    assert wants(tmp_path, files, Command("module", "pkg")) == ["a", "b"]
    assert wants(tmp_path, {}, Command("module", "pkg.other")) == ["a", "never"]
    assert wants(tmp_path, {}, Command("module", "trl.scripts.sft")) == ["trl"]
    assert wants(tmp_path, {}, Command("entry", "axolotl")) == []


def test_a_file_of_the_project_hides_the_standard_librarys(tmp_path: Path) -> None:
    assert wants(tmp_path, {"train.py": "import queue", "queue.py": "import a"}) == ["a"]


def test_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {f"m{number}.py": f"import x{number}, m{number + 1}" for number in range(5)}
    files = {"train.py": "import m0", **chain}
    assert wants(tmp_path, files) == [*(["m5"]), *(f"x{number}" for number in range(5))]
    monkeypatch.setattr(imports, "MAX_FILES", 3)
    assert wants(tmp_path, files) == ["x0", "x1"]
    monkeypatch.setattr(imports, "MAX_FILES", 100)
    monkeypatch.setattr(imports, "MAX_TOTAL_BYTES", 30)
    assert wants(tmp_path, files) == ["x0"]
    monkeypatch.setattr(imports, "MAX_FILE_BYTES", 5)
    assert wants(tmp_path, files) == []


def test_distributions_have_their_own_names() -> None:
    assert [distribution(name) for name in ("yaml", "cv2", "torch", "google")] == [
        *("PyYAML", "opencv-python", "torch", None),
    ]
    assert list(DISTRIBUTIONS) == sorted(DISTRIBUTIONS)
    assert all(module.isidentifier() and module != name for module, name in DISTRIBUTIONS.items())
