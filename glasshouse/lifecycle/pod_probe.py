"""What the pod's interpreter has, asked on the pod: `python -I -c SOURCE GPU MODULE...` there.

GPU is `must` where a GPU was asked for by name, else `any`. The exit status says what is missing (CODES), the
last line of stderr says it in words. Standard library only, but for what is asked about.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

CODES = {
    11: "python-unusable",
    12: "torch-missing",
    13: "torch-architecture",
    14: "gpu-probe-failed",
    15: "libraries-missing",
}
HPKE = "cryptography.hazmat.primitives.hpke"
AEGIS = "crypto_aead_aegis256_decrypt"  # of nacl.bindings; PyNaCl has it from release 1.6 on
# Devices of NVIDIA's driver, of Windows' for Linux guests, and of AMD's: without one, no GPU will be seen.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# How CUDA says that a kernel was not built for the device; torch has no exception of its own for it.
NO_KERNELS = ("no kernel image", "invalid device function")


def probe(gpu: str, modules: list[str]) -> tuple[int, str]:
    """Return (exit status, words); status 0 when all is there."""
    version = tuple(sys.version_info[:2])  # of the pod, not of where this is checked
    if version < (3, 11):
        return 11, f"Python is {version[0]}.{version[1]}, older than 3.11"
    if gpu == "any" and not any(os.path.exists(device) for device in GPU_DEVICES):  # noqa: PTH110
        return _installed(modules)
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001  a broken build fails in any way
        return 12, f"torch does not import: {_words(error)}"
    try:
        seen = torch.cuda.is_available()
        if seen:
            # Without kernels for this GPU, training would fail only after everything was sealed and uploaded.
            torch.zeros(8, device="cuda").add(1).sum().item()
    except Exception as error:  # noqa: BLE001  RuntimeError, in newer releases another
        text = _words(error)
        if any(words in text for words in NO_KERNELS):
            return 13, f"torch has no kernels for the GPU: {text}"
        return 14, f"the GPU does not compute: {text}"
    if gpu == "must" and not seen:
        return 14, "torch sees no GPU"
    try:
        for name in [*modules, HPKE]:
            importlib.import_module(name)
        return _cipher()
    except Exception as error:  # noqa: BLE001  as above
        return 15, f"a library is missing: {_words(error)}"


def _installed(modules: list[str]) -> tuple[int, str]:
    """Look whether all is installed: with no GPU to try, importing it would only cost every run seconds."""
    for name, status in (("torch", 12), *((name, 15) for name in [*modules, HPKE])):
        try:
            if importlib.util.find_spec(name) is None:
                return status, f"{name} is not installed"
        except ImportError as error:  # a package on the way to it
            return status, f"{name} is not installed: {_words(error)}"
    try:
        return _cipher()
    except Exception as error:  # noqa: BLE001  as above
        return 15, f"PyNaCl is not installed: {_words(error)}"


def _cipher() -> tuple[int, str]:
    """Look for the cipher by importing its library (30 ms): an old one has all modules and lacks it."""
    if not hasattr(importlib.import_module("nacl.bindings"), AEGIS):
        return 15, "PyNaCl is older than 1.6: it has no AEGIS-256"
    return 0, ""


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    status, said = probe(sys.argv[1], sys.argv[2:])
    sys.stderr.write(said + "\n")
    sys.exit(status)
