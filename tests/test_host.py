"""Who a process is, on Linux and as a Mac says it; what is kept by the disk; what needs Linux."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse import host
from glasshouse.errors import UsageError
from glasshouse.providers import journal
from glasshouse.providers.journal import Journal
from glasshouse.providers.local import LocalProvider
from glasshouse.sealing.container import fresh_payload_key, seal_package
from glasshouse.sealing.packing import thread_count
from glasshouse.spec import LocalProvider as Config
from tests.mac.kit import HERE
from tests.specs import make_spec


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """macOS' ps and sysctl, played."""
    folder = tmp_path / "bin"
    shutil.copytree(HERE / "bin", folder)
    (folder / "proc").symlink_to("/proc")
    return folder


@pytest.fixture
def mac(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Play a Mac in this process; the folder of its tools."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # who a process is does not hang on where one is
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    host._boot.cache_clear()
    yield tools
    host._boot.cache_clear()


@pytest.fixture(params=["linux", "mac"])
def system(request: pytest.FixtureRequest) -> str:
    if request.param == "mac":
        request.getfixturevalue("mac")
    return str(request.param)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_known_again_until_it_ends(system: str, other: subprocess.Popen[bytes]) -> None:
    mine, named = host.identity(os.getpid()), host.identity(other.pid)
    boot, pid, start = named.split(":")
    assert (pid, boot != "", start != "") == (str(other.pid), True, True)
    assert host.identity(other.pid) == named
    assert host.lives(named)
    assert host.lives(mine)
    # Another process has its number now: started at another time, or since the machine was restarted.
    assert not host.lives(f"{boot}:{pid}:{start}0")
    assert not host.lives(f"0{boot}:{pid}:{start}")
    other.kill()
    other.wait()
    assert not host.lives(named)
    assert host.identity(other.pid) == f"{boot}:{other.pid}:"


def test_what_cannot_be_told_counts_as_alive_while_its_number_is_in_use(
    mac: Path, other: subprocess.Popen[bytes]
) -> None:
    named = host.identity(other.pid)
    (mac / "ps").write_text("#!/bin/sh\nexit 1\n")
    (mac / "sysctl").write_text("#!/bin/sh\nexit 1\n")
    host._boot.cache_clear()
    assert host.identity(other.pid) == f":{other.pid}:"
    assert host.lives(named)
    assert host.lives(f":{other.pid}:")
    other.kill()
    other.wait()
    assert not host.lives(named)
    assert not host.lives(f":{other.pid}:")


@pytest.mark.parametrize("named", ["", ":", "::", "a:b:c", ":-1:", f":{1 << 80}:", "a:1:b:c:d"])
def test_what_names_no_process_names_none_that_lives(named: str, system: str) -> None:
    assert not host.lives(named)


def test_a_journal_from_before_is_still_read(system: str, other: subprocess.Popen[bytes]) -> None:
    """What a controller was called until now: on Linux the same words, on a Mac neither boot nor start."""
    name = socket.gethostname()
    if system == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        start = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        written = f"{name}:{boot}:{other.pid}:{start}"
    else:
        written = f"{name}::{other.pid}:"
    assert journal._alive(written)
    assert not journal._alive(written.replace(name, "elsewhere", 1))
    other.kill()
    other.wait()
    assert not journal._alive(written)


def test_a_mac_is_the_same_machine_in_another_network(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.local")
    with Journal() as store:
        store.intend("run", "gh-run-a", "local", {})
        monkeypatch.setattr(socket, "gethostname", lambda: "dhcp-17.cafe.example")
        (entry,) = store.open_entries()
        assert (entry.controller_host, entry.controller_here, entry.controller_alive) == (
            "laptop.local", True, True,
        )  # fmt: skip
        # Containers share their machine's boot, and have names of their own.
        monkeypatch.setattr(sys, "platform", "linux")
        host._boot.cache_clear()
        assert (entry.controller_here, entry.controller_alive) == (False, False)


def test_what_is_synced_goes_past_the_drives_cache_where_that_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def full(descriptor: int, call: int) -> int:
        asked.append(call)
        return 0

    def refused(descriptor: int, call: int) -> int:
        asked.append(call)
        raise OSError(45, "Operation not supported")

    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append(0))
    with (tmp_path / "file").open("wb") as file:
        host.sync(file.fileno())
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
        for answer in (full, refused):
            monkeypatch.setattr(fcntl, "fcntl", answer)
            host.sync(file.fileno())
    assert asked == [0, 51, 51, 0]


def test_a_mac_seals_and_opens(mac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert thread_count(None) == 3
    key = fresh_payload_key()
    with (tmp_path / "sealed").open("wb") as out:
        digest = seal_package(out, payload_key=key, files={"a": b"b" * 5_000_000}, tensors=[], extra={})
    command = (
        "import mmap, os, resource, sys\n"
        "del os.sched_getaffinity, mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP\nsys.platform = 'darwin'\n"
        "from glasshouse.sealing.container import open_package, reserve\n"
        "path, digest, key = sys.argv[1], sys.argv[2], bytes.fromhex(sys.stdin.read())\n"
        "for source in (path, reserve(path)):\n"
        "    with open_package(source, payload_key=key, manifest_hash=digest) as package:\n"
        "        assert bytes(package.files['a']) == b'b' * 5_000_000\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "sealed"), digest],
        input=bytes(key).hex(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_leg_on_this_machine_needs_linux(mac: Path) -> None:
    with LocalProvider(Config(kind="local")) as provider, pytest.raises(UsageError) as caught:
        provider.check(make_spec())
    assert caught.value.exit_code == 2
    assert caught.value.line() == (
        "provider=local needs Linux (platform=darwin): gpu=a4000 rents a machine, provider=ssh takes one of "
        "yours; all other commands work here"
    )
