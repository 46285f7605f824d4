"""The measured part of a leg against closed forms, and its digests against the libraries others use."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.harness import CURVE_POINTS, Workload
from glasshouse.runtime.results import LegResult, Wiped
from glasshouse.runtime.session import SESSION_PARTS, Stretch
from tests.runtime.rig import TINY

SLEEP = 0.01


def run(
    source: str = "", *, warmup: float = 0.0, seconds: float | None = None, steps: int | None = None,
    delay: float = 0.0, params: bytes = b"{}", builder: str = "Workload",
) -> tuple[Any, LegResult, list[dict[str, Any]]]:  # fmt: skip
    reported: list[dict[str, Any]] = []
    files = {"workload.py": (TINY + source).encode(), "config.json": params, "data.rows": b"rows"}
    session, result = harness.run(
        Workload(files, {}, builder),
        stretch=Stretch(warmup, seconds, steps, delay),
        device="cpu",
        allocation="0" * 64,
        salt=b"salt",
        blind=bytes(32),
        report=lambda kind, body: reported.append({"kind": kind, **body}),
    )
    return session, result, reported


SLEEPER = f"""
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.weights, self.state = HostTensor(bytes(4096)), HostTensor(bytes(4096))  # each time alike
    def run_unit(self):
        self.steps += 1
        time.sleep({SLEEP})
        struct.pack_into("<f", self.weights.memory, 0, float(self.steps))
"""


def test_throughput_is_what_a_sleeping_workload_must_have() -> None:
    session, result, _ = run(SLEEPER, seconds=0.6, warmup=0.1)
    # A unit sleeps SLEEP and wakes a little late; a stretch ends with the unit that passes its time.
    assert 0.6 <= result.elapsed_sec < 0.6 + 20 * SLEEP
    assert result.units <= math.ceil(result.elapsed_sec / SLEEP)
    assert result.units > 0.5 * result.elapsed_sec / SLEEP
    assert result.undone_units is not None
    assert result.undone_units > 0
    # The warm-up is neither counted nor in what is returned.
    assert session.steps == result.units == result.steps
    assert result.warmup_units == 0


SPINNER = """
class Workload(Tiny):
    worked = 0.0
    def run_unit(self):
        self.steps += 1
        began = time.monotonic()
        while time.monotonic() < began + 0.004:
            pass
        self.worked += time.monotonic() - began
"""


def test_a_delay_adds_its_percentage() -> None:
    """The positive control. The workload counts its own work, so that a busy machine changes nothing."""
    session, result, _ = run(SPINNER, seconds=1.5, delay=25.0)
    slept = result.elapsed_sec - session.worked
    assert slept == pytest.approx(0.25 * session.worked, rel=0.3)
    assert result.delay_pct == 25.0
    session, result, _ = run(SPINNER, seconds=0.5)
    assert result.elapsed_sec - session.worked < 0.1 * session.worked


@pytest.mark.parametrize(
    ("per_unit", "steps", "units"), [(1, 7, 7), (4, 40, 10), (4, 41, 10.25), (5, 1, 0.2)]
)
def test_fixed_steps_are_done_exactly(per_unit: int, steps: int, units: float) -> None:
    source = f"""
class Workload(Tiny):
    steps_per_unit = {per_unit}
    def run_unit(self):
        self.run_steps({per_unit})
    def run_steps(self, count):
        for _ in range(count):
            super().run_unit()
