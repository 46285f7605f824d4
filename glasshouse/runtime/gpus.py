"""What the machine's NVIDIA driver says: who the GPUs are, what they do, and whether CUDA opens.

Identity comes from `nvidia-smi`, which every GPU image has. What is sampled while a leg is timed comes from
NVML itself where nvidia-ml-py is installed beside torch (0.005 s a sample on an H100), else from one call of
`nvidia-smi` a sample (0.025 s there): its own loop is not relied on, since some versions hold lines back in a
pipe.
A field that a driver refuses costs that field and no other.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glasshouse.codes import Code
from glasshouse.errors import LegError

TIMEOUT_SEC = 10.0  # a driver without persistence takes seconds to open; a sick one never answers
REFUSED = "[N/A]"  # nvidia-smi's own word for what a device does not say

IDENTITY_FIELDS = (
    "name",
    "uuid",
    "pci.bus_id",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
)
# What a GPU's samples hold, by the tool's name for it.
WATCHED = {
    "clocks.sm": "smMhz",
    "clocks.mem": "memMhz",
    "temperature.gpu": "tempC",
    "power.draw": "powerW",
    "clocks_throttle_reasons.active": "throttle",
    "utilization.gpu": "utilPct",
}
Rows = list[dict[str, str]]

# CUDA driver API, cuda.h: with CUDA_ERROR_STUB_LIBRARY and CUDA_ERROR_NO_DEVICE there is nothing to open.
_NOTHING_TO_OPEN = frozenset({0, 34, 100})


class NvidiaSmi:
    """The driver's command-line tool, asked field by field where it refuses them together."""

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._refused: set[str] = set()
        self.sick = False

    def query(self, fields: tuple[str, ...]) -> Rows:
        """One dict a GPU; a refused field is "[N/A]". Empty where the tool fails altogether or hangs."""
        asked = [field for field in fields if field not in self._refused]
        rows = self._ask(asked) if asked else None
        if rows is None and len(asked) > 1 and not self.sick:
            alone = {field: self._ask([field]) for field in asked}
            self._refused |= {field for field, found in alone.items() if found is None}
            known = [found for found in alone.values() if found]
            if known and len({len(found) for found in known}) == 1:
                rows = [{} for _ in known[0]]
                for found in known:
                    for row, values in zip(rows, found, strict=True):
                        row.update(values)
        return [{field: row.get(field, REFUSED) for field in fields} for row in rows or ()]

    def _ask(self, fields: list[str]) -> Rows | None:
        lines = self._lines(f"--query-gpu={','.join(fields)}")
        if lines is None:
            return None
        rows = [[value.strip() for value in line.split(",")] for line in lines]
        return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]

    def compute_pids(self) -> set[str]:
        """Processes that compute on the GPUs, as the driver numbers them; it may list none at all."""
        lines = self._lines("--query-compute-apps=pid")
        return {line.strip() for line in lines or () if line.strip().isdigit()}

    def _lines(self, query: str) -> list[str] | None:
        if self.sick:
            return None
        command = [self._tool, query, "--format=csv,noheader,nounits"]
        try:
            reply = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=True)
        except subprocess.TimeoutExpired:
            self.sick = True  # it would hang each time anew
            return None
        except (OSError, subprocess.SubprocessError):
            return None
        return reply.stdout.splitlines()


def nvidia_smi() -> NvidiaSmi | None:
    """The tool on the path, or None."""
    tool = shutil.which("nvidia-smi")
    return None if tool is None else NvidiaSmi(tool)


def query_gpus() -> Rows:
    """Identity of each GPU; empty where there is none or the driver does not name it."""
    tool = nvidia_smi()
    rows = tool.query(IDENTITY_FIELDS) if tool is not None else []
    # One that has no name, UUID or place proves nothing about which it is.
    return [row for row in rows if REFUSED not in [row[field] for field in IDENTITY_FIELDS[:4]]]


def other_gpu_processes(on_gpu: bool) -> int:
    """Number of compute processes on the GPUs apart from this one; on_gpu: whether this one computes there.

    In a container the driver may number processes as the host does, so ours is one of those listed
    rather than a pid to look for; it may also list nothing at all, which counts as nobody.
    """
    tool = nvidia_smi()
    return 0 if tool is None else max(0, len(tool.compute_pids()) - on_gpu)


class GpuWatch:
    """The state of every GPU, asked for at each sample; opened before the clock starts."""

    def __init__(self, read: Callable[[], Rows]) -> None:
        self._read = read
        self._latest = read()

    def state(self) -> Rows:
        """One dict a GPU, of WATCHED's names; the last one known where the driver does not answer."""
        self._latest = self._read() or self._latest
        return self._latest


def watch_gpus() -> GpuWatch | None:
    """Watch by NVML, else by nvidia-smi; None where there is neither."""
    read = _nvml() or _tool()
    return None if read is None else GpuWatch(read)


def _tool() -> Callable[[], Rows] | None:
    tool = nvidia_smi()
    if tool is None:
        return None
    fields = tuple(WATCHED)
    return lambda: [{WATCHED[field]: row[field] for field in fields} for row in tool.query(fields)]


def _nvml() -> Callable[[], Rows] | None:
    """Read NVML in this process, in nvidia-smi's notation; None where it is missing or does not open."""
    try:
        import pynvml  # noqa: PLC0415 -- optional, and on the pod only
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    if not handles:
        return None
    readers: dict[str, Callable[[Any], str]] = {
        "smMhz": lambda gpu: str(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)),
        "memMhz": lambda gpu: str(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM)),
        "tempC": lambda gpu: str(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
        "powerW": lambda gpu: f"{pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000:.2f}",
        "throttle": lambda gpu: f"0x{pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu):016x}",
        "utilPct": lambda gpu: str(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
    }

    def one(gpu: Any) -> dict[str, str]:
        said = {}
        for name, reader in readers.items():
            try:
                said[name] = reader(gpu)
            except (pynvml.NVMLError, AttributeError):
                said[name] = REFUSED
        return said

    return lambda: [one(gpu) for gpu in handles]


def require_cuda(device: str) -> None:
    """Open CUDA where the machine has an NVIDIA GPU and the leg may use it.

    Raises LegError(Code.CUDA_UNAVAILABLE) where the driver refuses. torch would only warn and train on the
    processor, a hundred times slower, until the judge finds it out. An image whose torch has no CUDA is no
    fault of the driver: such a leg trains on the processor as before.
    """
    if device == "cpu" or not Path("/dev/nvidiactl").exists():
        return
    try:
        code = int(ctypes.CDLL("libcuda.so.1").cuInit(ctypes.c_uint(0)))
    except (OSError, AttributeError):
        return
    if code not in _NOTHING_TO_OPEN:
        raise LegError(
            f"the driver does not open CUDA in this leg (cuInit: {code})", code=Code.CUDA_UNAVAILABLE
        )
