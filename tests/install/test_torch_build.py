"""Which build of torch a machine gets, and where it is looked for: pip's own answers from a real index."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.install.kit import TOOLS, Index, closed, make_wheel, silent

Choose = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def choose(index: Index, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """`choose` of tools/torch_build.py with the index's pip; gives the choice and what was said."""
    monkeypatch.syspath_prepend(str(TOOLS))
    build, run = importlib.import_module("torch_build"), importlib.import_module("pip_run")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pip = run.Pip(empty / "bin" / "python", tmp_path / "log")

    def call(wanted: str = "", at: str = "", cuda: tuple[int, int] | None = None) -> tuple[Any, list[str]]:
        said: list[str] = []
        return build.choose(pip, wanted, at or f"{index.url}/whl", cuda, said.append), said

    return call


def requirement(choice: Any) -> str:
    (only,) = choice.requirements
    return str(only if isinstance(only, str) else only.pin)


@pytest.fixture
def version() -> str:
    """The version that the lists pin."""
    text = (TOOLS.parent / "locks" / "torch-cpu.txt").read_text(encoding="utf-8")
    return next(line for line in text.splitlines() if line.startswith("torch==")).split()[0][7:]


def test_without_a_gpu_the_cpu_build_of_pytorchs_index(choose: Choose, index: Index, version: str) -> None:
    index.add("torch", version)
    index.add("torch", f"{version}+cpu", under="whl/cpu")
    choice, said = choose()
    assert requirement(choice) == f"torch=={version}+cpu"
    assert choice.index == f"{index.url}/whl/cpu"
    assert {entry.name for entry in choice.locked} >= {"sympy", "networkx", "mpmath"}
    assert not any(entry.name.startswith("nvidia") for entry in choice.locked)
    assert said == []


@pytest.mark.parametrize("gone", ["silent", "closed", "not named"])
def test_an_index_that_does_not_answer_is_done_without_in_seconds(
    choose: Choose, index: Index, version: str, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    index.add("torch", version)
    wheel = make_wheel(index.folder / "wheels", "torch", f"{version}+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with silent() as address:
        at = {"silent": address, "closed": closed(), "not named": " "}[gone]
        began = time.monotonic()
        choice, said = choose(at=at)
        took = time.monotonic() - began
    assert requirement(choice) == f"torch=={version}+cpu"
    assert choice.index == ""
    assert "where pip is configured to look" in choice.line
    assert said == []
    assert took < 30  # 8 s for each of two questions at most, and pip's own start on a busy machine


def test_the_package_index_comes_last_after_a_line_that_says_what_comes(
    choose: Choose, index: Index, version: str
) -> None:
    index.add("torch", version)
    choice, (line,) = choose()
    assert choice.index == ""
    assert [entry.pin for entry in choice.requirements] == [f"torch=={version}"]
    assert choice.requirements[0].hashes
    assert any(entry.name.startswith("nvidia") for entry in choice.locked)
    assert "GB to download" in line
    assert "TORCH=FILE.whl" in line


@pytest.mark.parametrize(
    ("cuda", "label"), [((12, 7), "cu126"), ((12, 9), "cu129"), ((13, 1), ""), ((11, 4), "")]
)
def test_with_a_gpu_the_build_is_the_drivers(
    choose: Choose, index: Index, version: str, cuda: tuple[int, int], label: str
) -> None:
    index.add("torch", version)
    for other in ("cpu", "cu126", "cu129"):
        index.add("torch", f"{version}+{other}", under=f"whl/{other}")
    choice, lines = choose(cuda=cuda)
    assert requirement(choice) == f"torch=={version}" + (f"+{label}" if label else "")
    assert choice.index == (f"{index.url}/whl/{label}" if label else "")
    assert choice.resolve == bool(label)  # what a build for an older CUDA needs is in no list
    warned = ["torch for this driver (CUDA 11.4) is not in reach" in line for line in lines]
    assert warned == ([True] if cuda == (11, 4) else [])


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('echo "| NVIDIA-SMI 575.51   Driver Version: 575.51   CUDA Version: 12.9 |"', (12, 9)),
        ('echo "CUDA UMD Version: 13.1"', (13, 1)),
        ('echo "NVIDIA-SMI has failed: no driver"; exit 9', None),
        ("echo unheard of", None),
    ],
)
def test_the_driver_says_which_cuda_it_runs(
    script: str, found: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    driver_cuda = importlib.import_module("torch_build").driver_cuda
    stub = tmp_path / "nvidia-smi"
    stub.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    stub.chmod(0o755)
    assert driver_cuda([str(stub)]) == found
    assert driver_cuda([str(tmp_path / "none")]) is None


def test_on_macos_the_package_index_has_it(
    choose: Choose, index: Index, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    choice, said = choose()
    assert [entry.pin for entry in choice.requirements] == [f"torch=={version}"]
    assert (choice.index, said, index.asked) == ("", [], [])
