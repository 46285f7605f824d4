"""How many bytes a run sends to its machine, and what each arm spends on getting its payload.

    python bench/upload_once.py [MIB [ORDER]]      1024 MiB, order=abba; needs root and an OpenSSH server

One public run of a workload without torch (tests/e2e/workloads/clocked.py) with so many MiB of random data,
over an OpenSSH server on this machine; a relay in front of it counts what goes up and down. Seconds are from
the run's own launch.json files.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from upload import server

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.e2e.relay import relay  # noqa: E402

WORKLOAD = [
    "model=custom", "payload=public", "model.entry=tests/e2e/workloads/clocked.py:Clocked",
    "+model.params.unit_ms=2", "measure=quick", "measure.discard_sec=0.05", "duration=3.2",
    # What is counted here is bytes: a busy machine may wake a sleeper late.
    "measure.duration_tolerance_pct=50",
]  # fmt: skip


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    order = sys.argv[2] if len(sys.argv) > 2 else "abba"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "rows.bin"
        with data.open("wb") as out:
            for _ in range(mib):
                out.write(secrets.token_bytes(1 << 20))
        (folder / "ssh").mkdir()
        with server(folder / "ssh") as (endpoint, _), relay(endpoint.port) as passed:
            known = folder / "known_hosts"
            (line,) = endpoint.host_key.lines
            known.write_text(line.replace(f":{endpoint.port} ", f":{passed.port} ") + "\n")
            done = subprocess.run(
                [
                    sys.executable, "-m", "glasshouse", "run", "--json", "--out", folder / "runs", *WORKLOAD,
                    f"order={order}", f"model.data=[{data}]", "provider=ssh", "provider.host=127.0.0.1",
                    f"provider.port={passed.port}", "provider.user=root", f"provider.key={endpoint.key_path}",
                    f"provider.known_hosts={known}", f"provider.python={sys.executable}",
                    f"provider.workdir={folder / 'work'}",
                ],
                cwd=ROOT, env=os.environ | {"GLASSHOUSE_HOME": str(folder / "home")},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            sys.exit(done.stderr)
        (record,) = json.loads(done.stdout)["runs"]
        seconds = defaultdict[str, list[float]](list)
        legs = sorted((Path(record["folder"]) / "bundle/legs").iterdir())
        for leg in legs:
            arm = leg.name.partition("-")[2]
            for name, value in json.loads((leg / "launch.json").read_bytes())["timings"].items():
                seconds[f"{arm} {name}"].append(value)
    size = mib << 20
    print(f"{record['status']}, order={order}, {len(legs)} legs, payload {mib} MiB")
    print(f"up:   {passed.sent / 2**20:.1f} MiB, {passed.sent / size:.3f} times the payload")
    print(f"down: {passed.received / 2**20:.1f} MiB")
    for name, found in sorted(seconds.items()):
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name}: median {statistics.median(found):.2f} s ({spread}) over {len(found)}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
