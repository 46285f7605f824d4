"""One leg without a controller: a broker in this process, a sealed package, the archive as a program."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.appraise import Reference
from glasshouse.attestation.broker import Broker
from glasshouse.attestation.evidence import container_id
from glasshouse.attestation.server import serve
from glasshouse.attestation.store import Store
from glasshouse.canonical import b64u, canonical_json
from glasshouse.remote.sweep_script import cgroups
from glasshouse.runtime import machine
from glasshouse.runtime.archive import build_archive
from glasshouse.runtime.blinding import host_digest
from glasshouse.sealing.container import fresh_payload_key, seal_package
from glasshouse.sealing.grant import KemKey, generate_kem_key, kem_public_bytes
from glasshouse.sealing.outputs import open_outputs
from glasshouse.spec import Policy

TINY = (Path(__file__).parent / "tiny.py").read_text()
NOBODY = 65534
POLICY = Policy(
    name="standard",
    freshness_sec=60,
    require_landlock=True,
    require_memfd_secret=False,
    allow_host_key_first_use=True,
    anti_debug_profile="standard",
)


@dataclass
class Launched:
    """A leg that was launched: its supervisor's pid, its guard's, and its folder."""

    pid: int
    guard: int
    folder: Path
    names: dict[str, str]

    def wait(self, seconds: float = 40) -> dict[str, Any]:
        wait_until((self.folder / "result.json").exists, seconds, "result.json")
        result = json.loads((self.folder / "result.json").read_bytes())
        wait_until(lambda: not alive(self.pid) and not alive(self.guard), 5, "the supervisor's end")
        return dict(result)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_bytes().splitlines()]

    def event(self, kind: str) -> dict[str, Any]:
        return next(event["body"] for event in self.events() if event["type"] == kind)

    def until(self, kind: str, seconds: float = 30) -> None:
        needle = f'"type":"{kind}"'.encode()
        events, result = self.folder / "events.jsonl", self.folder / "result.json"

        def there() -> bool:
            if events.exists() and needle in events.read_bytes():
                return True
            assert not result.exists(), result.read_text()
            return False

        wait_until(there, seconds, kind)

    def processes(self) -> list[int]:
        """Every living process of the leg, the supervisor first, its guard next."""
        first = [self.pid, self.guard]
        found = set(processes_of(str(self.folder)))
        return [pid for pid in first if pid in found] + sorted(found.difference(first))

    def children(self) -> list[int]:
        return [pid for pid in self.processes() if pid not in (self.pid, self.guard)]

    @property
    def log(self) -> str:
        return (self.folder / "runtime.log").read_text()


@dataclass
class Rig:
    """Everything a launch needs. `prefix` is put before the interpreter's command line."""

    base: Path
    broker: Broker
    port: int
    owner: Any
    run: str
    allocation: str
    manifest_hash: str
    package: Path
    markers: Path
    markers_hash: str
    marker: bytes
    archive: Path
    payload_key: bytes
    prefix: Sequence[str] = ()
    mount_namespace: str = ""
    user: int | None = None
    tickets: list[bytes] = field(default_factory=list)

    @property
    def pod(self) -> Path:
        """The pod folder, named after the allocation as the controller's is."""
        return self.base / self.allocation

    def reference(self, launch: int = 1, **changes: Any) -> Reference:
        interpreter = Path(sys.executable).resolve()
        values: dict[str, Any] = {
            "run": self.run,
            "leg": "s000",
            "launch": launch,
            "allocation_id": "allocation-1",
            "container_id": container_id(
                machine.boot_id(),
                machine.namespace("pid"),
                self.mount_namespace or machine.namespace("mnt"),
                host_digest(os.uname().nodename, bytes(32)),
            ),
            "manifest_hash": self.manifest_hash,
            "runtime_sha256": machine.file_sha256(self.archive),
            "interpreter_sha256": machine.file_sha256(interpreter),
            "boot_id": machine.boot_id(),
            "pid_namespace": machine.namespace("pid"),
            "host_key": "pinned",
        }
        return Reference(**{**values, **changes})

    def params(self, launch: int = 1, **changes: Any) -> dict[str, Any]:
        stretch = {"warmup_sec": 0.0, "measured_sec": 0.1, "steps": None, "delay_pct": 0.0}
        values = {
            "arm": "protected",
            "run": self.run,
            "leg": "s000",
            "launch": launch,
            "leg_dir": str(self.pod / f"leg-{launch}"),
            "allocation": self.allocation,
            "public_allocation": "0" * 64,
            "stretch": stretch,
            "device": "cpu",
            "deadline_sec": 30,
            "broker_public": b64u(self.broker.public_bytes),
            "broker_port": self.port,
            "allocation_id": "allocation-1",
            "manifest_hash": self.manifest_hash,
            "package": str(self.package),
            "markers": str(self.markers),
            "markers_hash": self.markers_hash,
        }
        seconds = changes.pop("seconds", None)
        if seconds is not None:
            stretch["measured_sec"] = seconds
        return {**values, **changes}

    def ticket(self, launch: int = 1) -> bytes:
        ticket = self.broker.issue_ticket(self.reference(launch), POLICY)
        self.tickets.append(ticket)
        return ticket

    def launch(self, launch: int = 1, *, ticket: bytes | None = None, **changes: Any) -> Launched:
        params = self.params(launch, **changes)
        stdin = canonical_json(params) + b"\n" + (ticket or self.ticket(launch))
        folder = Path(params["leg_dir"])
        done = subprocess.run(
            [*self.prefix, sys.executable, "-I", str(self.archive), "launch", str(folder)],
            input=(b"go\n" if self.prefix else b"") + stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        pid = json.loads(done.stdout.splitlines()[-1])["pid"]
        # 0: it is gone already, and so is the supervisor.
        guard = next((found for found in processes_of(str(folder)) if pid in _children_of(found)), 0)
        return Launched(pid, guard, folder, {"run": self.run, "leg": "s000", "launch": str(launch)})

    def open(self, leg: Launched, name: str) -> Any:
        """Open sealed outputs or log as their owner."""
        context = {**leg.names, "manifestHash": self.manifest_hash}
        return open_outputs(leg.folder / name, self.owner, context=context)

    def scratch(self) -> list[Path]:
        return [*Path("/dev/shm").glob(f"{self.allocation}*"), *self.pod.glob(f"leg-*/{self.allocation}*")]


@contextlib.contextmanager
def rig(
    source: str = "",
    *,
    data: Mapping[str, bytes] | None = None,
    params: Mapping[str, Any] | None = None,
    base_source: str = TINY,
    user: int | None = None,
    spares: Sequence[KemKey] = (),
) -> Iterator[Rig]:
    """Seal `base_source` and `source` (which may replace the class Workload) and serve its key.

    spares: further keys of the owner's.
    """
    base = Path(tempfile.mkdtemp(prefix="gh-rig-"))
    name = f"gh-20260101-000000-{secrets.token_hex(8)}"
    key = fresh_payload_key()
    owner = generate_kem_key()
    run = "20260101-000000-aaaaaa"
    pod = base / name
    pod.mkdir(mode=0o700)
    package, markers, archive = pod / "package.sealed", pod / "markers.sealed", pod / "runtime.zip"
    archive.write_bytes(build_archive()[0])
    files = {
        "workload.py": (base_source + "\n" + source).encode(),
        "config.json": canonical_json(dict(params or {})),
        **{f"data.{key}": value for key, value in (data or {}).items()},
    }
    extra = {
        "builder": "Workload",
        "ownerPublicKey": b64u(b"".join(map(kem_public_bytes, (owner, *spares)))),
        "matchSalt": b64u(bytes(32)),
    }
    with package.open("xb") as out:
        digest = seal_package(out, payload_key=key, files=files, tensors=(), extra=extra)
    marker = secrets.token_bytes(32)
    with markers.open("xb") as out:
        markers_digest = seal_package(out, payload_key=key, files={"marker": marker}, tensors=(), extra={})
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, True)
        store = stack.enter_context(Store(f"sqlite:///{base / 'broker.db'}", secrets.token_bytes(32)))
        broker = Broker(store, Ed25519PrivateKey.generate())
        broker.register_payload(run, digest, key, max_grants=10)
        server = stack.enter_context(serve(broker))
        made = Rig(
            base=base,
            broker=broker,
            port=server.port,
            owner=owner,
            run=run,
            allocation=name,
            manifest_hash=digest,
            package=package,
            markers=markers,
            markers_hash=markers_digest,
            marker=marker,
            archive=archive,
            payload_key=bytes(key),
            user=user,
        )
        if user is not None:
            made.prefix, made.mount_namespace = stack.enter_context(_unprivileged(base, user))
            for path in (base, pod, package, markers, archive):
                os.chown(path, user, user)
        try:
            yield made
        finally:
            for pid in processes_of(str(base)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for path in made.scratch():
                shutil.rmtree(path, ignore_errors=True)
            for cgroup in cgroups(name):
                with contextlib.suppress(OSError):
                    cgroup.rmdir()


@contextlib.contextmanager
def _unprivileged(base: Path, user: int) -> Iterator[tuple[list[str], str]]:
    """A command prefix that drops to `user` without any capability, in a mount namespace of its own.

    There, folders that only root may enter but that hold the interpreter are opened up.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, setpriv and unshare")
    script = ["set -e"]
    for number, root in enumerate(dict.fromkeys((sys.base_prefix, sys.prefix))):
        shut = next((p for p in reversed(Path(root).parents) if not p.stat().st_mode & 0o001), None)
        if shut is not None:
            hold = base / f"hold{number}"
            hold.mkdir()
            script += [f"mount --bind '{root}' '{hold}'"]
            script += [f"grep -q ' {shut} tmpfs' /proc/mounts || mount -t tmpfs -o mode=755 opened '{shut}'"]
            script += [f"mkdir -p '{root}'", f"mount --bind '{hold}' '{root}'"]
    namespace = base / "namespace"
    script += [f"readlink /proc/self/ns/mnt > '{namespace}'", "cat > /dev/null"]
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "\n".join(script)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(
            lambda: holder.poll() is not None or (namespace.exists() and namespace.read_text() != ""),
            10,
            "a mount namespace",
        )
        if holder.poll() is not None:
            pytest.skip(f"no mount namespace here: {holder.communicate()[1].decode()[-200:]}")
        inode = "".join(char for char in namespace.read_text() if char.isdigit())
        drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        drop += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--"]
        yield [*enter, "sh", "-c", 'read go; exec "$@"', "sh", *drop], inode
    finally:
        holder.communicate(b"")


def forms(secret: bytes) -> list[bytes]:
    """A secret as bytes, hex and base64url."""
    return [secret, secret.hex().encode(), b64u(secret).encode()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def _children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def processes_of(text: str) -> list[int]:
    """Pids of living processes whose command line holds `text`, this one apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.01)


__all__ = [
    "NOBODY",
    "POLICY",
    "TINY",
    "Launched",
    "Rig",
    "alive",
    "forms",
    "processes_of",
    "rig",
    "wait_until",
]
