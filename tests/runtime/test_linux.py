"""Hardening, confinement and secret memory, each tried on a process of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glasshouse.runtime import linux
from glasshouse.sealing.memory import overwrite

needs_landlock = pytest.mark.skipif(linux.landlock_abi() == 0, reason="the kernel has no Landlock")


def in_child(work: Callable[[], Any]) -> Any:
    """Fork, run, return what it returned as JSON; the child's changes to itself end with it."""
    return answering_child(lambda _: work())


def answering_child(work: Callable[[int], Any]) -> Any:
    """As in_child, telling `work` the descriptor through which its answer will go."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(write_end, json.dumps(work(write_end)).encode())
            code = 0
        except BaseException:  # noqa: BLE001  (a forked child must not unwind into pytest)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(data)


def refusal(action: Callable[[], Any]) -> str:
    """The errno's name that `action` ends with, "" when it succeeds."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_hardening_is_read_back_from_the_kernel() -> None:
    def work() -> Any:
        before = linux.hardening_state()
        linux.harden()
        return asdict(before), asdict(linux.hardening_state())

    before, after = in_child(work)
    assert before["dumpable"] == 1  # 0: a test before this one closed the process that all of them run in
    assert not before["no_new_privs"]
    assert after == {"dumpable": 0, "core_limit": 0, "no_new_privs": True, "tracer_pid": 0}


def test_hardening_passes_to_forked_children() -> None:
    def work() -> Any:
        linux.harden()
        return in_child(lambda: asdict(linux.hardening_state()))

    assert in_child(work)["dumpable"] == 0


def test_a_tracer_is_seen() -> None:
    """A traced process reports its tracer; nothing else in the suite would notice if the field went blind."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read_end, 1)
        os._exit(0 if linux.hardening_state().tracer_pid == os.getppid() else 1)
    try:
        if linux._libc.ptrace(0x4206, pid, None, None) != 0:  # PTRACE_SEIZE
            pytest.skip("this machine lets nobody trace")
        os.write(write_end, b"x")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@needs_landlock
def test_landlock_confines_writes_to_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("old")
    (inside / "old").write_text("old")

    def work() -> Any:
        assert linux.restrict_writes([inside], [Path("/dev/null")])

        def through_link() -> None:
            (inside / "way-out").symlink_to(outside)
            (inside / "way-out" / "new").write_text("x")

        tries: dict[str, Callable[[], Any]] = {
            "create": lambda: (outside / "new").write_text("x"),
            "write": lambda: (outside / "old").write_text("x"),
            "append": lambda: (outside / "old").open("a"),
            "truncate": lambda: os.truncate(outside / "old", 0),
            "remove": (outside / "old").unlink,
            "folder": (outside / "f").mkdir,
            "symlink": lambda: (outside / "s").symlink_to("/"),
            "fifo": lambda: os.mkfifo(outside / "p"),
            "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(outside / "u")),
            "move-out": lambda: (inside / "old").rename(outside / "moved"),
            "link-in": lambda: os.link(outside / "old", inside / "link"),
            "through-link": through_link,
            "null-folder": lambda: Path("/dev/glasshouse-probe").write_text("x"),
        }

        found = {name: refusal(action) for name, action in tries.items()}
        fine = (
            refusal(lambda: (inside / "new").write_text("x")),
            refusal(lambda: Path("/dev/null").write_text("x")),
        )
        return found, fine, (outside / "old").read_text()

    found, fine, text = in_child(work)
    assert all(found.values()), found
    assert set(found.values()) <= {"EACCES", "EXDEV"}
    assert list(fine) == ["", ""]
    assert text == "old"  # reading stays free
    assert sorted(path.name for path in outside.iterdir()) == ["old"]


@needs_landlock
def test_landlock_cannot_be_undone_and_binds_programs_too(tmp_path: Path) -> None:
    def work() -> Any:
        linux.restrict_writes([tmp_path], [])
        linux.restrict_writes([Path("/")], [])  # a second, wider rule only narrows
        again = refusal(lambda: Path("/tmp/glasshouse-probe").write_text("x"))
        program = os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "echo x > /tmp/glasshouse-probe 2>/dev/null"])
        return again, program

    again, program = in_child(work)
    assert again == "EACCES"
    assert program != 0


@pytest.mark.skipif(linux.landlock_abi() < 6, reason="scopes came with Landlock ABI 6")
def test_a_confined_process_signals_its_own_and_nobody_else(tmp_path: Path) -> None:
    def work() -> Any:
        linux.restrict_writes([tmp_path], [])
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        own = refusal(lambda: os.kill(child, signal.SIGKILL))
        os.waitpid(child, 0)
        return own, refusal(lambda: os.kill(os.getppid(), 0))

    assert in_child(work) == ["", "EPERM"]


def test_dropped_capabilities_stay_dropped() -> None:
    def held() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)

    def work() -> Any:
        before = held()
        count = linux.drop_capabilities()
        return before, held(), count

    before, after, count = in_child(work)
    dropped = sum(1 << number for number in linux._DROPPED)
    assert after == before & ~dropped
    assert count == after.bit_count()


def test_secret_memory_holds_bytes_that_root_cannot_read_through_proc() -> None:
    secret = linux.secret_memory()
    if secret is None:
        pytest.skip("the kernel gives no secret memory")
    import ctypes
    import mmap

    plain = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for memory in (secret, plain):
        memory[:8] = b"a secret"
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (secret, plain)]
    owner = os.getpid()

    def work() -> Any:
        found = []
        with Path(f"/proc/{owner}/mem").open("rb", buffering=0) as memory:
            for address in addresses:
                try:
                    found.append(os.pread(memory.fileno(), 8, address).decode())
                except OSError as error:
                    found.append(errno.errorcode[error.errno or 0])
        return found

    assert in_child(work) == ["EIO", "a secret"]
    assert secret[:8] == b"a secret"


def _flags(address: int) -> list[str]:
    """The kernel's flags of the mapping at an address (proc(5), VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            low, _, high = words[0].partition("-")
            inside = int(low, 16) <= address < int(high, 16)
        elif inside and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError("no such mapping")


