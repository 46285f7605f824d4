"""What a search of a process's memory takes, beside reading the same memory and seeking each needle alone.

    python bench/residue.py                # 1 GiB held, 3 rounds: about a minute
    python bench/residue.py --gib 4 --json

Another process holds float32 numbers, with ten needles of a leg's lengths among them: two of 8 bytes, seven
of 24, one of 32. Its memory is gone through by ScannedProcess on every core: only read; searched as a leg
does it; searched as it was before, each needle by itself (tests/runtime/reference_search.py). Then it is
overwritten and read back, as a tensor is, and all three are done again. In turn, in one run.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import secrets
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from glasshouse.runtime import residue
from glasshouse.runtime.residue import Needle, ScannedProcess
from glasshouse.runtime.search import Search
from glasshouse.sealing.memory import overwrite
from tests.runtime.reference_search import ReferenceSearch

LENGTHS = [8, 8, *[24] * 7, 32]
BLOCK = 64 << 20


class Reading(Search):
    """Looks for nothing."""

    def took(self, position: int, size: int) -> None:
        self.keep(position, size)
        self.bytes_read += size


WAYS: dict[str, type[Search | ReferenceSearch]] = {
    "reading": Reading,
    "search": Search,
    "as before, each needle by itself": ReferenceSearch,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=1.0, help="what the other process holds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)  # be the other process
    options = parser.parse_args()
    size = int(options.gib * 1024) << 20
    if options.hold:
        hold(size)
        return
    report = {**measure(size, options.rounds), "loadAverage": round(os.getloadavg()[0], 1)}
    print(json.dumps(report, indent=1) if options.json else table(report, options))


def measure(size: int, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[tuple[float, float]]] = {}
    command = [sys.executable, __file__, "--hold", "--gib", str(size / (1 << 30))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        place = f"/proc/{child.pid}"
        scanned = ScannedProcess(os.open(f"{place}/mem", os.O_RDONLY), os.open(f"{place}/maps", os.O_RDONLY))
        needles = [Needle("planted", bytearray(secrets.token_bytes(length))) for length in LENGTHS]

        def tell(word: bytes) -> float:
            child.stdin.write(word)
            child.stdin.flush()
            return float(child.stdout.readline())

        for _ in range(rounds):
            tell(b"fill" + b"".join(needle.data for needle in needles))
            for when, expected in (("live", 1), ("after", 0)):
                if when == "after":
                    taken.setdefault("wipe", []).append((tell(b"wipe"), 0.0))
                for name, way in WAYS.items():
                    residue.Search = way
                    began = time.monotonic(), time.process_time()
                    counts = scanned.scan(needles).counts
                    seconds = time.monotonic() - began[0], time.process_time() - began[1]
                    taken.setdefault(f"{when}: {name}", []).append(seconds)
                    assert way is Reading or counts == [expected] * len(needles), (name, counts)
        child.stdin.close()
    return {
        "bytes": size,
        "rounds": rounds,
        "seconds": {
            name: {
                "wallBest": round(min(wall for wall, _ in found), 3),
                "wallMedian": round(statistics.median(wall for wall, _ in found), 3),
                "processorBest": round(min(processor for _, processor in found), 3),
            }
            for name, found in taken.items()
        },
    }


def hold(size: int) -> None:
    import numpy as np  # noqa: PLC0415 -- this process alone

    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = np.random.default_rng(1).standard_normal(min(size, BLOCK) // 4, dtype=np.float32)
    wanted = bytearray(sum(LENGTHS))
    while True:
        word = os.read(0, 4)
        if not word:
            return
        began = time.monotonic()
        if word == b"fill":
            view = memoryview(wanted)
            have = 0
            while have < len(wanted):
                have += os.readv(0, [view[have:]])
            for start in range(0, size, block.nbytes):
                memory[start : start + block.nbytes] = block[: (size - start) // 4]
            at = 0
            for index, length in enumerate(LENGTHS):
                place = (index + 1) * (size // 16) + index  # at every place of a word
                memory[place : place + length] = view[at : at + length]
                at += length
            overwrite(wanted)
        else:
            overwrite(memory)
        os.write(1, f"{time.monotonic() - began}\n".encode())


def table(report: dict[str, Any], options: argparse.Namespace) -> str:
    seconds = report["seconds"]
    measured = f"{options.gib:g} GiB held, {options.rounds} rounds, load average {report['loadAverage']}"
    lines = [
        f"| {measured} | best s | median s | processor s | times reading, best and median |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, found in seconds.items():
        when = name.partition(":")[0]
        read = seconds.get(f"{when}: reading")
        ratio = (
            f"{found['wallBest'] / read['wallBest']:.2f}, {found['wallMedian'] / read['wallMedian']:.2f}"
            if read
            else ""
        )
        lines.append(
            f"| {name} | {found['wallBest']:.2f} | {found['wallMedian']:.2f} | "
            f"{found['processorBest']:.2f} | {ratio} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
