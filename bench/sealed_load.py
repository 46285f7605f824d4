"""How fast a sealed package loads, next to plaintext, in one run on one machine.

    python bench/sealed_load.py            # 1 GiB of bf16 tensors; needs the extra `train`; about a minute
    python bench/sealed_load.py --mib 256 --rounds 3 --json

Every way loads into fresh host memory from the page cache, in turn, for several rounds. The table has each
way's median and extremes, and how its time compares to the sealed load of the same run: only ratios travel.

    sealed             open_package: every byte decrypted and authenticated, into huge pages
    plain, same pages  the same bytes by preadv, in the same chunks and threads, into the same huge pages
    plain, 4 KiB       the same into ordinary pages: what page faults cost
    safetensors        load_file, then a copy of each tensor (load_file alone only maps the file)

A job loads once, into memory it never touched. So malloc's mmap threshold is pinned: otherwise glibc raises
it after the first round, and safetensors' later copies would go to pages that are already there. Other work
on the machine only ever slows a load down, so when it is busy compare the best times, not the medians.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import mmap
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from glasshouse.sealing.container import TensorSpec, fresh_payload_key, open_package, seal_package
from glasshouse.sealing.memory import private_region
from glasshouse.sealing.packing import CHUNK_BYTES, thread_count

M_MMAP_THRESHOLD = -3  # malloc.h; setting it also turns its dynamic adjustment off
ROWS, COLUMNS = 2048, 4096  # 16 MiB of bf16 a tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="MiB of tensors, in steps of 16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dir", type=Path, default=None, help="where the files go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = thread_count(options.threads)
    torch.set_num_threads(threads)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        report = measure(Path(folder), options.mib // 16, options.rounds, threads)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


def measure(folder: Path, count: int, rounds: int, threads: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"layer.{index:03d}": torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()
        for index in range(count)
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    key = fresh_payload_key()
    views = {name: memoryview(tensor.view(torch.uint8).numpy()).cast("B") for name, tensor in tensors.items()}
    started = time.perf_counter()
    with (folder / "sealed").open("wb") as out:
        specs = [
            (TensorSpec(name, "bfloat16", tuple(tensors[name].shape)), view) for name, view in views.items()
        ]
        digest = seal_package(out, payload_key=key, files={}, tensors=specs, extra={}, threads=threads)
    seal_sec = time.perf_counter() - started
    with (folder / "plain").open("wb") as out:
        for view in views.values():
            out.write(view)
    save_file(tensors, folder / "safetensors")

    package = open_package(folder / "sealed", payload_key=key, manifest_hash=digest, threads=threads)
    assert all(package.tensors[name][1] == view for name, view in views.items()), "the sealed load is wrong"
    package.wipe()
    del package, views, specs, tensors

    def sealed() -> object:
        return open_package(folder / "sealed", payload_key=key, manifest_hash=digest, threads=threads)

    def plain_huge() -> object:
        return read_plain(folder / "plain", private_region(size), size, threads)

    def plain_small() -> object:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_NOHUGEPAGE)
        return read_plain(folder / "plain", region, size, threads)

    def safetensors() -> object:
        return {name: tensor.clone() for name, tensor in load_file(folder / "safetensors").items()}

    ways: dict[str, Callable[[], object]] = {
        "sealed": sealed,
        "plain, same pages": plain_huge,
        "plain, 4 KiB": plain_small,
        "safetensors": safetensors,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = list(ways.items())
        for name, load in order if turn % 2 else reversed(order):
            started = time.perf_counter()
            loaded = load()
            elapsed = time.perf_counter() - started
            del loaded
            if turn:  # the first round warms page cache and allocator
                seconds[name].append(elapsed)
    base, best = statistics.median(seconds["sealed"]), min(seconds["sealed"])
    return {
        "machine": machine(),
        "loadAverage": round(os.getloadavg()[0], 1),
        "mib": size >> 20,
        "threads": threads,
        "rounds": rounds,
        "sealSec": round(seal_sec, 2),
        "ways": {
            name: {
                "gibPerSec": round(size / 2**30 / statistics.median(times), 2),
                "lowest": round(size / 2**30 / max(times), 2),
                "highest": round(size / 2**30 / min(times), 2),
                "timeOverSealed": round(statistics.median(times) / base, 2),
                "bestOverSealed": round(min(times) / best, 2),
            }
            for name, times in seconds.items()
        },
    }


def read_plain(path: Path, region: mmap.mmap, size: int, threads: int) -> mmap.mmap:
    """Read `size` bytes of a file into `region`, in the chunks and threads of a sealed load."""
    turn = itertools.count()
    descriptor = os.open(path, os.O_RDONLY)

    def worker() -> None:
        with memoryview(region) as view:
            while (start := next(turn) * CHUNK_BYTES) < size:
                end = min(size, start + CHUNK_BYTES)
                with view[start:end] as piece:
                    assert os.preadv(descriptor, [piece], start) == end - start

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(worker) for _ in range(threads)]:
            future.result()
    os.close(descriptor)
    return region


def machine() -> str:
    flags = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    has = " ".join(name for name in ("aes", "vaes", "avx512f", "sha_ni") if name in flags)
    return f"{len(os.sched_getaffinity(0))} processors, {platform.machine()} with {has or 'unknown flags'}"


def table(report: dict) -> str:
    run = f"{report['mib']} MiB bf16, {report['threads']} threads, {report['rounds']} rounds"
    lines = [
        f"{run}, {report['machine']}, load average {report['loadAverage']}",
        f"sealing took {report['sealSec']} s (SHA-256 of the plaintext, then encryption)",
        "",
        f"{'way':<20}{'GiB/s':>8}{'lowest':>9}{'highest':>9}   time / sealed (median, best)",
    ]
    for name, row in report["ways"].items():
        speeds = f"{row['gibPerSec']:>8}{row['lowest']:>9}{row['highest']:>9}"
        lines.append(f"{name:<20}{speeds}   {row['timeOverSealed']}x  {row['bestOverSealed']}x")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
