"""The sealer: a child of the trainer that encrypts outputs to the owner before they leave.

It is forked so that the content key never lives in the process that runs the owner's code. What
it inherits are host copies of the outputs; it touches no device and no torch function after fork.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import asdict

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.linux import PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.session import Tensor
from glasshouse.sealing.container import TensorSpec
from glasshouse.sealing.outputs import SealedOutputs, seal_outputs


def seal_in_child(
    descriptor: int, tensors: Mapping[str, Tensor], *, owner_public: bytes, context: Mapping[str, str]
) -> SealedOutputs:
    """Seal `tensors` to the owner's public key, written to `descriptor`; return digests and size.

    Runs in a forked child; raises LegError(Code.SEALING_FAILED) when it does not end well.
    """
    views = []
    keep = []
    for name, tensor in tensors.items():
        view, host = harness.tensor_bytes(tensor)
        keep.append((tensor, host))
        views.append((TensorSpec(name, harness.dtype_name(host), tuple(host.shape)), view))
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(read_end)
            with os.fdopen(descriptor, "wb", closefd=False) as out:
                report = seal_outputs(
                    out, owner_public=owner_public, context=context, files={}, tensors=iter(views)
                )
            os.write(write_end, json.dumps(asdict(report)).encode())
            code = 0
        except BaseException:  # noqa: BLE001 -- a forked child must never unwind into its parent's frames
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    os.close(descriptor)
    with os.fdopen(read_end, "rb") as stream:
        data = stream.read(1 << 16)
    _, status = os.waitpid(pid, 0)
    for tensor, host in keep:
        harness.wipe_copy(tensor, host)
    if os.waitstatus_to_exitcode(status) != 0:
        raise LegError("the sealer did not end well", code=Code.SEALING_FAILED)
    try:
        return SealedOutputs(**json.loads(data))
    except (TypeError, ValueError) as error:
        raise LegError("the sealer reported nothing", code=Code.SEALING_FAILED) from error
