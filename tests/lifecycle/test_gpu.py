"""The GPU on the machine is the one asked for, by its whole name, before anything else is done there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from glasshouse import spec as specs
from glasshouse.errors import LegError
from glasshouse.lifecycle.observe import Observed, check_gpu

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
def test_what_was_asked_for_is_there(
    make_spec: Callable[..., specs.RunSpec], gpu: specs.Gpu, found: list[str], answer: str | None
) -> None:
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
def test_another_or_too_few_are_refused_by_name(
    make_spec: Callable[..., specs.RunSpec], count: int, found: list[str]
) -> None:
    gpu = specs.Gpu(name="h100", provider_names=NAMES, count=count)
    with pytest.raises(LegError, match="asked for h100, found") as caught:
        check_gpu(make_spec(gpu=gpu), observed(*found))
    assert caught.value.code == "gpu-not-as-asked"
