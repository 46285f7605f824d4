"""Look at a GPU machine before anything is measured on it; each failure is named and survived.

    python tools/gpu_look.py     a JSON document; exit 0 where CUDA opens, also as a protected leg opens it

Every step is a process of its own with a deadline, so a driver that hangs costs that step alone:

    driver     nvidia-smi, all fields together and each by itself
    nvml       nvidia-ml-py, each call by itself
    cuda       torch opens the device and multiplies
    confined   the same in a process that is confined as a protected leg's trainer is
    sealed     one tensor sealed, unsealed in memory, taken to the device, wiped there and read back
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEP_SEC = 60.0


def driver() -> dict[str, Any]:
    """What nvidia-smi says of each field that Glasshouse asks for."""
    from glasshouse.runtime import gpus

    tool = gpus.nvidia_smi()
    if tool is None:
        raise RuntimeError("nvidia-smi is not on the path")
    fields = (
        *gpus.IDENTITY_FIELDS,
        *gpus.WATCHED,
        "power.limit",
        "clocks.max.sm",
        "memory.total",
        "mig.mode.current",
    )
    began = time.monotonic()
    rows = gpus.query_gpus()
    once = time.monotonic() - began
    return {"gpus": rows, "seconds": round(once, 4), "fields": {name: tool.query((name,)) for name in fields}}


def nvml() -> dict[str, Any]:
    """What NVML says through nvidia-ml-py, and how long a sample takes."""
    from glasshouse.runtime import gpus

    read = gpus._nvml()
    if read is None:
        raise RuntimeError("nvidia-ml-py is not installed, or NVML does not open")
    read()
    began = time.monotonic()
    sample = read()
    return {"sample": sample, "seconds": round(time.monotonic() - began, 4)}


def cuda() -> dict[str, Any]:
    """Open the device with torch and multiply once."""
    began = time.monotonic()
    import torch

    imported = time.monotonic() - began
    began = time.monotonic()
    square = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    total = float((square @ square).float().sum())
    torch.cuda.synchronize()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(0),
        "capability": list(torch.cuda.get_device_capability(0)),
        "importSec": round(imported, 3),
        "openSec": round(time.monotonic() - began, 3),
        "right": total == 1024.0**3,
    }


def confined() -> dict[str, Any]:
    """Confine this process as runtime/trainer.py does, one measure after the other, and open CUDA then."""
    from glasshouse.runtime import gpus, linux

    scratch = Path(tempfile.mkdtemp(dir=linux.SHM if linux.SHM.is_dir() else None))
    private = linux.private_shm(scratch)
    os.chdir(linux.SHM if private else scratch)
    linux.harden()
    landlocked = linux.restrict_writes([linux.SHM if private else scratch], linux.gpu_devices())
    held = linux.drop_capabilities()
    gpus.require_cuda("auto")
    return {**cuda(), "landlock": landlocked, "privateShm": private, "capabilities": held}


def sealed() -> dict[str, Any]:
    """Seal a tensor, unseal it in memory, take it to the device, wipe it there."""
    import torch

    from glasshouse.canonical import record_json
    from glasshouse.runtime.trainer import wipe_tensors
    from glasshouse.sealing.container import TensorSpec, fresh_payload_key, open_package, seal_package

    data = os.urandom(64 << 20)
    key = fresh_payload_key()
    with tempfile.NamedTemporaryFile() as out:
        spec = TensorSpec("weights", "uint8", (len(data),))
        digest = seal_package(out, payload_key=key, files={}, tensors=[(spec, data)], extra={})
        out.flush()
        began = time.monotonic()
        package = open_package(out.name, payload_key=key, manifest_hash=digest)
        opened = time.monotonic() - began
    _, view = package.tensors["weights"]
    tensor = torch.frombuffer(view, dtype=torch.uint8).cuda()
    same = bool((tensor.cpu() == torch.frombuffer(bytearray(data), dtype=torch.uint8)).all())
    return {
        "unsealSec": round(opened, 4),
        "same": same,
        "wiped": record_json(wipe_tensors([tensor])),
        "package": package.wipe(),
    }


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    step.__name__: step for step in (driver, nvml, cuda, confined, sealed)
}


def look() -> dict[str, Any]:
    """Run every step; each answer is {"ok", "seconds", ...what it found or "error"}."""
    found: dict[str, Any] = {"python": platform.python_version(), "kernel": platform.release()}
    for name in STEPS:
        began = time.monotonic()
        command = [sys.executable, __file__, name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SEC, check=False)
            answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
            if done.returncode != 0:
                answer = {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:500]}
        except subprocess.TimeoutExpired:
            answer = {"error": f"no answer in {STEP_SEC:.0f} s"}
        except ValueError:
            answer = {"error": "its answer is no JSON"}
        found[name] = {"ok": "error" not in answer, "seconds": round(time.monotonic() - began, 2), **answer}
    return found


def main(argv: list[str]) -> int:
    """Run one step, or all of them."""
    if argv:
        print(json.dumps(STEPS[argv[0]]()))
        return 0
    found = look()
    print(json.dumps(found, indent=1))
    return 0 if found["cuda"]["ok"] and found["confined"]["ok"] else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(sys.argv[1:]))