"""
    session, result, _ = run(source, steps=steps)
    assert (result.units, result.steps) == (units, steps)
    assert session.steps == steps
    assert result.undone_units is None


def test_steps_that_end_inside_a_unit_need_a_session_that_can() -> None:
    source = "\nclass Workload(Tiny):\n    steps_per_unit = 4\n"
    assert run(source, steps=40)[1].units == 10
    with pytest.raises(LegError) as caught:
        run(source, steps=41)
    assert caught.value.code == "steps-not-whole-units"


def test_a_stretch_can_be_ended_early_and_counts_what_was_done() -> None:
    session, _, _ = run("\nclass Workload(Tiny):\n    steps_per_unit = 4\n", steps=4)
    before = session.steps
    units, _ = harness._stretch(
        session, None, 4 * 9 + 1, report=lambda _kind, _body: None, phase="measure",
        ended=lambda: session.steps - before >= 3,
    )  # fmt: skip
    assert units == session.steps - before == 3


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-float('inf')"])
def test_a_loss_that_is_not_finite_ends_the_leg(value: str) -> None:
    source = f"\nclass Workload(Tiny):\n    def loss(self): return {value}\n"
    with pytest.raises(LegError) as caught:
        run(source, seconds=0.05)
    assert caught.value.code == "non-finite-loss"


def test_a_loss_that_is_lost_on_the_way_ends_the_leg_there() -> None:
    source = (
        "\nclass Workload(Tiny):\n    def loss(self): return float('nan') if 5 < self.steps < 60 else 1.0\n"
    )
    with pytest.raises(LegError) as caught:
        run(source, seconds=3.0)
    assert caught.value.code == "non-finite-loss"


def test_the_clock_runs_between_synchronisations_of_the_device() -> None:
    source = """
class Workload(Tiny):
    calls = []
    def run_unit(self):
        self.calls.append("unit")
    def synchronize(self):
        self.calls.append("sync")
        time.sleep(0.05)
"""
    session, result, _ = run(source, steps=3)
    # After the build, around the warm-up, then: idle, three units, idle.
    assert session.calls[-5:] == ["sync", "unit", "unit", "unit", "sync"]
    assert 0.05 <= result.elapsed_sec < 0.1  # the last wait is inside, the first is not


def test_curves_are_thinned_and_progress_is_reported_by_the_clock() -> None:
    _, result, reported = run(seconds=2.3)
    assert 10 <= len(result.loss_curve) <= CURVE_POINTS
    assert [units for units, _ in result.loss_curve] == [units for _, units in result.throughput_curve]
    assert result.loss_curve == sorted(result.loss_curve)
    phases = [body["phase"] for body in reported]
    assert phases[0] == "setup"
    assert 1 <= phases.count("measure") <= 2
    assert all(body["kind"] == "progress" for body in reported)


def test_source_is_imported_from_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.path)
    source = b"import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int"
    module = harness.import_workload(memoryview(source))
    assert module.A(3).x == 3
    assert module.__file__ == "<sealed:workload.py>"
    assert not Path(str(module.__file__)).exists()
    assert sys.modules[module.A.__module__] is module  # dataclasses and pickle look there
    assert set(sys.path) == before
    assert list(tmp_path.iterdir()) == []
    del sys.modules[module.__name__]


def test_a_workload_of_ones_own_is_given_its_parameters_and_its_own_files_only() -> None:
    source = """
class Workload(Tiny):
    def __init__(self, params, files, device):
        assert (params, device) == ({"a": 1}, "cpu"), (params, device)
        assert {name: bytes(view) for name, view in files.items()} == {"rows": b"rows"}
        super().__init__(params, files, device)
"""
    assert run(source, steps=1, params=b'{"a":1}')[1].units == 1


@pytest.mark.parametrize("part", SESSION_PARTS)
def test_a_session_that_lacks_a_part_is_named(part: str) -> None:
    source = f"""
class Less:
    def __getattribute__(self, name):
        if name == {part!r}:
            raise AttributeError(name)
        return getattr(object.__getattribute__(self, "whole"), name)
class Workload(Less):
    def __init__(self, *args):
        object.__setattr__(self, "whole", Tiny(*args))
