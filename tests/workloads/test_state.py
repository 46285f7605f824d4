"""What training goes on from: taken and put back, it trains on bit for bit; anything else is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse.runtime.session import restorable
from glasshouse.workloads.package import Payload
from tests.workloads.conftest import digests, load_model, session_of

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
MakePayload = Callable[..., Payload]
SMALL = {
    "mlp": {"inputs": 8, "hidden": 12, "batch": 16, "batches_per_epoch": 4},
    "qwen2-tiny": {"examples": 5},
}


@pytest.fixture(params=list(SMALL))
def payload(request: pytest.FixtureRequest, payload_of: MakePayload) -> Payload:
    return payload_of(load_model(request.param, **SMALL[request.param]))


def copied(session: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, values = session.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, dict(values)


def train(session: Any, steps: int) -> tuple[str, str]:
    for _ in range(steps):
        session.run_steps(1) if hasattr(session, "run_steps") else session.run_unit()
    return digests(session)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("before", [0, 1, 7])
def test_what_was_taken_trains_on_as_it_did(payload: Payload, before: int) -> None:
    session = session_of(payload)
    assert restorable(session)
    train(session, before)
    then = copied(session)
    loss = session.loss()
    expected = train(session, 9)
    session.restore(*then)
    assert same(copied(session)[0], then[0])
    assert session.state()[1] == then[1]
    assert session.loss() == pytest.approx(loss, nan_ok=True)
    assert train(session, 9) == expected
    fresh = session_of(payload)  # as on another machine
    fresh.restore(*then)
    assert train(fresh, 9) == expected


def test_what_the_optimizer_is_to_have_no_longer_is_overwritten(payload: Payload) -> None:
    session = session_of(payload)
    start = copied(session)
    train(session, 3)
    moments = [value for held in session.optimizer.state.values() for value in held.values()]
    assert any(bool(value.any()) for value in moments)
    session.restore(*start)
    assert not any(bool(value.any()) for value in moments)
    assert not session.optimizer.state
    assert all(weight.grad is None for weight in session.optimizer.param_groups[0]["params"])


def spoil_name(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    tensors["other"] = tensors.pop(next(iter(tensors)))


def spoil_extra(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    tensors["weights.more"] = tensors["random.cpu"]


def spoil_shape(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith("exp_avg"))
    tensors[name] = tensors[name].reshape(-1)[1:]


def spoil_dtype(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].double()


def spoil_count(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    values["steps"] += 1


def spoil_optimizer(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    values["steps"] = 0  # with an optimizer that has made some


def spoil_random(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    tensors["random.cpu"] = tensors["random.cpu"][:100]


def spoil_values(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    values["steps"] = True


def spoil_loss(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    values["loss"] = float("inf")


def spoil_keys(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    values["more"] = 1


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_name, spoil_extra, spoil_shape, spoil_dtype, spoil_count, spoil_optimizer, spoil_random,
        spoil_values, spoil_loss, spoil_keys,
    ],
)  # fmt: skip
def test_another_form_is_refused_and_changes_nothing(
    payload: Payload, spoil: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    session = session_of(payload)
    train(session, 2)
    then = copied(session)
    given = (dict(then[0]), dict(then[1]))
    spoil(*given)
    with pytest.raises(ValueError, match=r"state|weights|optimizer|random|steps|loss"):
        session.restore(*given)
    assert same(copied(session)[0], then[0])
    assert session.state()[1] == then[1]


HOOKED = """
import sys
sys.path.insert(0, sys.argv[1])
from torch.optim.optimizer import register_optimizer_step_post_hook
from tests.workloads.conftest import load_model, session_of
from glasshouse.workloads.package import prepare
from tests.specs import make_spec

counted = []
register_optimizer_step_post_hook(lambda *_: counted.append(1))
session = session_of(prepare(make_spec(model=load_model("mlp", inputs=8, hidden=12, batch=16))))
session.run_unit()
session.run_steps(2)
assert len(counted) == session.steps == session.steps_per_unit + 2, len(counted)
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
"""


def test_the_mlps_steps_can_be_counted_by_hooks_without_the_compiler() -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-c", HOOKED, root], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
