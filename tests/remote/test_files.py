"""Files: verified, atomic, resumed."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.errors import OutcomeUnknown, RemoteError
from glasshouse.remote import receive_script
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod
from glasshouse.remote.receive_script import digest_of_upload


@pytest.fixture
def folder(pod: Pod, tmp_path: Path) -> str:
    """A folder on the pod that does not exist yet."""
    return f"{pod.endpoint.workdir}/a folder's name"


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_put_then_fetch_gives_the_same_bytes(pod: Pod, folder: str, size: int) -> None:
    data = os.urandom(size)
    seen: list[tuple[int, int]] = []
    pod.put(data, f"{folder}/file", mode=0o640, progress=lambda done, total: seen.append((done, total)))
    assert pod.fetch(f"{folder}/file", max_bytes=size + 10) == data
    assert pod.run(["stat", "-c", "%a", f"{folder}/file"]).stdout == b"640\n"
    assert not pod.exists(f"{folder}/file.part")
    assert seen == sorted(seen)
    assert not size or seen[-1] == (size, size)


def test_transfers_survive_new_keys_in_their_middle(pod: Pod, folder: str, tmp_path: Path) -> None:
    data = os.urandom(12_000_001)  # OpenSSH's server, in these tests, asks for new keys every 4 MB
    pod.put(data, f"{folder}/file")
    for number in range(2):
        pod.fetch_file(f"{folder}/file", tmp_path / str(number), max_bytes=1 << 30)
        assert (tmp_path / str(number)).read_bytes() == data


@pytest.mark.soak
def test_more_than_half_a_gibibyte_comes_over_one_connection(pod: Pod, folder: str, tmp_path: Path) -> None:
    # Where paramiko would ask for new keys, and hang, since a channel closes at that moment.
    script = 'mkdir "$1" && head -c 700000000 /dev/urandom > "$1/file"'
    pod.check(["sh", "-c", script, "sh", folder], "writing")
    pod.fetch_file(f"{folder}/file", tmp_path / "file", max_bytes=1 << 30)
    assert (tmp_path / "file").stat().st_size == 700_000_000


def test_put_takes_a_local_file_and_replaces_what_was_there(pod: Pod, folder: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new" * 1000)
    pod.put(b"old", f"{folder}/file")
    pod.put(source, f"{folder}/file")
    assert pod.fetch(f"{folder}/file") == b"new" * 1000


def test_an_interrupted_put_goes_on_from_the_verified_part(pod: Pod, folder: str) -> None:
    data = os.urandom(24 << 20)

    def drop(done: int, total: int) -> None:
        if done >= 16 << 20:
            pod.drop_transport()

    with pytest.raises(OutcomeUnknown):
        pod.put(data, f"{folder}/big", progress=drop)
    pod.reconnect()
    assert not pod.exists(f"{folder}/big")
    seen: list[int] = []
    pod.put(data, f"{folder}/big", progress=lambda done, total: seen.append(done))
    assert seen[0] > 1 << 20  # it did not begin at the beginning
    digest = hashlib.sha256(data).hexdigest().encode()
    assert pod.run(["sha256sum", f"{folder}/big"]).stdout.startswith(digest)


def test_a_part_that_does_not_match_is_sent_again_from_the_start(pod: Pod, folder: str) -> None:
    data = os.urandom(2 << 20)
    pod.put(bytes(1 << 20), f"{folder}/file.part")
    seen: list[int] = []
    pod.put(data, f"{folder}/file", progress=lambda done, total: seen.append(done))
    assert seen[0] <= 1 << 20  # it began at the beginning
    assert pod.fetch(f"{folder}/file", max_bytes=4 << 20) == data


def test_a_part_longer_than_the_file_is_dropped(pod: Pod, folder: str) -> None:
    pod.put(b"x" * 5000, f"{folder}/file.part")
    pod.put(b"short", f"{folder}/file")
    assert pod.fetch(f"{folder}/file") == b"short"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_the_receiver_takes_a_file_from_a_pipe_and_from_a_socket(tmp_path: Path, kind: str) -> None:
    target, data = tmp_path / "file", os.urandom(3 << 20)
    hasher = digest_of_upload()
    hasher.update(data[: 2 << 20])
    (tmp_path / "file.part").write_bytes(data[: 2 << 20])
    there = f"{2 << 20} {hasher.hexdigest()}\n"
    hasher.update(data[2 << 20 :])
    said = b"a" + data[2 << 20 :] + hasher.hexdigest().encode()
    near, far = socket.socketpair()
    with near, far:
        process = subprocess.Popen(
            [sys.executable, "-I", receive_script.__file__, target, str(len(data)), "640", "1"],
            stdin=far if kind == "socket" else subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        far.close()
        assert process.stdout is not None
        assert process.stdout.readline().decode() == there
        if process.stdin is not None:
            assert fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ) == receive_script.PIECE
        else:
            near.sendall(said)
            near.close()
        out, _ = process.communicate(said if kind == "pipe" else None, timeout=60)
    assert (process.returncode, out) == (0, b"done\n")
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o640


def test_the_receiver_refuses_damaged_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file"
    wrong = hashlib.sha256(b"other").hexdigest().encode()
    done = subprocess.run(
        [sys.executable, "-I", receive_script.__file__, target, "5", "600", "1"],
        input=b"a" + b"bytes" + wrong,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 4
    assert list(tmp_path.iterdir()) == []


def test_the_receiver_keeps_the_part_when_the_sender_goes_away(tmp_path: Path) -> None:
    target = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-I", receive_script.__file__, target, "50", "600", "1"],
        input=b"a" + b"bytes",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
    assert (tmp_path / "file.part").read_bytes() == b"bytes"
    assert not target.exists()


def test_a_place_that_takes_no_file_is_an_error_that_says_why(pod: Pod) -> None:
    with pytest.raises(RemoteError, match=r"could not take a file \(No such file.*path=/proc/nowhere/file"):
        pod.put(b"data", "/proc/nowhere/file")
    assert pod.run(["true"]).exit == 0


def test_a_place_that_fills_up_is_an_error_that_says_why(endpoint: Endpoint, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_text(f'#!/bin/sh\nulimit -f 100\nexec {sys.executable} "$@"\n')
    small.chmod(0o755)
    with Pod(dataclasses.replace(endpoint, python=str(small))) as pod:
        data = os.urandom(16 << 20)  # more than what lies on the way, so that the sender is still sending
        with pytest.raises(RemoteError, match=r"could not take a file \(File too large\)"):
            pod.put(data, f"{endpoint.workdir}/file")
        assert not pod.exists(f"{endpoint.workdir}/file")
        assert pod.run(["true"]).exit == 0


def test_fetch_reads_from_an_offset_and_ends_at_the_end(pod: Pod, folder: str) -> None:
    pod.put(b"0123456789", f"{folder}/file")
    assert pod.fetch(f"{folder}/file", offset=3, max_bytes=4) == b"3456"
    assert pod.fetch(f"{folder}/file", offset=8) == b"89"
    assert pod.fetch(f"{folder}/file", offset=10) == b""
    assert pod.fetch(f"{folder}/file", offset=99) == b""


def test_fetch_of_a_missing_file_is_an_error(pod: Pod, folder: str) -> None:
    with pytest.raises(RemoteError, match=r"no such file on the pod.*missing"):
        pod.fetch(f"{folder}/missing")


def test_fetch_file_verifies_and_resumes(pod: Pod, folder: str, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    pod.put(data, f"{folder}/file")
    target = tmp_path / "fetched"
    (tmp_path / "fetched.part").write_bytes(data[: 1 << 20])
    seen: list[int] = []
    pod.fetch_file(
        f"{folder}/file", target, max_bytes=4 << 20, progress=lambda done, total: seen.append(done)
    )
    assert target.read_bytes() == data
    assert seen == [2 << 20, 3 << 20]  # the first MiB was there
    assert not (tmp_path / "fetched.part").exists()


@pytest.mark.parametrize("part", [b"", b"right", b"wrong"])
def test_what_is_signed_is_compared_here_and_a_wrong_part_costs_its_bytes_only(
    pod: Pod, folder: str, tmp_path: Path, part: bytes
) -> None:
    data = os.urandom(3 << 20)
    pod.put(data, f"{folder}/file", checked=False)
    target, digest = tmp_path / "fetched", hashlib.sha256(data).hexdigest()
    if part:
        (tmp_path / "fetched.part").write_bytes(data[: 1 << 20] if part == b"right" else bytes(1 << 20))
    seen: list[int] = []
    pod.fetch_file(
        f"{folder}/file", target, max_bytes=4 << 20, sha256=digest, progress=lambda done, _: seen.append(done)
    )
    assert target.read_bytes() == data
    assert (
        seen
        == {
            b"": [1 << 20, 2 << 20, 3 << 20],
            b"right": [2 << 20, 3 << 20],
            b"wrong": [2 << 20, 3 << 20, 1 << 20, 2 << 20, 3 << 20],
        }[part]
    )
    with pytest.raises(RemoteError, match="damaged"):
        pod.fetch_file(f"{folder}/file", tmp_path / "other", max_bytes=4 << 20, sha256=digest[::-1])
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "other.part").exists()


def test_an_unchecked_part_is_verified_before_it_is_continued(pod: Pod, folder: str) -> None:
    data = os.urandom(3 << 20)
    for part, kept in ((data[: 1 << 20], 1 << 20), (bytes(1 << 20), 0)):
        pod.put(part, f"{folder}/file.part")
        seen: list[int] = []
        pod.put(data, f"{folder}/file", checked=False, progress=lambda done, _: seen.append(done))  # noqa: B023
        assert seen[0] == kept
        assert pod.fetch(f"{folder}/file", max_bytes=4 << 20) == data


def test_fetch_file_refuses_a_wrong_part_and_a_file_too_large(pod: Pod, folder: str, tmp_path: Path) -> None:
    pod.put(b"content", f"{folder}/file")
    (tmp_path / "fetched.part").write_bytes(b"wrong")
    with pytest.raises(RemoteError, match="damaged"):
        pod.fetch_file(f"{folder}/file", tmp_path / "fetched", max_bytes=100)
    assert not (tmp_path / "fetched").exists()
    with pytest.raises(RemoteError, match="larger than allowed"):
        pod.fetch_file(f"{folder}/file", tmp_path / "fetched", max_bytes=3)
    pod.fetch_file(f"{folder}/file", tmp_path / "fetched", max_bytes=100)
    assert (tmp_path / "fetched").read_bytes() == b"content"


def test_names_that_look_like_options_are_names(pod: Pod) -> None:
    name = f"-gh-test-{os.getpid()}"
    try:
        pod.put(b"data", name)
        assert pod.exists(name)
        assert pod.fetch(name) == b"data"
    finally:
        pod.run(["rm", "-f", "--", name])