"""
    with pytest.raises(LegError) as caught:
        run(source, steps=1)
    assert caught.value.code == f"workload-lacks-{part.replace('_', '-')}"


def test_the_workload_digest_is_salted_and_covers_names_and_bytes() -> None:
    base = harness.workload_digest({"a": b"1", "b": b"2"}, b"salt")
    assert base == harness.workload_digest({"b": memoryview(b"2"), "a": b"1"}, b"salt")
    others = [
        harness.workload_digest({"a": b"1", "b": b"2"}, b"other"),
        harness.workload_digest({"a": b"1", "b": b"3"}, b"salt"),
        harness.workload_digest({"a": b"1", "c": b"2"}, b"salt"),
        harness.workload_digest({"a": b"12", "b": b""}, b"salt"),
    ]
    assert len({base, *others}) == 5


def test_an_unchanged_output_is_seen() -> None:
    still = "\nclass Workload(Tiny):\n    def run_unit(self): time.sleep(0.001)\n"
    assert run(still, steps=2)[1].output_differs is False
    assert run(steps=2)[1].output_differs is True


# --- against torch and safetensors ----------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    return {
        "b.weight": torch.randn(33, 7, generator=generator),
        "a": torch.randn(5, generator=generator).to(torch.bfloat16),
        "c.half": torch.randn(2, 3, generator=generator).to(torch.float16),
        "d": torch.arange(6).reshape(2, 3),
        "e": torch.arange(7, dtype=torch.uint8),
        "f": torch.randn(4, 6, generator=generator).T,  # not contiguous
        "g": torch.tensor(2.5, dtype=torch.float64),
        "h": torch.zeros(0, 3),
    }


@pytest.mark.train
def test_the_export_digest_is_that_of_the_file_which_the_reference_library_writes(
    tensors: dict, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("safetensors.torch")
    path = tmp_path / "adapter.safetensors"
    reference.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    data = path.read_bytes()
    assert harness.export_digest(tensors) == (hashlib.sha256(data).hexdigest(), len(data))
    shuffled = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    assert harness.export_digest(shuffled) == harness.export_digest(tensors)
    for kind in harness.SAFETENSORS_DTYPES:
        alone = {"é.β": torch.ones(3).to(getattr(torch, kind)), "a": torch.zeros(2)}
        assert harness.export_digest(alone)[0] == hashlib.sha256(reference.save(alone)).hexdigest(), kind


@pytest.mark.train
def test_the_tensor_digest_covers_name_type_shape_bytes_and_salt(tensors: dict) -> None:
    torch = pytest.importorskip("torch")
    base = harness.tensor_digest({"a": tensors["b.weight"]}, b"salt")
    changed = tensors["b.weight"].clone()
    changed[0, 0] += 1
    others = [
        harness.tensor_digest({"b": tensors["b.weight"]}, b"salt"),
        harness.tensor_digest({"a": tensors["b.weight"]}, b"other"),
        harness.tensor_digest({"a": tensors["b.weight"].reshape(7, 33)}, b"salt"),
        harness.tensor_digest({"a": tensors["b.weight"].view(torch.int32)}, b"salt"),
        harness.tensor_digest({"a": changed}, b"salt"),
    ]
    assert len({base, *others}) == 6
    assert base == harness.tensor_digest({"a": tensors["b.weight"].clone()}, b"salt")
    turned = tensors["f"]
    assert harness.tensor_digest({"f": turned}, b"") == harness.tensor_digest({"f": turned.contiguous()}, b"")


@pytest.mark.train
def test_wiping_reaches_whole_storages_once_and_reads_them_back() -> None:
    torch = pytest.importorskip("torch")
    from glasshouse.runtime.wipe import wipe_tensors

    leaf = torch.randn(64, 64, requires_grad=True)
    base = torch.randn(100)
    held = [
        leaf, leaf.detach(), base[10:20], base[::2], torch.randn(8, 4).T, torch.randn(1).expand(50),
        torch.full((3,), float("nan")), torch.zeros(0), torch.randn(3, dtype=torch.complex64),
        torch.ones(5, dtype=torch.bool), torch.randn(4).to(torch.bfloat16),
    ]  # fmt: skip
    report = wipe_tensors(held)
    assert report.host == Wiped(8, 64 * 64 * 4 + 400 + 128 + 4 + 12 + 24 + 5 + 8, read_back_zero=True)
    assert report.device == Wiped(0, 0, read_back_zero=True, cache="none")
    assert not base.any()  # also what no view showed
    assert all(not tensor.any() for tensor in held)


@pytest.mark.train
def test_a_wiped_copy_leaves_the_tensor_and_a_wiped_tensor_leaves_no_copy() -> None:
    torch = pytest.importorskip("torch")
    straight, turned = torch.randn(8, 4), torch.randn(8, 4).T
    for tensor in (straight, turned):
        kept = tensor.clone()
        view, host = harness.tensor_bytes(tensor)
        harness.wipe_copy(tensor, host)
        assert torch.equal(tensor, kept)
        assert any(view) == (host.data_ptr() == tensor.data_ptr())
