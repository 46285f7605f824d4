"""A workload whose speed is known: a unit takes `unit_ms` by the clock, whatever else the machine does.

So a block design over it has a true overhead of zero, and a known delay is found exactly. It has no torch:
its one tensor is a ctypes array with the few methods that the runtime asks of a tensor, and a launch takes a
fraction of a second. Everything around it is the real thing.
"""

import ctypes
import os
import pathlib
import time


class Device:
    type = "cpu"


class Array:
    """Float32 values in memory that can be hashed, searched for and wiped."""

    dtype = "float32"
    device = Device()
    requires_grad = False

    def __init__(self, count, seed):
        self.shape = (count,)
        self.held = (ctypes.c_float * count)(
            *((seed * 7919 + i * 104729) % 65537 / 65537 for i in range(count))
        )

    def numel(self):
        return len(self.held)

    def element_size(self):
        return 4

    def data_ptr(self):
        return ctypes.addressof(self.held)

    def nbytes(self):
        return ctypes.sizeof(self.held)

    def detach(self):
        return self

    contiguous = cpu = untyped_storage = detach


class Clocked:
    unit = "units"
    steps_per_unit = 1

    def __init__(self, params, files, device):
        self.info = {"stepsPerUnit": 1}
        self.seconds = params["unit_ms"] / 1000
        self.weights = Array(1024, 1)
        self.done = 0
        self.due = None

    def run_unit(self):
        # By absolute times, so that a late wake-up is made up for by the units after it.
        if self.due is None:
            self.due = time.monotonic()
        self.due += self.seconds
        time.sleep(max(0.0, self.due - time.monotonic()))
        self.done += 1
        self.weights.held[self.done % 1024] += 0.5

    def synchronize(self):
        # What the harness spends between two of these, on purpose, is never made up for.
        self.due = None

    def loss(self):
        return 1.0 / (1.0 + self.done)

    def trainable(self):
        return {"weights": self.weights}

    def buffers(self):
        return [self.weights]


class Littering(Clocked):
    """Leaves plaintext in its folder, a child that holds all that it held, and a program in hiding."""

    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        pathlib.Path(os.environ["TMPDIR"], "plaintext").write_bytes(bytes(self.weights.held))
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.chdir("/")
                os.closerange(0, 100)
                os.execve("/bin/sleep", ["sleep", params["hidden"]], {})
            os._exit(0)
