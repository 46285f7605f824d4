"""The MLP against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from glasshouse.workloads.package import Payload
from tests.workloads.conftest import digests, in_memory, load_model, session_of, train

pytestmark = pytest.mark.train

MakePayload = Callable[..., Payload]
SMALL = {"inputs": 16, "hidden": 24, "layers": 2, "classes": 5, "batch": 32, "batches_per_epoch": 3}


@pytest.mark.parametrize(
    ("name", "weights", "biases"), [("mlp", 398_336, 1_034), ("mlp-large", 71_303_168, 17_408)]
)
def test_sizes_that_the_config_states(name: str, weights: int, biases: int) -> None:
    model = load_model(name)
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]
    assert sum(a * b for a, b in pairwise(widths)) == weights
    assert sum(widths[1:]) == biases


def test_counts_are_the_closed_forms(payload_of: MakePayload) -> None:
    info = session_of(payload_of(load_model("mlp", **SMALL))).info
    weights = 16 * 24 + 24 * 24 + 24 * 5
    assert info["trainableParams"] == info["totalParams"] == weights + 24 + 24 + 5
    assert info["rowsPerUnit"] == 32 * 3
    assert info["stepsPerUnit"] == 3
    # 2 FLOPs a weight and row forward, 4 backward.
    assert info["flopsPerUnit"] == 6 * weights * 32 * 3


def test_flops_agree_with_what_torch_counts(payload_of: MakePayload) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    session = session_of(payload_of(load_model("mlp", **SMALL)))
    with FlopCounterMode(display=False) as counter:
        session.run_unit()
    # torch leaves out the first layer's input gradient, which is not computed: 2 x rows x its weights.
    assert counter.get_total_flops() == session.info["flopsPerUnit"] - 2 * (16 * 24) * 32 * 3


def test_it_begins_with_the_packages_weights(payload_of: MakePayload) -> None:
    import torch

    payload = payload_of(load_model("mlp", **SMALL))
    tensors, session = in_memory(payload), session_of(payload)
    for name, value in session.trainable().items():
        item, view = tensors[name]
        assert torch.equal(value, torch.frombuffer(view, dtype=torch.float32).reshape(item.shape))
    # He et al. 2015: standard deviation sqrt(2 / fan-in); 576 draws put the estimate within 15 %.
    assert float(session.trainable()["layer1.weight"].std()) == pytest.approx((2 / 24) ** 0.5, rel=0.15)


def test_the_loss_falls_far_below_that_of_a_guess(payload_of: MakePayload) -> None:
    session = session_of(payload_of(load_model("mlp", **SMALL, learning_rate=0.01)))
    assert math.isnan(session.loss())
    session.run_unit()
    first = session.loss()
    for _ in range(60):
        session.run_unit()
    assert first == pytest.approx(math.log(5), rel=0.5)
    assert session.loss() < 0.25 * first


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(payload_of: MakePayload) -> None:
    model = load_model("mlp", **SMALL)
    one, same = (train(payload_of(model), 5) for _ in range(2))
    assert digests(one) == digests(same)
    assert digests(train(payload_of(model, seed=2), 5)) != digests(one)
    assert digests(train(payload_of(load_model("mlp", **SMALL, data_seed=7)), 5)) != digests(one)


def test_what_is_wiped_holds_weights_data_gradients_and_moments(payload_of: MakePayload) -> None:
    from glasshouse.runtime.wipe import wipe_tensors

    session = train(payload_of(load_model("mlp", **SMALL)), 2)
    held = session.buffers()
    weights = len(session.trainable())
    assert len(held) == 2 + weights + weights + 3 * weights  # data; weights, gradients; step and two moments
    report = wipe_tensors(held)
    assert report.host.read_back_zero
    assert not any(int(tensor.count_nonzero()) for tensor in session.trainable().values())
