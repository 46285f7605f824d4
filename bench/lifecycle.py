"""What the protection costs once a leg, step by step, and what the custodian holds.

    python bench/lifecycle.py              # 5 legs of model=mlp, then 3 of 256 MiB: about three minutes
    python bench/lifecycle.py --legs 9 --json
    python bench/lifecycle.py --legs 0 --large-legs 0 --huge-legs 1      # 2 GiB: ran in 24 GiB of memory
    python bench/lifecycle.py --ssh --legs 0 --huge-legs 2               # over an OpenSSH server

Each leg is a run of its own, `order=protected-only` on provider=local, as anyone would start it; the seconds
of each step are those that its record states as fixedCostSec. What the custodian holds at its peak (anonymous
memory, the sealed file not counted) is what its signed `unsealed` event says, less the package's own bytes.

The medians are kept in this machine's state folder, in the place of earlier ones: `glasshouse plan` says from
them what a payload is expected to cost.

Behind each leg its sealed outputs are opened by `glasshouse open`, as a person would (start of Python, key,
every digest, the safetensors file), and copied by `cp`, in turn, both from the page cache and without waiting
for the disk: openSec and cpSec, medians over the legs.

provider=local's SSH server is Python, in the controller's own process: both ends of a transfer share one
interpreter lock, which no rented machine does to them. --ssh runs the legs by provider=ssh against OpenSSH's
server instead (needs root, an OpenSSH server and scp), and after each fetches and sends the same sealed
outputs by `scp`: scpSec and scpThereSec. What that finds is not kept for `plan`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from glasshouse import config
from glasshouse.lifecycle import bench_figures
from glasshouse.measurement.expected_cost import FORMAT, Figures, Measured
from glasshouse.measurement.fixed_cost import STEPS
from glasshouse.workloads.sizes import payload_bytes

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["order=protected-only", "duration=1", "measure=quick", "measure.warmup_sec=0.2"]
# Two matrices of 8192 x 4096 float32 and little else: 256 MiB.
LARGE = ["model.inputs=4096", "model.hidden=8192", "model.classes=4096", "model.layers=1", "model.batch=8"]
# Two of 16384 x 16384: 2 GiB.
HUGE = ["model.inputs=16384", "model.hidden=16384", "model.classes=16384", "model.layers=1", "model.batch=8"]
OPENED = 3  # times that each leg's outputs are opened and copied


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--legs", type=int, default=5, help="legs with the small package")
    parser.add_argument("--large-legs", type=int, default=3, help="legs with the package of 256 MiB")
    parser.add_argument("--huge-legs", type=int, default=0, help="legs with the package of 2 GiB")
    parser.add_argument("--ssh", action="store_true", help="over an OpenSSH server, and beside scp")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as until:
        folder = Path(until.enter_context(tempfile.TemporaryDirectory()))
        ssh = openssh(until, folder) if options.ssh else None
        report = {
            name: measure(folder, legs, words, ssh)
            for name, legs, words in (
                ("model=mlp", options.legs, []),
                ("256 MiB", options.large_legs, LARGE),
                ("2 GiB", options.huge_legs, HUGE),
            )
            if legs
        }
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"loadAverage": load, "packages": report}, indent=1) if options.json else table(report))
    if not options.ssh:
        kept = bench_figures.write(figures(report, time.time()))
        print(f"kept for `glasshouse plan` in {kept}", file=sys.stderr)


class Ssh(NamedTuple):
    """How an OpenSSH server is used: by a run, and by scp, which names what is there behind `far`."""

    settings: list[str]
    scp: list[str]
    far: str


def openssh(until: contextlib.ExitStack, folder: Path) -> Ssh:
    """Start a server that lasts as long as `until`."""
    from upload import scp_options, server  # noqa: PLC0415  beside this file, and needed here alone

    endpoint, _ = until.enter_context(server(folder))
    settings = [
        "provider=ssh", f"provider.host={endpoint.host}", f"provider.port={endpoint.port}",
        f"provider.user={endpoint.user}", f"provider.key={endpoint.key_path}",
        f"provider.known_hosts={folder}/known_hosts", f"provider.python={endpoint.python}",
        f"provider.workdir={folder}/pod",
    ]  # fmt: skip
    return Ssh(settings, ["scp", *scp_options(endpoint, folder)], f"{endpoint.user}@{endpoint.host}:")


def measure(folder: Path, legs: int, words: list[str], ssh: Ssh | None) -> dict[str, Any]:
    launches, over, size = [], [], 0
    words = [*words, *(ssh.settings if ssh else [])]
    for _ in range(legs):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "glasshouse",
                "run",
                "--json",
                "--out",
                str(folder / "runs"),
                *SHORT,
                *words,
            ],
            cwd=ROOT,
            env=os.environ | {"GLASSHOUSE_HOME": str(folder / "home")},
            capture_output=True,
            text=True,
            check=True,
        )
        (record,) = json.loads(done.stdout)["runs"]
        assert record["status"] == "verified", record
        launches.append(record["figures"]["fixedCostSec"] | opened(Path(record["folder"]), folder, ssh))
        bundle = Path(record["folder"]) / "bundle"
        lines = (bundle / "legs/s000-protected/events.jsonl").read_bytes().splitlines()
        unsealed = next(event["body"] for event in map(json.loads, lines) if event["type"] == "unsealed")
        size = unsealed["bytes"]
        over.append(unsealed["heldKib"] / 1024 - size / 2**20)
    return {
        "legs": legs,
        "payloadBytes": payload_bytes(config.load([*SHORT, *words])),
        "packageMib": round(size / 2**20, 1),
        "custodianOverMib": round(max(over), 1),
        "steps": {
            step: {
                "median": round(statistics.median(found), 3),
                "lowest": round(min(found), 3),
                "highest": round(max(found), 3),
            }
            for step in (*STEPS, "totalSec", "openSec", "cpSec", "scpThereSec", "scpSec")
            if (found := [launch[step] for launch in launches if step in launch])
        },
    }


def figures(report: dict[str, Any], now: float) -> Figures:
    """What of a report is kept; `now` in Unix seconds."""
    sizes = [
        Measured(
            payload_bytes=part["payloadBytes"],
            launches=part["legs"],
            steps={step: part["steps"][step]["median"] for step in STEPS if step in part["steps"]},
        )
        for part in report.values()
    ]
    growing = sorted(sizes, key=lambda each: each.payload_bytes)
    return Figures(format=FORMAT, measured_at=now, sizes=tuple(growing))


def opened(run: Path, folder: Path, ssh: Ssh | None) -> dict[str, float]:
    """Median seconds in which the run's sealed outputs are opened, and in which they are copied."""
    sealed = sorted((run / "outputs").iterdir())
    ways: dict[str, list[Any]] = {
        "openSec": [sys.executable, "-m", "glasshouse", "open", run, "--to", folder / "opened", "--json"],
        "cpSec": ["cp", *sealed, folder / "opened"],
    }
    if ssh is not None:
        ways["scpThereSec"] = [*ssh.scp, *sealed, f"{ssh.far}{folder}/opened/"]
        ways["scpSec"] = [*ssh.scp, *(f"{ssh.far}{path}" for path in sealed), folder / "opened"]
    took: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(OPENED):
        for way in ways if number % 2 else reversed(ways):
            (folder / "opened").mkdir()
            began = time.perf_counter()
            subprocess.run(
                ways[way],
                cwd=ROOT,
                env=os.environ | {"GLASSHOUSE_HOME": str(folder / "home")},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            took[way].append(time.perf_counter() - began)
            shutil.rmtree(folder / "opened")
    shutil.rmtree(run / "outputs")
    return {way: statistics.median(times) for way, times in took.items()}


def table(report: dict[str, Any]) -> str:
    head = [f"{name}, {part['packageMib']} MiB, {part['legs']} legs" for name, part in report.items()]
    lines = ["| median s (lowest to highest) | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for step in next(iter(report.values()))["steps"]:
        cells = [part["steps"][step] for part in report.values()]
        texts = [f"{cell['median']:.2f} ({cell['lowest']:.2f} to {cell['highest']:.2f})" for cell in cells]
        lines.append(f"| {step} | " + " | ".join(texts) + " |")
    over = [f"{part['custodianOverMib']} MiB" for part in report.values()]
    lines.append("| custodian's peak over the package | " + " | ".join(over) + " |")
    return "\n".join([*lines, "", f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors"])


if __name__ == "__main__":
    main()
