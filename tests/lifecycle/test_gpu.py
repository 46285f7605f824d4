"""The GPU on the machine is the one asked for, by its whole name, before anything else is done there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from glasshouse import spec as specs
from glasshouse.errors import LegError
from glasshouse.lifecycle.observe import POD_SCRIPT, Observed, check_gpu
from glasshouse.lifecycle.setup import gpus_for
from tests.specs import make_spec

H100 = "NVIDIA H100 80GB HBM3"
NAMES = {"runpod": H100, "vastai": "H100 SXM", "driver": H100}


def observed(*gpus: str) -> Observed:
    """A pod of which only the GPUs matter here."""
    empty = {"uptime_sec": 1.0, "cpu_count": 1, "gpus": tuple((name, "GPU-1", "0", "570") for name in gpus)}
    return Observed(**{field.name: empty.get(field.name, "") for field in fields(Observed)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "found", "answer"),
    [
        (specs.Gpu(name="h100", provider_names=NAMES), [H100], H100),
        (specs.Gpu(name="h100", provider_names=NAMES, count=2), [H100, H100], H100),
        (specs.Gpu(name="auto"), ["NVIDIA RTX A4000"], "NVIDIA RTX A4000"),
        (specs.Gpu(name="auto"), [], None),
        (specs.Gpu(name="cpu"), [H100], None),
    ],
)
def test_what_was_asked_for_is_there(gpu: specs.Gpu, found: list[str], answer: str | None) -> None:
    assert check_gpu(make_spec(gpu=gpu), observed(*found)) == answer


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (1, []),
        (1, [f"{H100} MIG 1g.10gb"]),
        (1, ["NVIDIA H100 PCIe"]),
        (2, [H100]),
        (2, [H100, "NVIDIA H200"]),
    ],
)
def test_another_or_too_few_are_refused_by_name(count: int, found: list[str]) -> None:
    gpu = specs.Gpu(name="h100", provider_names=NAMES, count=count)
    with pytest.raises(LegError, match="asked for h100, found") as caught:
        check_gpu(make_spec(gpu=gpu), observed(*found))
    assert caught.value.code == "gpu-not-as-asked"


FAULT = "exit 18: Failed to initialize NVML: Driver/library version mismatch"


@pytest.mark.parametrize(
    ("gpu", "seen"),
    [
        ("h100", replace(observed(), gpu_fault=FAULT)),
        ("auto", replace(observed(), gpu_fault=FAULT)),
        ("h100", observed(H100, "ERR!")),
    ],
    ids=["named", "any", "a field in error"],
)
def test_a_sick_driver_ends_the_run_before_anything_is_sealed(gpu: str, seen: Observed) -> None:
    spec = make_spec(gpu=specs.Gpu(name=gpu, provider_names=NAMES if gpu == "h100" else {}))
    with pytest.raises(LegError, match=r"mismatch|ERR!") as caught:
        check_gpu(spec, seen)
    assert caught.value.code == "gpu-probe-failed"
    assert check_gpu(make_spec(gpu=specs.Gpu(name="cpu")), seen) is None


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (
            f'echo "{H100}, GPU-1, 00000000:00:06.0, 580.159.04"',
            [f"gpu={H100}, GPU-1, 00000000:00:06.0, 580.159.04"],
        ),
        ('echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18', [f"fault={FAULT}"]),
        ('echo "NVIDIA-SMI has failed" >&2; echo more; exit 9', ["fault=exit 9: NVIDIA-SMI has failed"]),
    ],
    ids=["well", "mismatch", "no driver"],
)
def test_what_the_drivers_tool_says_is_told(tmp_path: Path, tool: str, said: list[str]) -> None:
    """The controller's own script, run as it runs on a pod, beside a stand-in for nvidia-smi."""
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{tool}\n")
    path.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", POD_SCRIPT, "sh", "/dev/null", sys.executable],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith(("gpu=", "fault="))] == said


def test_what_a_pod_says_of_its_driver_moves_no_terminal() -> None:
    with pytest.raises(LegError) as caught:
        check_gpu(
            make_spec(gpu=specs.Gpu(name="auto")),
            replace(observed(), gpu_fault="exit 9: \x1b[2J\x1b]0;owned\x07verified"),
        )
    assert caught.value.line().isprintable()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("gpu", "there"), [("auto", 1), ("auto", 3)])
def test_more_ranks_than_gpus_are_refused_before_anything_is_sent(gpu: str, there: int) -> None:
    spec = make_spec(gpu=specs.Gpu(name=gpu))
    with pytest.raises(LegError) as caught:
        gpus_for(spec, there + 1, observed(*["NVIDIA H200"] * there))
    assert caught.value.code == "gpu-not-as-asked"
    words = f"the command starts {there + 1} processes, one a GPU, and the machine has {there}"
    assert words in caught.value.line()


@pytest.mark.parametrize(("gpu", "ranks", "there"), [("auto", 2, 0), ("auto", 2, 2), ("cpu", 2, 1)])
def test_ranks_that_have_a_gpu_each_or_use_none(gpu: str, ranks: int, there: int) -> None:
    gpus_for(make_spec(gpu=specs.Gpu(name=gpu)), ranks, observed(*["NVIDIA H200"] * there))
