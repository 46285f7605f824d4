"""The MLP workload as it runs on the pod, in both arms. Self-contained: torch, and the runtime's ranks.

An epoch is `batches_per_epoch` AdamW steps over a data set that stays on the device. Rows are
drawn from a seeded normal distribution and labelled by a fixed random linear teacher, so that the
loss falls for a reason. The initial weights come from the package, never from a seed here.
"""

import functools
import inspect
import os

import torch

from glasshouse.runtime import ranks, state

# Optimizer methods are wrapped to keep torch.compile out of them, and the first call of a wrapped one imports
# the compiler for that: more than a second of every launch. Nothing is compiled here; the plain methods do.
_method = inspect.unwrap(torch.optim.Optimizer.add_param_group)
setattr(_method, "__dynamo_disable", _method)


def build(config, tensors, device):
    """Return a session; see glasshouse/runtime/session.py for what a session is."""
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return MlpSession(config, tensors, torch.device(device))


class MlpSession:
    """Trains a multi-layer perceptron; one unit is one epoch."""

    unit = "epochs"

    def __init__(self, config, tensors, device):
        self.device = device
        self.rank, self.world = ranks.join(torch, device)
        self.dtype = getattr(torch, config["dtype"])
        self.batch = config["batch"]
        self.steps_per_unit = config["batches_per_epoch"]
        self.parameters = {name: self._load(spec, view) for name, (spec, view) in tensors.items()}
        self.layers = config["layers"] + 1
        weights = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(
            weights, lr=config["learning_rate"], weight_decay=config["weight_decay"]
        )
        # With the hooks that torch puts around every optimizer's step, so that others can count steps.
        plain = torch.optim.Optimizer.profile_hook_step(inspect.unwrap(torch.optim.AdamW.step))
        self.step = functools.partial(plain, self.optimizer)
        self.rows, self.labels = self._data(config)
        self.steps = 0
        self.last_loss = None
        count = sum(weight.numel() for weight in weights)
        matmul = sum(weight.numel() for weight in weights if weight.dim() == 2)
        self.info = {
            "rowsPerUnit": self.batch * self.steps_per_unit,
            "stepsPerUnit": self.steps_per_unit,
            # Forward 2 FLOPs per weight and row, backward twice that.
            "flopsPerUnit": 6 * matmul * self.batch * self.steps_per_unit,
            "trainableParams": count,
            "totalParams": count,
        }

    def _load(self, spec, view):
        flat = torch.frombuffer(view, dtype=getattr(torch, spec.dtype)).reshape(spec.shape)
        # A copy in both arms, so that both train in memory from the same allocator.
        return flat.clone().to(self.device, self.dtype).requires_grad_()

    def _data(self, config):
        generator = torch.Generator().manual_seed(config["data_seed"])
        count = self.batch * self.steps_per_unit
        rows = torch.randn(count, config["inputs"], generator=generator)
        teacher = torch.randn(config["inputs"], config["classes"], generator=generator)
        labels = (rows @ teacher).argmax(dim=1)
        return rows.to(self.device, self.dtype), labels.to(self.device)

    def run_unit(self):
        """Train one epoch."""
        self.run_steps(self.steps_per_unit)

    def run_steps(self, count):
        """Train `count` steps, a part of an epoch or more, and go on from there."""
        for _ in range(count):
            index = self.steps % self.steps_per_unit
            # Each rank takes its share of the batch, and gradients are averaged: the step is the same one.
            share = self.batch // self.world
            begin = index * self.batch + self.rank * share
            hidden = self.rows[begin : begin + share]
            for layer in range(self.layers):
                weight = self.parameters[f"layer{layer}.weight"]
                bias = self.parameters[f"layer{layer}.bias"]
                hidden = torch.nn.functional.linear(hidden, weight, bias)
                if layer < self.layers - 1:
                    hidden = torch.relu(hidden)
            loss = torch.nn.functional.cross_entropy(hidden.float(), self.labels[begin : begin + share])
            for weight in self.parameters.values():
                weight.grad = None
            loss.backward()
            loss = loss.detach()
            with torch.no_grad():
                if self.world > 1:
                    ranks.average(torch, [*(weight.grad for weight in self.parameters.values()), loss])
                self.step()
            self.steps += 1
        self.last_loss = loss

    def synchronize(self):
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def loss(self):
        """Return the last batch's loss; NaN before the first."""
        return float("nan") if self.last_loss is None else float(self.last_loss)

    def trainable(self):
        """Return what is trained, by name."""
        return {name: weight.detach() for name, weight in self.parameters.items()}

    def state(self):
        """Return what training goes on from: tensors in use, and plain values."""
        return state.taken(
            torch, self.parameters, self.optimizer, self.device, steps=self.steps, loss=self.loss()
        )

    def restore(self, tensors, values):
        """Go on from such a state; ValueError for another form."""
        self.steps, self.last_loss = state.put_back(
            torch, self.parameters, self.optimizer, self.device, tensors=tensors, values=values
        )

    def given(self):
        """Return the data, so that both arms' are compared by digest."""
        return {"rows": self.rows, "labels": self.labels}

    def buffers(self):
        """Return every tensor that holds data, weights or what came of them."""
        held = [self.rows, self.labels, *self.parameters.values()]
        held += [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        for kept in self.optimizer.state.values():
            held += [value for value in kept.values() if torch.is_tensor(value)]
        return held
