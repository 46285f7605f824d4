"""What the harness itself costs a step: the measured stretch over an empty workload, against a bare loop.

    python bench/harness_cost.py

The harness asks the clock around every unit, reads the loss about a hundred times a stretch, reports every
two seconds, and samples the machine once a second in a thread. All of it runs in both arms, so none of it is
an overhead of protection; it must be small all the same, or it would hide what it measures. Processor time is
counted, of one thread for the MLP, so that other work on the machine does not enter.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from glasshouse.runtime import harness, machine

SECONDS = 2.0
ROUNDS = 5


class Empty:
    """A workload that does nothing: what is left is the harness."""

    unit = "units"
    steps_per_unit = 1

    def run_unit(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def loss(self) -> float:
        return 1.0


def bare(session: Empty, units: int) -> float:
    """CPU seconds a unit of a loop that only calls the workload."""
    began = time.thread_time()
    for _ in range(units):
        session.run_unit()
    return (time.thread_time() - began) / units


def stretch(session: Empty) -> float:
    """CPU seconds a unit of the harness's measured stretch, its telemetry thread included."""
    losses: list[list[float]] = []
    throughput: list[list[float]] = []
    with machine.Telemetry():
        began = time.process_time()
        units, _ = harness._stretch(
            session, SECONDS, None, report=lambda _kind, _body: None, phase="measure",
            losses=losses, throughput=throughput,
        )  # fmt: skip
        spent = time.process_time() - began
    return spent / units


def mlp_unit_sec() -> tuple[float, int]:
    """Least processor seconds of one epoch of conf/model/mlp.yaml on one thread here, and its steps."""
    import torch  # noqa: PLC0415 -- only this part needs it
    from omegaconf import OmegaConf  # noqa: PLC0415

    from glasshouse.workloads import mlp_pod  # noqa: PLC0415

    path = Path(__file__).resolve().parents[1] / "conf" / "model" / "mlp.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    widths = [config["inputs"], *[config["hidden"]] * config["layers"], config["classes"]]
    tensors = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
            values = torch.randn(shape) * 0.05
            spec = SimpleNamespace(dtype="float32", shape=shape)
            tensors[f"layer{layer}.{part}"] = (spec, memoryview(bytearray(values.numpy().tobytes())))
    torch.set_num_threads(1)
    session = mlp_pod.build(config, tensors, "cpu")
    best = float("inf")
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        began = time.process_time()
        session.run_unit()
        best = min(best, time.process_time() - began)
    return best, int(config["batches_per_epoch"])


def main() -> None:
    session = Empty()
    load = os.getloadavg()[0]
    loop = min(bare(session, 1_000_000) for _ in range(ROUNDS))
    costs = sorted(stretch(session) for _ in range(ROUNDS))
    own = statistics.median(costs) - loop
    unit_sec, steps = mlp_unit_sec()
    print(
        json.dumps(
            {
                "loadAverage": round(load, 1),
                "bareNsPerUnit": round(1e9 * loop, 1),
                "harnessNsPerUnit": [round(1e9 * cost, 1) for cost in costs],
                "ownNsPerUnit": round(1e9 * own, 1),
                "mlpUnitMs": round(1e3 * unit_sec, 3),
                "mlpStepMs": round(1e3 * unit_sec / steps, 3),
                "ownPctOfUnit": round(100 * own / unit_sec, 5),
                # As if every unit were one step, which the MLP's are not.
                "ownPctOfStep": round(100 * own / (unit_sec / steps), 5),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
