"""How long an attestation exchange takes, over HTTP, with the durable store.

    python bench/exchange.py               # 300 exchanges one after another, then 300 from 8 at once
    python bench/exchange.py --count 1000 --clients 16 --json

One exchange: request -> challenge -> evidence -> appraisal -> grant -> payload key in hand, with every
signature verified on both sides. Client, server and store are one process on one machine, so both sides'
CPU is in it and the network is not. Keys and tickets are made before the clock starts. Beside it, in the
same run: what one commit costs on this disk (SQLite WAL, synchronous=FULL); an exchange waits for five.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glasshouse.attestation.stage import Stage, StagedLaunch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="exchanges in each of the two series")
    parser.add_argument("--clients", type=int, default=8, help="clients at once in the second series")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the database goes; its disk is what counts"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        report = measure(Path(folder), options.count, options.clients)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


def measure(folder: Path, count: int, clients: int) -> dict[str, Any]:
    with Stage(folder) as stage:
        for launch in [stage.launch() for _ in range(20)]:
            launch.honest()  # warm-up: imports, tables, connections
        commits = [_timed(lambda: stage.broker.store.log("bench", 0)) for _ in range(count)]
        one = [stage.launch() for _ in range(count)]
        started = time.perf_counter()
        serial = [_timed(launch.honest) for launch in one]
        serial_sec = time.perf_counter() - started
        many = [stage.launch() for _ in range(count)]
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            parallel = list(pool.map(lambda launch: _timed(launch.honest), many))
        parallel_sec = time.perf_counter() - started
        _check(stage, [*one, *many])
    return {
        "count": count,
        "commit": _spread(commits),
        "serial": {**_spread(serial), "perSec": count / serial_sec},
        "parallel": {**_spread(parallel), "perSec": count / parallel_sec, "clients": clients},
        "machine": {
            "cpus": os.cpu_count(),
            "arch": platform.machine(),
            "python": platform.python_version(),
            "load1": os.getloadavg()[0],
        },
    }


def _check(stage: Stage, launches: list[StagedLaunch]) -> None:
    """A fast exchange that released nothing would be no exchange."""
    if any(launch.released is None for launch in launches) or stage.unwrap_calls != len(launches) + 20:
        raise SystemExit("not every exchange released its key")


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50Ms": cuts[49], "p99Ms": cuts[98], "maxMs": max(values)}


def table(report: dict[str, Any]) -> str:
    lines = ["| | p50 ms | p99 ms | max ms | per second |", "|---|---|---|---|---|"]
    rows = {
        "one durable commit": report["commit"],
        "exchange, one client": report["serial"],
        f"exchange, {report['parallel']['clients']} clients": report["parallel"],
    }
    for name, row in rows.items():
        rate = f"{row['perSec']:.0f}" if "perSec" in row else ""
        lines.append(f"| {name} | {row['p50Ms']:.1f} | {row['p99Ms']:.1f} | {row['maxMs']:.1f} | {rate} |")
    machine = report["machine"]
    lines.append(
        f"\n{report['count']} exchanges a series; {machine['cpus']} CPUs, {machine['arch']}, "
        f"Python {machine['python']}, load {machine['load1']:.1f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
