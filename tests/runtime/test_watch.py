"""Every file that is written on the machine while a leg runs is searched, also one that is gone at once.

The kernel hands over each file that is closed after writing (fanotify(7)), open: what is removed at once is
read all the same. Markers stand in the workload's source, its parameters, its data and its weights.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.runtime.rig import rig

_libc = ctypes.CDLL(None, use_errno=True)
_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_ADD, _FILESYSTEM, _CLOSE_WRITE, _AT_FDCWD = 0x1, 0x100, 0x8, -100
MAX_BYTES = 8 << 20  # larger files are other tests': a leg of this size writes kilobytes
_EVENT = struct.Struct("=IBBHQii")  # fanotify_event_metadata

# At each step it tries to leave a marker somewhere for a moment; outside its folder Landlock refuses.
LEAVES = """
SOURCE_MARK = {source!r}
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        self.weights = HostTensor(bytes(files["secret"]) * 16)

    def run_unit(self):
        super().run_unit()
        print("printed", SOURCE_MARK, self.params["mark"], flush=True)
        for place in (os.environ["TMPDIR"], self.params["home"], "/tmp", "/var/tmp", "/dev/shm"):
            path = place + "/left-for-a-moment"
            try:
                with open(path, "wb") as out:
                    out.write(bytes(self.weights.memory))
                    out.write((SOURCE_MARK + self.params["mark"]).encode())
                os.unlink(path)
            except OSError:
                pass
        if {crashes}:
            os.abort()
"""


class Watch(threading.Thread):
    """Searches each file that is closed after writing, on the file systems of `places`."""

    def __init__(self, places: list[Path], needles: Mapping[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.found: set[tuple[str, str, int]] = set()  # (needle, file name, device)
        self._needles = needles
        self._stop_read, self._stop_write = os.pipe()
        self._queue = _libc.fanotify_init(_CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE, os.O_RDONLY | os.O_CLOEXEC)
        if self._queue < 0:
            pytest.skip(f"no fanotify here: {os.strerror(ctypes.get_errno())}")
        for place in places:
            flags, mask = ctypes.c_uint(_ADD | _FILESYSTEM), ctypes.c_uint64(_CLOSE_WRITE)
            if _libc.fanotify_mark(self._queue, flags, mask, ctypes.c_int(_AT_FDCWD), os.fsencode(place)):
                pytest.skip(f"{place} cannot be watched: {os.strerror(ctypes.get_errno())}")

    def run(self) -> None:
        stopping = False
        while True:
            ready, _, _ = select.select([self._queue, self._stop_read], [], [])
            stopping = stopping or self._stop_read in ready
            try:
                data = os.read(self._queue, 1 << 16)
            except BlockingIOError:
                if stopping:
                    return
                continue
            at = 0
            while at < len(data):
                size, _, _, _, mask, descriptor, _ = _EVENT.unpack_from(data, at)
                assert not mask & 0x4000, "the kernel's queue overflowed"
                self._search(descriptor)
                at += size

    def _search(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if status.st_size > MAX_BYTES:
                return
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name.removesuffix(" (deleted)")
            # Read, not mapped: whoever writes it may cut it short in the meantime.
            text = file.read(MAX_BYTES) or b""
            for needle, value in self._needles.items():
                if value in text:
                    self.found.add((needle, name, status.st_dev))

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        self.start()
        try:
            yield self
        finally:
            os.write(self._stop_write, b"x")
            self.join()
            for descriptor in (self._queue, self._stop_read, self._stop_write):
                os.close(descriptor)


@pytest.mark.parametrize("crashes", [False, True], ids=["ends well", "aborts"])
def test_no_marker_is_in_any_file_that_was_written_but_in_the_scratch_folder(crashes: bool) -> None:
    source, mark, data = secrets.token_hex(32), secrets.token_hex(32), os.urandom(64)
    needles = {"source": source.encode(), "parameter": mark.encode(), "data": data[4:]}
    shm = Path("/dev/shm").stat().st_dev
    with rig(data={"secret": data}) as probe:
        home = str(probe.base)
        home_device = probe.base.stat().st_dev
    places = [Path("/"), Path("/dev/shm"), Path("/tmp"), Path("/var/tmp"), Path(home).parent]
    text = LEAVES.format(source=source, crashes=crashes)
    with rig(text, data={"secret": data}, params={"mark": mark, "home": str(Path(home).parent)}) as made:
        with Watch(places, needles).watching() as watch:
            control = made.pod / "control"
            control.write_bytes(b"before " + data)
            control.unlink()
            leg = made.launch()
            result = leg.wait()
        assert result["status"] == ("failed" if crashes else "complete"), result
        assert leg.log == ""
    # The watch sees what is written and removed at once: the control on disk, the workload's in its folder.
    assert watch.found == {("data", "control", home_device)} | {
        (needle, "left-for-a-moment", shm) for needle in needles
    }
