"""How fast a sealed package loads, next to plaintext, in one run on one machine.

    python bench/sealed_load.py            # 1 GiB of bf16 tensors; needs the extra `train`; about a minute
    python bench/sealed_load.py --mib 256 --rounds 3 --json

Every way loads into host memory from the page cache, in turn, for several rounds. The table has each way's
median and extremes, and how its time compares to sealed loads of the same run: only ratios travel.

    sealed, as a leg does it   a forked custodian takes the pages; then the clock starts, as when the grant
                               comes; it opens the package (every byte decrypted and authenticated) and forks
                               the trainer; the clock stops when the trainer reads it
    plain, pages taken before  the same bytes by preadv, in the same chunks and threads, into the same huge
                               pages, also taken before the clock starts
    sealed, pages in the load  open_package alone, the pages taken while it decrypts
    plain, pages in the load   likewise
    plain, 4 KiB pages         the same into ordinary pages: what page faults cost
    safetensors                load_file, then a copy of each tensor (load_file alone only maps the file)
    tensorizer                 the tensorizer package, every tensor loaded to the processor; plain, encrypted

The two of tensorizer are there if this interpreter finds it (and libsodium, for its encryption). It is no
dependency of ours; into a folder of its own, beside the torch that is here, it goes by

    pip install --target /tmp/tensorizer --no-deps tensorizer protobuf psutil redis hiredis libnacl \\
        boto3 botocore jmespath s3transfer python-dateutil six urllib3
    PYTHONPATH=/tmp/tensorizer python bench/sealed_load.py

and reads with twice as many readers as there are threads: that was its fastest of 1, 2 and 4 on two cores.

A job loads once, into memory it never touched. So malloc's mmap threshold is pinned: otherwise glibc raises
it after the first round, and safetensors' later copies would go to pages that are already there. A hypervisor
may take free memory back within seconds, and giving it again costs several times what is measured here: so
before every load that much memory is taken and let go, outside the clock, for all ways alike. Other work on
the machine only ever slows a load down, so when it is busy compare the best times, not the medians.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glasshouse.sealing.container import (
    TensorSpec,
    fresh_payload_key,
    open_package,
    seal_package,
)
from glasshouse.sealing.memory import populate, private_region
from glasshouse.sealing.packing import CHUNK_BYTES, thread_count

LEG, ALONE = "sealed, as a leg does it", "sealed, pages in the load"
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
    tensorized, missing = tensorizer_ways(folder, tensors, threads)

    package = open_package(folder / "sealed", payload_key=key, manifest_hash=digest, threads=threads)
    assert all(package.tensors[name][1] == view for name, view in views.items()), "the sealed load is wrong"
    package.wipe()
    del package, views, specs, tensors

    sealed_file, plain_file = folder / "sealed", folder / "plain"

    def opened(_: None) -> object:
        return open_package(sealed_file, payload_key=key, manifest_hash=digest, threads=threads)

    def taken() -> mmap.mmap:
        region = private_region(size)
        populate(region, len(region), threads)
        return region

    def plain_small() -> mmap.mmap:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_NOHUGEPAGE)
        return region

    def read(region: mmap.mmap) -> object:
        return read_plain(plain_file, region, size, threads)

    def safetensors(_: None) -> object:
        return {name: tensor.clone() for name, tensor in load_file(folder / "safetensors").items()}

    # What happens before the clock starts, and what it measures.
    ways: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
        LEG: (lambda: Leg(sealed_file, key, digest, threads), Leg.run),
        "plain, pages taken before": (taken, read),
        ALONE: (lambda: None, opened),
        "plain, pages in the load": (lambda: private_region(size), read),
        "plain, 4 KiB pages": (plain_small, read),
        "safetensors": (lambda: None, safetensors),
        **{name: (lambda: None, load) for name, load in tensorized.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = list(ways.items())
        for name, (prepare, load) in order if turn % 2 else reversed(order):
            warm_memory(2 * size, threads)
            prepared = prepare()
            started = time.perf_counter()
            loaded = load(prepared)
            elapsed = time.perf_counter() - started
            if isinstance(prepared, Leg):
                prepared.end(size)
            del prepared, loaded
            if turn:  # the first round warms page cache and allocator
                seconds[name].append(elapsed)
    return {
        "machine": machine(),
        "loadAverage": round(os.getloadavg()[0], 1),
        "mib": size >> 20,
        "threads": threads,
        "rounds": rounds,
        "sealSec": round(seal_sec, 2),
        "missing": missing,
        "ways": {
            name: {
                "gibPerSec": round(size / 2**30 / statistics.median(times), 2),
                "lowest": round(size / 2**30 / max(times), 2),
                "highest": round(size / 2**30 / min(times), 2),
                "timeOverLeg": round(statistics.median(times) / statistics.median(seconds[LEG]), 2),
                "bestOverLeg": round(min(times) / min(seconds[LEG]), 2),
                "timeOverAlone": round(statistics.median(times) / statistics.median(seconds[ALONE]), 2),
                "bestOverAlone": round(min(times) / min(seconds[ALONE]), 2),
            }
            for name, times in seconds.items()
        },
    }


class Leg:
    """The processes of a leg (leg_load.py), with the pages taken; `run` lets them open the package."""

    def __init__(self, path: Path, key: bytearray, digest: str, threads: int) -> None:
        program = Path(__file__).with_name("leg_load.py")
        self.process = subprocess.Popen(
            [sys.executable, program, path, digest, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.grant, self.said = self.process.stdin, self.process.stdout
        self.grant.write(key.hex().encode())
        assert self.said.read(1) == b"r", "the custodian did not take its pages"

    def run(self) -> None:
        """Return once the trainer reads the opened package."""
        self.grant.write(b"g")
        assert self.said.read(1) == b"t", "no trainer came to hold the package"

    def end(self, size: int) -> None:
        """Wait until the trainer has read every page of `size` bytes and its memory is free again."""
        with self.process:
            assert int(self.said.readall()) * mmap.PAGESIZE >= size


def warm_memory(size: int, threads: int) -> None:
    """Take memory and let it go: what a hypervisor took back is there again."""
    region = private_region(size)
    populate(region, len(region), threads)
    region.close()


def tensorizer_ways(
    folder: Path, tensors: dict[str, torch.Tensor], threads: int
) -> tuple[dict[str, Callable[[None], object]], str]:
    """Ways to load the same tensors with tensorizer; where it cannot be used, none of them and why."""
    try:
        from tensorizer import (  # noqa: PLC0415 -- no dependency of ours
            DecryptionParams,
            EncryptionParams,
            TensorDeserializer,
            TensorSerializer,
        )
    except ImportError as error:
        return {}, f"tensorizer is not compared: {error}"
    secret = EncryptionParams.random()

    def way(name: str, encryption: object, decryption: object) -> Callable[[None], object]:
        path = str(folder / name)
        writer = TensorSerializer(path, encryption=encryption)
        writer.write_state_dict(tensors)
        writer.close()

        def load(_: None) -> object:
            return TensorDeserializer(path, device="cpu", num_readers=2 * threads, encryption=decryption)

        loaded = load(None)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items()), path
        return load

    return {
        "tensorizer": way("tensorizer", None, None),
        "tensorizer, encrypted": way("encrypted", secret, DecryptionParams.from_key(secret.key)),
    }, ""


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
        f"{'way':<27}{'GiB/s':>6}{'lowest':>8}{'highest':>8}   time / leg's    time / sealed in the load",
        f"{'':<49}   median  best   median  best",
    ]
    for name, row in report["ways"].items():
        speeds = f"{row['gibPerSec']:>6.2f}{row['lowest']:>8.2f}{row['highest']:>8.2f}"
        over = f"{row['timeOverLeg']:>9.2f}{row['bestOverLeg']:>6.2f}"
        over += f"{row['timeOverAlone']:>9.2f}{row['bestOverAlone']:>6.2f}"
        lines.append(f"{name:<27}{speeds}{over}")
    if report["missing"]:
        lines += ["", report["missing"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
