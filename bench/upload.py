"""What a sealed package and its outputs take over SSH on loopback, there and back, beside scp.

    python bench/upload.py [MIB [ROUNDS]]      1024 MiB, 5 rounds; needs root, an OpenSSH server and scp

All go to one OpenSSH server on this machine, whose cores sender, receiver and whatever else runs share. They
take turns, and each starts from a fresh connection. As in a run, a package is not hashed on its way (its
reader authenticates it) and what is fetched is compared with a SHA-256 here. Beside the speed it counts the
processor seconds of each end, which other work on the machine changes less. The target: scp's speed.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glasshouse.canonical import sha256_hex
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.remote.pod import Pod

SSHD = "/usr/sbin/sshd"


@contextmanager
def server(folder: Path) -> Iterator[tuple[Endpoint, int]]:
    """An OpenSSH server with its default ciphers, and keys of its own; its process id beside."""
    if not Path(SSHD).exists() or shutil.which("scp") is None or os.geteuid() != 0:
        sys.exit(
            "error: needs root, an OpenSSH server and scp: apt-get install openssh-server openssh-client"
        )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/client.pub\nPidFile none\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\n"
    )
    public = (folder / "host.pub").read_text().split()
    line = f"[127.0.0.1]:{port} {public[0]} {public[1]}"
    (folder / "known_hosts").write_text(f"{line}\n")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    endpoint = Endpoint(
        "127.0.0.1", port, "root", folder / "client", HostKey("pinned", (line,)), sys.executable, str(folder)
    )
    try:
        for _ in range(100):
            with socket.socket() as ready:
                if ready.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield endpoint, process.pid
    finally:
        process.terminate()
        process.wait()


def scp_options(endpoint: Endpoint, folder: Path) -> list[str]:
    """What `scp` is given for `server`'s endpoint: its keys, and nothing of the user's own."""
    said = {"BatchMode": "yes", "UserKnownHostsFile": f"{folder}/known_hosts", "IdentitiesOnly": "yes"}
    options = ["-q", "-P", str(endpoint.port), "-i", str(endpoint.key_path), "-F", "none"]
    return options + [word for name, value in said.items() for word in ("-o", f"{name}={value}")]


def spent_here() -> float:
    """Processor seconds of this process and of the children it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def spent_there(pid: int) -> float:
    """Processor seconds of the server `pid` and of the sessions that ended, with what ran in them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def ended(pid: int) -> None:
    """Wait until the server has no session left."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while children.read_text().strip():
        time.sleep(0.02)


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory(prefix="gh-upload-") as name, server(Path(name)) as (endpoint, pid):
        folder = Path(name)
        source, target = folder / "source", folder / "target"
        with source.open("wb") as out:
            for _ in range(mib):
                out.write(os.urandom(1 << 20))  # random: nothing on the way may win by compressing
        os.sync()

        digest = sha256_hex(source.read_bytes())
        options = scp_options(endpoint, folder)

        def put() -> None:
            with Pod(endpoint) as pod:
                pod.put(source, str(target), checked=False)

        def fetch() -> None:
            with Pod(endpoint) as pod:
                pod.fetch_file(str(source), target, max_bytes=1 << 40, sha256=digest)

        def scp_there() -> None:
            subprocess.run(["scp", *options, source, f"root@127.0.0.1:{target}"], check=True)

        def scp_back() -> None:
            subprocess.run(["scp", *options, f"root@127.0.0.1:{source}", target], check=True)

        ways: list[tuple[str, Callable[[], None]]] = [
            ("put", put), ("scp there", scp_there), ("fetch", fetch), ("scp back", scp_back),
        ]  # fmt: skip
        took: dict[str, list[float]] = {label: [] for label, _ in ways}
        spent: dict[str, list[tuple[float, float]]] = {label: [] for label, _ in ways}
        for number in range(rounds):
            for label, way in ways if number % 2 else reversed(ways):
                target.unlink(missing_ok=True)
                here, there = spent_here(), spent_there(pid)
                began = time.perf_counter()
                way()
                took[label].append(time.perf_counter() - began)
                ended(pid)
                spent[label].append((spent_here() - here, spent_there(pid) - there))
                if target.stat().st_size != source.stat().st_size:
                    sys.exit(f"error: {label} sent something else")
                here, there = spent[label][-1]
                print(
                    f"round {number + 1}  {label:9}  {mib / took[label][-1]:7.1f} MiB/s  "
                    f"processor: {here:5.2f} s here, {there:5.2f} s there",
                    flush=True,
                )
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"\n| {mib} MiB, {rounds} rounds in turn | best MiB/s | median MiB/s | processor s, this end "
        "| server's end |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for label, title in (
        ("put", "`Pod.put` of a sealed package"),
        ("scp there", "`scp` there"),
        ("fetch", "`Pod.fetch_file` of signed outputs"),
        ("scp back", "`scp` back"),
    ):
        times = took[label]
        here, there = (statistics.median(ends) for ends in zip(*spent[label], strict=True))
        print(
            f"| {title} | {mib / min(times):.0f} | {mib / statistics.median(times):.0f} "
            f"| {here:.1f} | {there:.1f} |"
        )
    print()
    for ours, theirs in (("put", "scp there"), ("fetch", "scp back")):
        best = min(took[theirs]) / min(took[ours])
        middle = statistics.median(took[theirs]) / statistics.median(took[ours])
        print(f"{ours} / {theirs}: {best:.2f} by best times, {middle:.2f} by medians (target: 1)")


if __name__ == "__main__":
    main()
