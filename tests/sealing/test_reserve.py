"""Memory taken before there is a key: used when it fits, never trusted, closed to everyone until then."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import SealError
from glasshouse.sealing.container import (
    OpenedPackage,
    Reserved,
    TensorSpec,
    map_file,
    open_package,
    reserve,
    seal_package,
)
from glasshouse.sealing.layout import HEADER_BYTES, Header
from glasshouse.sealing.memory import HUGE_PAGE, forbid, populate_file, private_region

KEY = bytes(range(1, 33))


def seal(path: Path, sizes: list[int], extra: dict[str, str] | None = None) -> str:
    tensors = [(TensorSpec(f"t{at}", "uint8", (size,)), os.urandom(size)) for at, size in enumerate(sizes)]
    with path.open("wb") as out:
        return seal_package(
            out, payload_key=KEY, files={}, tensors=tensors, extra=extra or {}, chunk_bytes=4096, threads=1
        )


def opened(source: Path | Reserved, digest: str) -> OpenedPackage:
    return open_package(source, payload_key=KEY, manifest_hash=digest, threads=2)


def reserved(path: Path) -> Reserved:
    made = reserve(path, threads=2)
    assert made is not None
    return made


def tensors(package: OpenedPackage) -> list[bytes]:
    return [bytes(view) for _, view in package.tensors.values()]


def permissions(region: mmap.mmap) -> set[str]:
    """Of every mapping that holds a part of the region."""
    low = ctypes.addressof(ctypes.c_char.from_buffer(region))
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) < low + len(region) and low < int(end, 16):
            found.add(line.split()[1])
    return found


def resident(region: mmap.mmap) -> int:
    """Pages of the region that are there."""
    pages = len(region) // mmap.PAGESIZE
    seen = (ctypes.c_ubyte * pages)()
    low = ctypes.addressof(ctypes.c_char.from_buffer(region))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(low), ctypes.c_size_t(len(region)), seen) == 0
    return sum(page & 1 for page in seen)


@given(sizes=st.lists(st.integers(0, 20_000), max_size=40))
def test_what_opens_in_reserved_memory_is_what_opens_in_its_own(tmp_path_factory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("reserve") / "p"
    digest = seal(path, sizes)
    taken = reserved(path)
    package = opened(taken, digest)
    assert package.region is taken.region  # however many small objects: the guess is large enough
    assert taken.mapped.closed
    plain = opened(path, digest)
    assert tensors(package) == tensors(plain)
    assert len(package.region) == len(plain.region)
    assert package.wipe()
    assert not any(package.region[:])


def test_the_pages_are_there_and_closed_until_the_key_is(tmp_path: Path) -> None:
    digest = seal(tmp_path / "p", [3 * HUGE_PAGE])
    taken = reserved(tmp_path / "p")
    assert permissions(taken.region) == {"---p"}
    assert resident(taken.region) * mmap.PAGESIZE >= 3 * HUGE_PAGE
    package = opened(taken, digest)
    assert permissions(taken.region) == {"rw-p"}
    assert package.wipe()


def test_to_touch_it_before_ends_the_process(tmp_path: Path) -> None:
    seal(tmp_path / "p", [100])
    touch = (
        "import sys; from glasshouse.sealing.container import reserve; print(reserve(sys.argv[1]).region[0])"
    )
    done = subprocess.run([sys.executable, "-c", touch, tmp_path / "p"], capture_output=True, check=False)
    assert done.returncode == -11  # SIGSEGV
    assert done.stdout == b""


@pytest.mark.parametrize("size", [1, mmap.PAGESIZE, HUGE_PAGE])
def test_memory_that_is_too_small_is_given_back_and_not_used(tmp_path: Path, size: int) -> None:
    digest = seal(tmp_path / "p", [HUGE_PAGE + 1])
    small = Reserved(map_file(tmp_path / "p", 0), private_region(size))
    forbid(small.region)
    package = opened(small, digest)
    assert package.region is not small.region
    assert small.region.closed
    assert tensors(package) == tensors(opened(tmp_path / "p", digest))


def test_what_cannot_be_a_container_reserves_nothing_and_opening_says_why(tmp_path: Path) -> None:
    good = tmp_path / "good"
    digest = seal(good, [5000])
    whole = good.read_bytes()
    os.mkfifo(tmp_path / "fifo")
    cases = {"short": whole[: HEADER_BYTES - 1], "magic": b"X" + whole[1:], "empty": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in (*cases, "fifo", "absent", "."):
        assert reserve(tmp_path / name) is None, name
        with pytest.raises(SealError):
            opened(tmp_path / name, digest)


def test_a_file_that_lies_about_its_size_is_refused_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "p"
    digest = seal(path, [5000])
    whole = path.read_bytes()
    for content, code in ((whole[:-1], "container-truncated"), (whole + b"x", "container-trailing-bytes")):
        path.write_bytes(content)
        with pytest.raises(SealError) as caught:
            opened(reserved(path), digest)
        assert caught.value.codes == (code,)


def test_a_failure_leaves_nothing_in_reserved_memory(tmp_path: Path) -> None:
    path = tmp_path / "p"
    digest = seal(path, [4096] * 50)
    sealed = bytearray(path.read_bytes())
    sealed[-1] ^= 1  # the last chunk: all others were decrypted before
    path.write_bytes(sealed)
    taken = reserved(path)
    with pytest.raises(SealError) as caught:
        opened(taken, digest)
    assert caught.value.codes == ("chunk-authentication-failed",)
    assert not any(taken.region[:])


def test_a_kernel_that_cannot_take_pages_early_only_takes_them_later(tmp_path: Path, monkeypatch) -> None:
    digest = seal(tmp_path / "p", [HUGE_PAGE])
    # An advice that no kernel knows is what the right one is to a kernel before Linux 5.14.
    monkeypatch.setattr("glasshouse.sealing.memory._MADV_POPULATE_WRITE", 9999)
    taken = reserved(tmp_path / "p")
    assert resident(taken.region) == 0
    assert opened(taken, digest).wipe()


def test_only_what_lies_on_the_disk_takes_memory(tmp_path: Path) -> None:
    """A header and a hole: nothing authenticates the size of a file."""
    header = Header(4096, 100, bytes(32), bytes(32)).pack()
    with (tmp_path / "p").open("wb") as out:
        out.write(header)
        out.truncate(64 * HUGE_PAGE)
    taken = reserved(tmp_path / "p")
    assert len(taken.region) >= 63 * HUGE_PAGE
    assert resident(taken.region) * mmap.PAGESIZE <= HUGE_PAGE
    assert permissions(taken.region) == {"---p"}


def test_it_serves_once(tmp_path: Path) -> None:
    path = tmp_path / "p"
    digest = seal(path, [4096] * 3)
    whole = path.read_bytes()
    for content in (whole, whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        taken = reserved(path)
        held = []  # a refusal, and with its traceback views of the region
        try:
            held.append(opened(taken, digest))
        except SealError as error:
            held.append(error)
        before = taken.region[:]
        with pytest.raises(SealError, match="serves once") as caught:
            opened(taken, digest)
        assert caught.value.codes == ("region-unavailable",)
        assert taken.region[:] == before
        assert any(before) == (content == whole)


def test_memory_that_someone_else_looks_at_is_not_used(tmp_path: Path) -> None:
    digest = seal(tmp_path / "p", [100])
    taken = reserved(tmp_path / "p")
    with memoryview(taken.region), pytest.raises(SealError) as caught:
        opened(taken, digest)
    assert caught.value.codes == ("region-unavailable",)
    assert permissions(taken.region) == {"---p"}


def test_a_refused_manifest_keeps_no_cipher(tmp_path: Path) -> None:
    path = tmp_path / "p"
    digest = seal(path, [100])
    whole = path.read_bytes()
    path.write_bytes(whole[:HEADER_BYTES] + bytes([whole[HEADER_BYTES] ^ 1]) + whole[HEADER_BYTES + 1 :])
    for source in (path, reserved(path)):
        with pytest.raises(SealError) as caught:
            opened(source, digest)
        assert caught.value.codes == ("manifest-authentication-failed",)
        assert caught.value.__context__ is None  # no traceback that holds its key


@pytest.mark.parametrize(("version", "suite"), [(1, 1), (1, 2), (2, 1), (0, 0)])
def test_a_container_of_another_version_is_refused(tmp_path: Path, version: int, suite: int) -> None:
    path = tmp_path / "p"
    digest = seal(path, [100])
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + version.to_bytes(2, "big") + suite.to_bytes(2, "big") + whole[12:])
    assert reserve(path) is None
    with pytest.raises(SealError) as caught:
        opened(path, digest)
    assert caught.value.codes == ("container-malformed",)


def test_a_name_that_no_file_can_have_is_an_unreadable_container() -> None:
    assert reserve("a\0b") is None
    with pytest.raises(SealError) as caught:
        opened(Path("a\0b"), "0" * 64)
    assert caught.value.codes == ("container-unreadable",)


LOOK = """
import sys
from glasshouse.runtime.residue import Needle, ScannedProcess, open_self
from glasshouse.sealing.container import open_package, reserve

