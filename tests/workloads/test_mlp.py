"""The MLP trains exactly what torch's own optimiser would, and starts without the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from types import SimpleNamespace
import torch
sys.path.insert(0, sys.argv[1])
from glasshouse.workloads import mlp_pod

config = dict(dtype="float32", batch=16, batches_per_epoch=4, layers=2, inputs=8, classes=3,
              learning_rate=0.01, weight_decay=0.01, data_seed=1)
generator = torch.Generator().manual_seed(0)
shapes = {"layer0": (12, 8), "layer1": (12, 12), "layer2": (3, 12)}
given = {}
for name, shape in shapes.items():
    for part, size in (("weight", shape), ("bias", shape[:1])):
        values = torch.randn(size, generator=generator) * 0.3
        given[f"{name}.{part}"] = (SimpleNamespace(dtype="float32", shape=size),
                                   memoryview(bytearray(values.numpy().tobytes())))
session = mlp_pod.build(config, given, "cpu")
for _ in range(5):
    session.run_unit()
assert "torch._dynamo" not in sys.modules, "the compiler was imported"

plain = {name: torch.frombuffer(view, dtype=torch.float32).reshape(spec.shape).clone().requires_grad_()
         for name, (spec, view) in given.items()}
optimizer = torch.optim.AdamW(list(plain.values()), lr=0.01, weight_decay=0.01)
for _ in range(5):
    for step in range(4):
        hidden = session.rows[16 * step : 16 * step + 16]
        for layer in range(3):
            weight, bias = plain[f"layer{layer}.weight"], plain[f"layer{layer}.bias"]
            hidden = torch.nn.functional.linear(hidden, weight, bias)
            hidden = torch.relu(hidden) if layer < 2 else hidden
        loss = torch.nn.functional.cross_entropy(hidden, session.labels[16 * step : 16 * step + 16])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
assert all(torch.equal(plain[name], session.parameters[name]) for name in plain)
assert float(loss) == session.loss()
"""


@pytest.mark.train
def test_training_is_adamw_bit_for_bit_and_imports_no_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(ROOT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
