"""What this machine is: identity for the same-machine proof, claims for evidence, load for telemetry.

Both arms record it at the edges of every slot; measurement compares. What the GPUs say is in gpus.py.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from glasshouse.attestation.claims import GpuClaim
from glasshouse.attestation.evidence import container_id
from glasshouse.canonical import domain_hash, sha256_hex
from glasshouse.runtime import gpus
from glasshouse.runtime.blinding import host_digest
from glasshouse.runtime.results import MachineReading


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def boot_id() -> str:
    """The kernel's random boot id: two legs with the same one ran on one booted machine."""
    return _read("/proc/sys/kernel/random/boot_id")


def namespace(kind: str) -> str:
    """Inode of one of this process's namespaces, as the kernel names it, digits only."""
    return "".join(char for char in str(Path(f"/proc/self/ns/{kind}").readlink()) if char.isdigit())


def own_container_id(salt: bytes) -> str:
    """Which container this is, without its name, of which the run's salt hides even a guess."""
    return container_id(
        boot_id(), namespace("pid"), namespace("mnt"), host_digest(socket.gethostname(), salt)
    )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, streamed."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def interpreter_sha256() -> str:
    """SHA-256 of the interpreter's executable, behind its links."""
    return file_sha256(Path(sys.executable).resolve())


def distributions_sha256() -> str:
    """One digest over every installed distribution's name, version and RECORD file."""
    found = []
    for distribution in metadata.distributions():
        record = distribution.read_text("RECORD") or ""
        name = str(distribution.metadata["Name"] or "").lower()
        found.append(f"{name}=={distribution.version} {sha256_hex(record.encode())}")
    return distributions_digest(found)


def distributions_digest(lines: Iterable[str]) -> str:
    """Digest of lines `name==version RECORD-SHA-256`, in any order; a line counts once."""
    return domain_hash("glasshouse/distributions/v1", [line.encode() for line in sorted(set(lines))]).hex()


def swap_total_kib() -> int:
    """Size of the host's swap in KiB: memory of ours may be written there."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("SwapTotal:"):
            return int(line.split()[1])
    return 0


def identity(allocation: str, salt: bytes) -> MachineReading:
    """The machine as the same-machine proof needs it; measurement/telemetry.py compares two of them.

    salt: the run's, so that nobody can confirm a guess at the host's name.
    """
    found = gpus.query_gpus()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return MachineReading(
        boot_id=boot_id(),
        hostname_digest=host_digest(socket.gethostname(), salt),
        allocation=allocation,
        gpu_names=[gpu["name"] for gpu in found],
        gpu_uuids=[gpu["uuid"] for gpu in found],
        pci_bus_ids=[gpu["pci.bus_id"] for gpu in found],
        driver=found[0]["driver_version"] if found else "",
        ecc_uncorrected=[gpu["ecc.errors.uncorrected.volatile.total"] for gpu in found],
        uptime_sec=float((_read("/proc/uptime") or "0").split()[0]),
        cpu_model=cpu,
        cpu_count=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        load_avg1=float((_read("/proc/loadavg") or "0").split()[0]),
    )


def gpu_claim() -> GpuClaim | None:
    """GPU identity as a claim: names, UUIDs, driver; None without a GPU. Self-reported."""
    found = gpus.query_gpus()
    if not found:
        return None
    return GpuClaim(
        [gpu["name"] for gpu in found], [gpu["uuid"] for gpu in found], found[0]["driver_version"]
    )


class Telemetry:
    """Samples the machine once a second in a thread, and at both edges, identically in both arms.

    A sample is {"t": seconds since start, "cpuSec": of this process, "othersPct": busy share of all
    CPUs that is not ours, "stealPct", "gpu"?: [...]}; at most `limit` are kept by halving the rate of
    what is kept. The last one, of the edges, has "otherProcesses" on the GPUs where there are any.
    """

    def __init__(self, interval: float = 1.0, limit: int = 240, *, on_gpu: bool = False) -> None:
        self._interval = interval
        self._limit = limit
        self._on_gpu = on_gpu
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._started = time.monotonic()
        self._watch: gpus.GpuWatch | None = None
        self._others = 0
        self.samples: list[dict[str, Any]] = []

    def __enter__(self) -> Telemetry:
        self._watch = gpus.watch_gpus()
        if self._watch is not None:
            self._others = gpus.other_gpu_processes(self._on_gpu)
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(timeout=15)
        if self._watch is not None:
            edge = {"t": round(time.monotonic() - self._started, 3), "gpu": self._watch.state()}
            edge["otherProcesses"] = max(self._others, gpus.other_gpu_processes(self._on_gpu))
            self.samples.append(edge)

    def _loop(self) -> None:
        stride = 1
        tick = 0
        before = _cpu_ticks()
        own_before = time.process_time()
        wall_before = time.monotonic()
        while not self._stop.wait(self._interval):
            tick += 1
            now = _cpu_ticks()
            own = time.process_time()
            wall = time.monotonic()
            if tick % stride == 0:
                self.samples.append(self._sample(before, now, own - own_before, wall - wall_before))
                if len(self.samples) > self._limit:
                    self.samples = self.samples[1::2]
                    stride *= 2
            before, own_before, wall_before = now, own, wall

    def _sample(
        self, before: tuple[int, int, int], now: tuple[int, int, int], own_sec: float, wall: float
    ) -> dict[str, Any]:
        busy = (now[0] - before[0]) / os.sysconf("SC_CLK_TCK")
        total = max(wall * (os.cpu_count() or 1), 1e-9)
        steal = (now[2] - before[2]) / os.sysconf("SC_CLK_TCK")
        sample: dict[str, Any] = {
            "t": round(time.monotonic() - self._started, 3),
            "cpuSec": round(time.process_time(), 3),
            "othersPct": round(min(100.0, max(0.0, 100.0 * (busy - own_sec) / total)), 2),
            "stealPct": round(min(100.0, 100.0 * steal / total), 2),
        }
        if self._watch is not None:
            sample["gpu"] = self._watch.state()
        return sample


def _cpu_ticks() -> tuple[int, int, int]:
    """(busy, idle, steal) ticks of the whole machine from /proc/stat."""
    fields = [int(value) for value in _read("/proc/stat").splitlines()[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq, idle + iowait, steal