path, digest, text = sys.argv[1:]
found = ScannedProcess(*open_self())
def count():
    needle = bytearray.fromhex(text)
    scan = found.scan([Needle("plain", needle)])
    return scan.counts[0], scan.bytes_read
taken = reserve(path)
closed, closed_bytes = count()
package = open_package(taken, payload_key=bytes(range(1, 33)), manifest_hash=digest)
opened, opened_bytes = count()
print(opened - closed, opened_bytes - closed_bytes >= len(package.region) - (4 << 20))
"""


def test_a_scan_sees_all_of_it_once_it_is_open(tmp_path: Path) -> None:
    mark = os.urandom(32)
    path = tmp_path / "p"
    data = mark + bytes(8 * HUGE_PAGE - 64) + mark
    with path.open("wb") as out:
        digest = seal_package(
            out, payload_key=KEY, files={"f": data}, tensors=[], extra={}, chunk_bytes=1 << 20, threads=1
        )
    done = subprocess.run(
        [sys.executable, "-c", LOOK, path, digest, mark.hex()], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "True"]


def mapped_now(mapping: mmap.mmap, path: Path) -> int:
    """Bytes of a mapped file that this process has in its page tables."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(f" {path}"):
            return next(int(row.split()[1]) << 10 for row in lines if row.startswith("Rss:"))
    raise AssertionError(f"{len(mapping)} bytes are not mapped")


def test_a_slow_file_is_not_waited_for(tmp_path: Path) -> None:
    """Reading all of it could outlast the supervisor's patience; what is left is read as it is decrypted."""
    path = tmp_path / "p"
    path.write_bytes(bytes(HUGE_PAGE))
    mapping = map_file(path, 0)
    populate_file(mapping, HUGE_PAGE, 0)
    assert mapped_now(mapping, path) == 0
    populate_file(mapping, HUGE_PAGE, 60)
    assert mapped_now(mapping, path) == HUGE_PAGE


FEW = """
import resource, sys, threading
from glasshouse.sealing.container import open_package, reserve

threading.stack_size(64 << 20)
used = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmSize:")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
print(reserve(sys.argv[1], threads=1))
package = open_package(
    sys.argv[1], payload_key=bytes(range(1, 33)), manifest_hash=sys.argv[2], threads=1
)
print(len(package.tensors))
"""


def test_where_no_thread_can_start_nothing_is_reserved(tmp_path: Path) -> None:
    digest = seal(tmp_path / "p", [5000])
    done = subprocess.run(
        [sys.executable, "-c", FEW, tmp_path / "p", digest], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "1"]