def test_locked_memory_is_neither_swapped_nor_dumped() -> None:
    import ctypes

    memory = linux.locked_memory()
    if memory is None:
        pytest.skip("RLIMIT_MEMLOCK allows not one page")
    memory[:8] = b"a secret"
    assert {"lo", "dd"} <= set(_flags(ctypes.addressof(ctypes.c_char.from_buffer(memory))))


def test_own_memory_is_read_and_a_bad_address_is_no_crash() -> None:
    import ctypes

    source = ctypes.create_string_buffer(b"needle in memory", 16)
    into = bytearray(16)
    assert linux.read_own_memory(ctypes.addressof(source), memoryview(into)) == 16
    assert into == b"needle in memory"
    assert linux.read_own_memory(0, memoryview(into)) == -1


def test_overwrite_reaches_every_byte_and_says_what_it_read_back() -> None:
    data = bytearray(os.urandom(100_003))
    assert overwrite(data) is True
    assert not any(data)
    assert overwrite(bytearray()) is True


def test_tmpfs_is_told_from_disk(tmp_path: Path) -> None:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {line[4]: line[line.index("-") + 1] for line in lines}
    for place, kind in kinds.items():
        if "\\" not in place and Path(place).is_dir():
            assert linux.is_tmpfs(Path(place)) == (kind == "tmpfs"), place
            assert linux.is_tmpfs(Path(place) / "not" / "there") == (kind == "tmpfs"), place


def test_devices_are_devices(tmp_path: Path) -> None:
    assert Path("/dev/null") in linux.gpu_devices()
    assert linux.OWN_THREADS not in linux.gpu_devices(tmp_path)
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / name).symlink_to("/dev/zero")
    (tmp_path / "nvidia-caps").mkdir()  # a folder and a plain file are no devices
    (tmp_path / "nvidia.txt").touch()
    assert linux.gpu_devices(tmp_path) == [
        Path("/dev/null"), *sorted(tmp_path.glob("nvidia[0c]*")), linux.OWN_THREADS
    ]  # fmt: skip


@needs_landlock
@pytest.mark.parametrize("allowed", [True, False], ids=["with a GPU", "without"])
def test_threads_are_named_where_cuda_needs_it_and_nothing_else_of_proc_is_written(
    tmp_path: Path, allowed: bool
) -> None:
    """cuInit of driver 580 writes /proc/self/task/TID/comm and ends with error 304 where it may not."""

    def work() -> Any:
        linux.restrict_writes([tmp_path], [linux.OWN_THREADS] if allowed else [])
        linux.harden()
        found: dict[str, str] = {}

        def name_itself() -> None:
            task = Path(f"/proc/self/task/{threading.get_native_id()}")
            found["comm"] = refusal(lambda: (task / "comm").write_text("cuda-like"))
            found["name"] = (task / "comm").read_text().strip()

        thread = threading.Thread(target=name_itself)
        thread.start()
        thread.join()
        found["own-oom-score"] = refusal(lambda: Path("/proc/self/oom_score_adj").write_text("1"))
        found["sysctl"] = refusal(lambda: Path("/proc/sys/kernel/core_pattern").write_text("core"))
        found["parent"] = refusal(lambda: Path(f"/proc/{os.getppid()}/comm").write_text("x"))
        found["out-by-root"] = refusal(lambda: Path(f"/proc/self/task/{os.getpid()}/root/x").write_text("x"))
        return found

    found = in_child(work)
    name = found.pop("name")
    assert (found.pop("comm"), name == "cuda-like") == (("", True) if allowed else ("EACCES", False))
    assert set(found.values()) <= {"EACCES", "EPERM", "EROFS"}, found
