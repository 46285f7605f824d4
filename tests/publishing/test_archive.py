"""The archive that comes back: written one way, and nothing else is read."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import VerificationError
from glasshouse.publishing import archive

FILES = {"log/leaves.jsonl": b"{}\n", "keyring.json": b"k" * 512, "bundles/a/legs/x/e.json": b""}


def refused(data: bytes) -> str:
    with pytest.raises(VerificationError) as caught:
        archive.read_archive(data)
    (code,) = caught.value.codes
    return code


def test_what_is_packed_is_read_again_in_the_order_of_names() -> None:
    data = archive.write_archive(FILES)
    assert archive.read_archive(data) == FILES
    assert list(archive.read_archive(data)) == sorted(FILES)
    assert archive.write_archive(dict(reversed(FILES.items()))) == data
    assert archive.read_archive(archive.write_archive({})) == {}


def test_any_tar_opens_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive.write_archive(FILES)), mode="r:gz") as found:
        assert found.getnames() == sorted(FILES)
        read = found.extractfile("keyring.json")
        assert read is not None
        assert read.read() == FILES["keyring.json"]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        ".hidden",
        "a/.b",
        "-rf",
        "a b",
        "",
        "a\n",
        "ä",
        "x" * 101,
        "a/",
    ],
)
def test_a_name_that_could_lead_elsewhere_is_neither_packed_nor_read(name: str) -> None:
    with pytest.raises(ValueError, match="no archive holds"):
        archive.write_archive({name: b""})
    if name:
        found = _tarred(tarfile.TarInfo(name), form=tarfile.GNU_FORMAT)
        assert refused(found) in ("archive-name", "archive-member")


def _tarred(*infos: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT, body: bytes = b"") -> bytes:
    place = io.BytesIO()
    with tarfile.open(fileobj=place, mode="w", format=form) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(body) if body else None)
    return gzip.compress(place.getvalue())


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE),
        *(
            tarfile.BLKTYPE,
            tarfile.GNUTYPE_SPARSE,
            tarfile.XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.AREGTYPE,
        ),
    ],
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("keyring.json")
    info.type, info.linkname = kind, "/etc/passwd"
    assert refused(_tarred(info)) == "archive-member"


def test_headers_that_say_more_than_ours_are_refused() -> None:
    info = tarfile.TarInfo("keyring.json")
    info.mode = 0o4755
    assert refused(_tarred(info)) == "archive-malformed"
    info = tarfile.TarInfo("keyring.json")
    info.pax_headers = {"path": "/etc/passwd"}
    assert refused(_tarred(info, form=tarfile.PAX_FORMAT)) in ("archive-member", "archive-name")


def _changed(change: Callable[[bytes], bytes]) -> bytes:
    return gzip.compress(change(gzip.decompress(archive.write_archive(FILES))))


def test_order_padding_and_end_are_as_written() -> None:
    one, two = archive.write_archive({"a": b"1"}), archive.write_archive({"b": b"2"})
    first, second = (gzip.decompress(item)[:1024] for item in (one, two))
    end = bytes(1024)
    assert archive.read_archive(gzip.compress(first + second + end)) == {"a": b"1", "b": b"2"}
    assert refused(gzip.compress(second + first + end)) == "archive-order"
    assert refused(gzip.compress(first + first + end)) == "archive-order"
    assert refused(gzip.compress(first[:-1] + b"x" + end)) == "archive-malformed"
    assert refused(gzip.compress(first + end + bytes(512))) == "archive-cut"
    assert refused(gzip.compress(first + bytes(512))) == "archive-cut"
    assert refused(gzip.compress(first + end + first + end)) == "archive-cut"
    assert refused(gzip.compress(first[:700])) == "archive-cut"
    assert refused(_changed(lambda tar: tar[:-1024])) == "archive-cut"


def test_the_file_around_it_is_whole_and_alone() -> None:
    data = archive.write_archive(FILES)
    for cut in (0, 1, 9, len(data) // 2, len(data) - 9, len(data) - 1):
        assert refused(data[:cut]) in ("archive-cut", "archive-malformed")
    assert refused(data + b"x") == "archive-malformed"
    assert refused(data + data) == "archive-malformed"
    assert refused(b"PK\3\4" + data) == "archive-malformed"
    assert refused(zlib.compress(gzip.decompress(data))) == "archive-malformed"


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(bytes(archive.MAX_CONTENT_BYTES + 1), 1)
    assert refused(bomb) == "archive-too-large"
    assert refused(bytes(archive.MAX_ARCHIVE_BYTES + 1)) == "archive-too-large"
    data = archive.write_archive(FILES)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    assert refused(data) == "archive-too-large"
    header = archive._header("a", 8**11 - 1)
    assert refused(gzip.compress(header + bytes(1024))) == "archive-cut"


@given(st.binary(max_size=4000))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    for found in (data, gzip.compress(data), gzip.compress(archive._header("a", 5) + data)):
        try:
            files = archive.read_archive(found)
        except VerificationError:
            continue
        assert gzip.decompress(archive.write_archive(files)) == gzip.decompress(found)


@given(st.data())
def test_a_changed_byte_is_refused_or_only_changes_a_content(data: st.DataObject) -> None:
    tar = bytearray(gzip.decompress(archive.write_archive(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    try:
        files = archive.read_archive(gzip.compress(bytes(tar)))
    except VerificationError:
        return
    assert gzip.decompress(archive.write_archive(files)) == bytes(tar)
    assert all(archive.may_hold(name) for name in files)
