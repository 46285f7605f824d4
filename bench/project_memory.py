"""What memory a project of many GiB takes on either side, while its data pass through and come back.

    python bench/project_memory.py [GIB [GIB_BACK]] [--json FILE] [--in FOLDER]      1 GiB there, 1/4 back

Makes GIB of random files (half of it in one, the rest from bytes to 64 MiB), runs `model=project` with them
over loopback SSH (upload.py: `server`; needs root and OpenSSH), by a command that hashes all it was given and
leaves GIB_BACK; opens what came back, and compares every byte. Meanwhile it looks, five times a second, at
what each side holds:

- controller: every process with this bench's GLASSHOUSE_HOME: the run, its watchdog, then `open`.
- pod: what descends from the SSH server or was launched in the pod's folder, and the scratch folder's tmpfs.

`held` is what the kernel cannot drop: anonymous memory (its share of what several have: PSS), and files in
memory. `mapped` is the PSS of mapped files on top of it, such as the sealed package while it is opened and
the interpreter's own: the kernel drops it when it needs room. A peak of less than a fifth of a second can be
missed. The bounds are on what is held: the controller under 500 MiB, the pod under the data plus 2 GiB.
Needs disk for three times GIB, and memory for GIB + GIB_BACK + 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upload import server  # beside this file

ROOT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
EVERY = 0.2  # seconds between two looks
BOUNDS = {"controller": 500 << 20, "pod": 2 << 30}  # bytes; the pod's beside its data
PIECE = 1 << 20
KINDS = ("held", "tmpfs", "all")  # of Side

# The project: it reads what it was given with what Python brings, and leaves a part of it as its outputs.
COMMAND = """
import hashlib, json, pathlib, sys

