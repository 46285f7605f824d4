"""The warm-up is undone: what is measured begins where the leg began, and nothing of the warm-up is left."""

from __future__ import annotations

from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.session import Stretch
from tests.runtime.rig import TINY

# It begins alike each time, and counts its steps in its weights; with or without state() and restore().
ALIKE = """
class Alike(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.weights, self.state = HostTensor(b"\\x07" * 4096), HostTensor(b"\\x09" * 4096)
    def run_unit(self):
        super().run_unit()
        struct.pack_into("<f", self.state.memory, 0, float(self.steps))
"""
WITHOUT = "\nclass Workload(Alike): pass\n"
WITH = """
class Copied(HostTensor):
    copies = []
    def clone(self):
        self.copies.append(HostTensor(self.memory))
        return self.copies[-1]

class Workload(Alike):
    def __init__(self, *args):
        super().__init__(*args)
        self.weights, self.moments = Copied(self.weights.memory), Copied(self.state.memory)
        self.state = self.taken
    def run_unit(self):
        Tiny.run_unit(self)
        struct.pack_into("<f", self.moments.memory, 0, float(self.steps))
    def taken(self):
        return {"weights": self.weights, "moments": self.moments}, {"steps": self.steps}
    def restore(self, tensors, values):
        self.weights.memory[:] = tensors["weights"].memory
        self.moments.memory[:] = tensors["moments"].memory
        self.steps = values["steps"]
    def buffers(self):
        return [self.weights, self.moments]
"""


def run(source: str, **changes: Any) -> tuple[Any, Any]:
    files = {"workload.py": (TINY + ALIKE + source).encode(), "config.json": b"{}", "data.rows": b"rows"}
    return harness.run(
        harness.Workload(files, {}, "Workload"),
        stretch=Stretch(**{"warmup_sec": 0.05, "measured_sec": None, "steps": 5, **changes}),
        device="cpu", allocation="0" * 64, salt=b"salt", blind=bytes(32), report=lambda _kind, _body: None,
    )  # fmt: skip


def in_module(session: Any, name: str) -> Any:
    return vars(__import__("sys").modules[type(session).__module__])[name]


@pytest.mark.parametrize("source", [WITHOUT, WITH])
def test_what_is_returned_made_the_measured_steps_alone(source: str) -> None:
    session, result = run(source)
    assert session.steps == result.steps == 5
    assert result.undone_units > 0
    _, alone = run(source, warmup_sec=0.0)
    # Byte for byte what a leg without a warm-up ends with, from the same beginning.
    assert (result.output_sha256, result.initial_digest) == (alone.output_sha256, alone.initial_digest)
    assert alone.undone_units is None


def test_the_copy_of_what_it_began_with_is_overwritten() -> None:
    session, _ = run(WITH)
    copies = in_module(session, "Copied").copies
    assert len(copies) == 2
    assert not any(any(copy.memory) for copy in copies)


def test_the_copy_is_overwritten_where_the_warm_up_fails() -> None:
    kept: list[Any] = []
    failing = (
        WITH
        + """
    def synchronize(self):
        if self.steps:
            raise KeyError("mine", Copied.copies)
"""
    )
    with pytest.raises(KeyError) as caught:
        run(failing)
    kept = caught.value.args[1]
    assert len(kept) == 2
    assert not any(any(copy.memory) for copy in kept)


def test_without_a_state_a_second_one_is_built_and_the_first_is_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    build = harness.Workload.build

    def recorded(self: harness.Workload, device: str) -> Any:
        made.append(build(self, device))
        return made[-1]

    monkeypatch.setattr(harness.Workload, "build", recorded)
    session, _ = run(WITHOUT)
    first, second = made
    assert second is session
    assert first.steps > 0
    assert not any(first.weights.memory)
    assert not any(first.state.memory)
    assert any(second.weights.memory)


@pytest.mark.parametrize(
    "source",
    [
        # It begins differently each time, it puts back nothing, and less than it trains with.
        "\nclass Workload(Tiny): pass\n",
        WITH + "    def restore(self, tensors, values): pass\n",
        WITH + "    def restore(self, tensors, values): self.weights.memory[:] = tensors['weights'].memory\n",
    ],
)
def test_a_warm_up_that_cannot_be_undone_ends_the_leg(source: str) -> None:
    with pytest.raises(LegError) as caught:
        run(source)
    assert caught.value.code == "warmup-not-undone"


def test_what_lies_in_the_package_is_not_overwritten_with_the_first_session() -> None:
    from glasshouse.sealing.memory import private_region

    region = private_region(4096)
    region[:4] = b"rows"
    # As torch.frombuffer does: a tensor over the package's own memory.
    source = (
        WITHOUT
        + """
class Over(HostTensor):
    def __init__(self, view): self.memory, self.shape = view, (1,)
class Workload(Alike):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        self.data = Over(files["rows"])
        assert bytes(files["rows"]) == b"rows", bytes(files["rows"])
    def buffers(self):
        return [*super().buffers(), self.data]
"""
    )
    files = {
        "workload.py": (TINY + ALIKE + source).encode(), "config.json": b"{}",
        "data.rows": memoryview(region)[:4],
    }  # fmt: skip
    session, _ = harness.run(
        harness.Workload(files, {}, "Workload", region),
        stretch=Stretch(0.05, None, 5), device="cpu", allocation="0" * 64, salt=b"salt", blind=bytes(32),
        report=lambda _kind, _body: None,
    )  # fmt: skip
    assert session.steps == 5
    assert region[:4] == b"rows"
