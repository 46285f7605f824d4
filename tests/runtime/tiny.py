"""A real workload without torch, sealed as source by the rig: floats in plain memory, one step a unit.

A test changes it by appending a subclass named Workload; see rig.py.
"""

import ctypes
import os  # noqa: F401  for what a test appends
import struct
import time


class Device:
    type = "cpu"

    def __str__(self):
        return self.type


class Storage:
    def __init__(self, memory):
        self.memory = memory

    def nbytes(self):
        return len(self.memory)

    def data_ptr(self):
        return ctypes.addressof((ctypes.c_char * len(self.memory)).from_buffer(self.memory))


class HostTensor:
    """The few names of torch.Tensor that the runtime uses, over a bytearray of float32."""

    dtype = "torch.float32"
    device = Device()

    def __init__(self, data):
        self.memory = bytearray(data)
        self.shape = (len(self.memory) // 4,)

    def detach(self):
        return self

    contiguous = cpu = detach

    def numel(self):
        return self.shape[0]

    def element_size(self):
        return 4

    def untyped_storage(self):
        return Storage(self.memory)

    def data_ptr(self):
        return Storage(self.memory).data_ptr()


class Tiny:
    unit = "steps"
    steps_per_unit = 1

    def __init__(self, params, files, device):
        self.params = params
        self.info = {"rowsPerUnit": 1}
        self.weights = HostTensor(4096)
        self.state = HostTensor(4096)
        # Filled in place: what os.urandom returns would stay behind in freed memory, where the scan finds it.
        with open("/dev/urandom", "rb", buffering=0) as source:  # noqa: PTH123  this text is sealed as it is
            source.readinto(self.weights.memory)
            source.readinto(self.state.memory)
        self.rows = {name: bytes(view) for name, view in files.items()}
        self.steps = 0

    def run_unit(self):
        time.sleep(0.002)
        self.steps += 1
        struct.pack_into("<f", self.weights.memory, 0, float(self.steps))

    def synchronize(self):
        pass

    def loss(self):
        return 1.0 / (1 + self.steps)

    def trainable(self):
        return {"weights": self.weights}

    def buffers(self):
        return [self.weights, self.state]


class Workload(Tiny):
    pass
