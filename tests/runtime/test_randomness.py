"""Random states of the process: put back, a warm-up is undone and a checkpoint gone on from exactly."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json
from glasshouse.errors import LegError
from glasshouse.runtime import randomness, resume
from glasshouse.runtime.checkpointing import Checkpointed
from glasshouse.runtime.session import RESERVED
from glasshouse.runtime.warmup import Beginning


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = randomness.taken()
    yield
    randomness.put_back(before)


def drawn() -> list[float]:
    """Some of each, an odd count of normal ones: the second of a pair is kept for the next call."""
    own = [random.random(), random.gauss(0, 1), random.gauss(0, 1), random.gauss(0, 1)]
    return [*own, *numpy.random.randn(3), *torch.randn(5).tolist()]


class Drawing:
    """A class of one's own that draws from every global generator, and names none in its state."""

    unit, steps_per_unit = "steps", 1

    def __init__(self) -> None:
        self.weights, self.made = torch.zeros(12, dtype=torch.float64), 0

    def run_unit(self) -> None:
        self.weights += torch.tensor(drawn(), dtype=torch.float64)
        self.made += 1

    def synchronize(self) -> None:
        pass

    def trainable(self) -> dict[str, Any]:
        return {"w": self.weights}

    def buffers(self) -> list[Any]:
        return [self.weights]

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"w": self.weights}, {"steps": 1000, "made": self.made}

    def restore(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.weights.copy_(tensors["w"])
        self.made = values["made"]


def seeded() -> Drawing:
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    drawn()  # so that half a pair is pending
    return Drawing()


def run(session: Any, units: int) -> list[float]:
    for _ in range(units):
        session.run_unit()
    return list(session.weights.tolist())


def digest(tensors: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"".join(bytes(each.numpy().tobytes()) for each in tensors.values())).hexdigest()


@pytest.mark.parametrize("warm", [1, 3, 50])
def test_a_warm_up_is_undone_for_a_class_that_names_no_random_state(warm: int) -> None:
    alone = run(seeded(), 10)
    begun: Any = Beginning(seeded(), seeded, digest)  # type: ignore[arg-type]
    run(begun.session, warm)
    assert run(begun.undone(), 10) == alone


def files_of(folder: Path) -> dict[str, bytes]:
    (place,) = folder.iterdir()
    names = {resume.TENSORS: "state.safetensors", resume.VALUES: "state.json"}
    return {name: (place / own).read_bytes() for name, own in names.items()}


def test_a_checkpoint_is_gone_on_from_where_its_draws_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(seeded(), 9)
    one: Any = Checkpointed(seeded(), tmp_path / "c", 0.0)  # type: ignore[arg-type]
    run(one, 4)
    files = files_of(tmp_path / "c")
    assert len(files[resume.VALUES]) < 20_000
    again = seeded()
    assert resume.restore(again, files)
    assert (resume.made_before(files), again.made) == (4, 4)
    assert run(again, 5) == whole
    monkeypatch.setenv("RANK", "1")  # another rank draws for itself, and not what rank 0 draws
    other = seeded()
    before = randomness.taken()
    resume.restore(other, files)
    assert randomness.taken() == before


def test_what_a_state_says_of_its_steps() -> None:
    said: list[Any] = [None, [], {}, {"steps": 3}, {"steps": -1}, {"steps": True}]
    assert [resume.made(each) for each in said] == [None, None, None, 3, None, None]
    assert resume.made({"steps": 1000, RESERVED: {"steps": 4}}) == 4
    assert resume.made({"steps": 1000, RESERVED: 4}) is None
    assert resume.made_before({}) == 0
    assert resume.made_before({resume.VALUES: b"{"}) == 0


RIGHT = json.loads(canonical_json(randomness.taken()))


@pytest.mark.parametrize(
    "states",
    [
        {}, {"python": []}, {"python": [3, "AAAA", None]}, {"python": [2, *RIGHT["python"][1:]]},
        {**RIGHT, "numpy": ["AAAA", 0, 0, 0.0]}, {**RIGHT, "numpy": [RIGHT["numpy"][0], 10**6, 0, 0.0]},
        {**RIGHT, "torch": "AAAA"}, {**RIGHT, "torch": 5}, [], "random",
    ],
)  # fmt: skip
def test_another_form_is_refused(states: Any) -> None:
    with pytest.raises(ValueError, match="random states of another form"):
        randomness.put_back(states)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3))
)
def test_whatever_stands_there_is_put_back_or_refused(value: Any) -> None:
    for name in RIGHT:
        try:
            randomness.put_back({**RIGHT, name: value})
        except ValueError:
            continue


@pytest.mark.parametrize("ours", [5, "random", {"random": 5}, {"random": {}}])
def test_a_leg_ends_by_its_code_where_ours_is_none(tmp_path: Path, ours: Any) -> None:
    one: Any = Checkpointed(seeded(), tmp_path / "c", 0.0)  # type: ignore[arg-type]
    run(one, 1)
    files = files_of(tmp_path / "c")
    values = {**json.loads(files[resume.VALUES]), RESERVED: ours}
    with pytest.raises(LegError) as caught:
        resume.restore(seeded(), {**files, resume.VALUES: canonical_json(values)})
    assert caught.value.code == "checkpoint-not-restored"