left, out, said = int(sys.argv[1]), pathlib.Path("out"), {}
out.mkdir()
for path in sorted(pathlib.Path("data").rglob("*.bin")):
    with path.open("rb") as stream:
        said[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if left:
        with path.open("rb") as stream, (out / path.name).open("wb") as copy:
            while left and (piece := stream.read(min(left, 1 << 20))):
                copy.write(piece)
                left -= len(piece)
(out / "read.json").write_text(json.dumps(said))
print("read", len(said), "files")
"""


@dataclass
class Side:
    """Bytes that one side has at a moment."""

    anonymous: int = 0
    tmpfs: int = 0
    mapped: int = 0

    @property
    def held(self) -> int:
        return self.anonymous + self.tmpfs

    @property
    def all(self) -> int:
        return self.held + self.mapped


def pss(pid: int) -> Side:
    """What a process has, its share of what it has with others; nothing where it has ended.

    PermissionError where it is closed to us.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Side()
    found = {name: int(kib) << 10 for name, kib in re.findall(r"^(Pss\w*): +(\d+) kB$", text, re.MULTILINE)}
    # Of files in memory that are mapped the tmpfs says all there is.
    return Side(anonymous=found.get("Pss_Anon", 0), mapped=found.get("Pss_File", 0))


def tmpfs_bytes(names: list[str]) -> int:
    """Bytes that the scratch folders of these allocations take in shared memory."""
    total = 0
    for name in names:
        for folder in Path("/dev/shm").glob(f"{name}*"):  # the names hold no wildcard
            for place, _, files in os.walk(folder):
                for file in files:
                    try:
                        total += os.lstat(os.path.join(place, file)).st_blocks * 512  # noqa: PTH118
                    except FileNotFoundError:
                        continue
    return total


class Looker:
    """Looks at both sides until it is stopped, and keeps the most that each had in each phase."""

    def __init__(self, home: Path, pod: Path, sshd: int) -> None:
        self.phase = "start"
        self.seconds: dict[str, float] = defaultdict(float)
        self.most: dict[str, dict[str, dict[str, int]]] = {}  # by phase, side, and what of it
        self.looks = 0
        self.fault: BaseException | None = None
        self._home, self._pod, self._sshd = f"GLASSHOUSE_HOME={home}".encode(), pod, sshd
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        if self.fault is not None:
            raise self.fault

    def _look(self) -> None:
        try:
            self._until_the_end()
        except BaseException as error:  # noqa: BLE001  said by `stop`: figures that lack a part are none
            self.fault = error

    def _until_the_end(self) -> None:
        before = time.monotonic()
        while not self._end.wait(EVERY):
            phase, found = self.phase, self._sides()
            now = time.monotonic()
            self.seconds[phase] += now - before
            before = now
            self.looks += 1
            kept = self.most.setdefault(phase, {name: dict.fromkeys(KINDS, 0) for name in found})
            for name, side in found.items():
                for kind in KINDS:
                    kept[name][kind] = max(kept[name][kind], getattr(side, kind))

    def _sides(self) -> dict[str, Side]:
        parents, owners = {}, {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes()
                variables = (entry / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:  # not one of ours: root may look at those
                continue
            if self._home in variables:
                owners[pid] = "controller"
            elif os.fsencode(self._pod) in words or pid == self._sshd:
                owners[pid] = "pod"
        sides = {"controller": Side(), "pod": Side()}
        for pid in parents:
            over: int | None = pid
            while over and over not in owners:
                over = parents.get(over)
            if over:
                side, one = sides[owners[over]], pss(pid)
                side.anonymous += one.anonymous
                side.mapped += one.mapped
        names = [entry.name for entry in self._pod.iterdir()] if self._pod.is_dir() else []
        sides["pod"].tmpfs = tmpfs_bytes(names)
        return sides


def make(folder: Path, size: int) -> dict[str, str]:
    """`size` bytes in files of many sizes below a folder; SHA-256 by name."""
    dice = random.Random(size)
    sizes = [size // 2]
    while (left := size - sum(sizes)) > 0:
        sizes.append(min(left, int(2 ** dice.uniform(0, 26))))
    found = {}
    for number, each in enumerate(sizes):
        path = folder / f"{number % 7}" / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as out:
            for start in range(0, each, PIECE):
                piece = os.urandom(min(PIECE, each - start))
                digest.update(piece)
                out.write(piece)
        found[path.name] = digest.hexdigest()
    return found


def run(folder: Path, size: int, back: int) -> dict[str, Any]:
    data, project, home = folder / "data", folder / "project", folder / "home"
    for each in (data, project, home):
        each.mkdir()
    made = make(data, size)
    (project / "main.py").write_text(COMMAND)
    print(f"made {len(made)} files, {size / GIB:.2f} GiB", file=sys.stderr, flush=True)
    with server(folder) as (endpoint, pid):
        looker = Looker(home, folder / "pod", pid)
        here = os.environ | {"GLASSHOUSE_HOME": str(home)}
        command = [sys.executable, "-m", "glasshouse"]
        settings = [
            "run", "--json", "--out", str(folder / "runs"), "provider=ssh", "provider.host=127.0.0.1",
            f"provider.port={endpoint.port}", "provider.user=root", f"provider.key={endpoint.key_path}",
            f"provider.known_hosts={folder}/known_hosts", f"provider.python={sys.executable}",
            f"provider.workdir={folder}/pod", "model=project", f"model.folder={project}", "model.outputs=out",
            f"model.data=[{data}]", "--", "python", "main.py", str(back),
        ]  # fmt: skip
        with subprocess.Popen(
            [*command, *settings], cwd=ROOT, env=here, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                if line.startswith("  … "):
                    looker.phase = re.sub(r" [0-9.]+ MB", "", line[4:].strip())
                elif line.startswith("    fetching "):
                    looker.phase = "fetching"
            said = process.stdout.read()
        if process.returncode:
            looker.stop()
            sys.exit(f"error: the run ended with {process.returncode}: {said[-2000:]}")
        record = json.loads(said)["runs"][0]
        looker.phase = "open"
        opened = folder / "opened"
        subprocess.run(
            [*command, "open", record["folder"], "--to", opened], cwd=ROOT, env=here, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        looker.stop()
    same(opened, made, back)
    return {
        "bytes": size,
        "bytesBack": back,
        "files": len(made),
        "looks": looker.looks,
        "fixedCostSec": record["figures"]["fixedCostSec"],
        "phases": {
            phase: {"seconds": round(looker.seconds[phase], 1)}
            | {f"{name}Bytes": most for name, most in sides.items()}
            for phase, sides in looker.most.items()
        },
    }


def same(opened: Path, made: dict[str, str], back: int) -> None:
    """See that the job read what was made, and that what it left came back."""
    (told,) = opened.rglob("read.json")
    if json.loads(told.read_text()) != made:
        sys.exit("error: the project did not read what it was given")
    total = 0
    for path in sorted(told.parent.rglob("*.bin")):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total += path.stat().st_size
        # The last one may be a part: its bytes are the source's first.
        if digest != made[path.name] and digest != prefix(opened.parent / "data", path):
            sys.exit(f"error: {path.name} came back as something else")
    if total != back:
        sys.exit(f"error: {total} bytes came back, {back} were left")


def prefix(data: Path, part: Path) -> str:
    """SHA-256 of as many bytes as `part` has of the file that it is a copy of."""
    digest, left = hashlib.sha256(), part.stat().st_size
    (source,) = data.rglob(part.name)
    with source.open("rb") as stream:
        while left and (piece := stream.read(min(left, PIECE))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def table(report: dict[str, Any]) -> str:
    lines = [
        "| most MiB at a time | s | controller: held | and mapped | pod: held | of it tmpfs | and mapped |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for phase, part in report["phases"].items():
        here, there = part["controllerBytes"], part["podBytes"]
        cells = [here["held"], here["all"], there["held"], there["tmpfs"], there["all"]]
        mib = " | ".join(f"{each / 2**20:.0f}" for each in cells)
        lines.append(f"| {phase} | {part['seconds']:.0f} | {mib} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gib", type=float, nargs="?", default=1.0)
    parser.add_argument("gib_back", type=float, nargs="?")
    parser.add_argument("--json", type=Path, help="write what was found there, too")
    parser.add_argument("--in", dest="place", type=Path, help="where to make the folder: it needs room")
    options = parser.parse_args()
    size = int(options.gib * GIB)
    back = size // 4 if options.gib_back is None else int(options.gib_back * GIB)
    with tempfile.TemporaryDirectory(prefix="gh-project-", dir=options.place) as folder:
        report = run(Path(folder), size, back)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\nload average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, {report['looks']} looks")
    met = True
    for name, bound in BOUNDS.items():
        limit = bound + (size if name == "pod" else 0)
        most = max(part[f"{name}Bytes"]["held"] for part in report["phases"].values())
        met = met and most <= limit
        print(f"{name}: at most {most / 2**20:.0f} MiB held, of {limit / 2**20:.0f}")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
