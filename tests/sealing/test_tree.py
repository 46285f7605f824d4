"""Trees of files come out of a container as they went in, and nothing is written outside the folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json
from glasshouse.errors import SealError, UsageError
from glasshouse.sealing.container import fresh_payload_key, open_package, seal_package
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.memory import overwrite
from glasshouse.sealing.tree import INDEX_NAME, Tree, list_folder, parse_index, read_tree, write_tree
from glasshouse.sealing.tree_index import FORMAT, MAX_DEPTH, MAX_SKIPPED, Entry, Index, shown

PIECE = 1 << 12


def carry(tree: Tree, scratch: Path, target: Path, **arguments: object) -> Index:
    """Seal a tree, open it and write it: the real container both ways."""
    key = fresh_payload_key()
    sealed = scratch / "sealed"
    with sealed.open("wb") as out:
        manifest_hash = seal_package(
            out,
            payload_key=key,
            files={INDEX_NAME: tree.index, "other": b"x"},
            tensors=tree.tensors,
            extra={},
        )
    with open_package(sealed, payload_key=key, manifest_hash=manifest_hash, verify_digests=True) as package:
        return write_tree(package.files[INDEX_NAME], package.tensors, target, **arguments)


def look(folder: Path) -> dict[bytes, object]:
    """Everything below a folder: links, empty folders, and of files bytes, time and whether they are run."""
    found: dict[bytes, object] = {}
    base = os.fsencode(folder)
    for place, folders, names in os.walk(base):
        for name in [*folders, *names]:
            path = os.path.join(place, name)  # noqa: PTH118 -- bytes
            status = os.lstat(path)
            key = os.path.relpath(path, base)
            if os.path.islink(path):  # noqa: PTH114
                found[key] = os.readlink(path)  # noqa: PTH115
            elif os.path.isdir(path):  # noqa: PTH112
                found[key] = "folder"
            else:
                with io.FileIO(path) as file:
                    found[key] = (file.readall(), status.st_mtime_ns // 1000, bool(status.st_mode & 0o100))
    return found


NAME = st.one_of(
    st.sampled_from(
        [b"a", b"b", b"c d", "grün".encode(), b"\xff\xfe", b"x\ny", b"back\\slash", b"-", b"n" * 255]
    ),
    st.binary(min_size=1, max_size=12),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
PATH = st.lists(NAME, min_size=1, max_size=4).map(b"/".join)
WHAT = st.one_of(
    st.tuples(st.binary(max_size=3 * PIECE), st.booleans(), st.integers(-(2**31), 2**33)),
    st.just("folder"),
    st.sampled_from([b".", b"a", b"./b//c d", b"nothing/there", b"\xff"]),
)


@settings(max_examples=60)
@given(what=st.dictionaries(PATH, WHAT, max_size=12), piece=st.sampled_from([1 << 10, 1 << 12, 1 << 20]))
def test_any_tree_comes_out_as_it_went_in(
    what: dict[bytes, object], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("tree")
    source = base / "source"
    source.mkdir()
    for path, item in what.items():
        place = os.path.join(os.fsencode(source), path)  # noqa: PTH118 -- bytes
        with contextlib.suppress(OSError):  # what is in the way of it stands in the dictionary, too
            os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
            if item == "folder":
                os.makedirs(place, exist_ok=True)  # noqa: PTH103
            elif isinstance(item, bytes):
                os.symlink(item, place)  # noqa: PTH211
            else:
                data, executable, seconds = item
                with io.FileIO(place, "x") as file:
                    file.write(data)
                os.chmod(place, 0o755 if executable else 0o644)  # noqa: PTH101
                os.utime(place, (seconds, seconds))
    tree = read_tree(list_folder(source), piece_bytes=piece)
    target = base / "target"
    released = list[int]()
    index = carry(tree, base, target, release=lambda view: released.append(view.nbytes) or overwrite(view))
    assert look(target) == look(source)
    assert released == index.pieces
    assert all(0 < size <= piece for size in released)
    assert carry(tree, base, target, keep_same=True) == index


def test_what_is_written_is_its_owners_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (source / "sub" / "run.sh").chmod(0o4777)
    carry(read_tree(list_folder(source)), tmp_path, tmp_path / "target")
    assert (tmp_path / "target" / "sub" / "run.sh").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "target" / "sub").stat().st_mode & 0o777 == 0o700


def odd_ones(source: Path) -> dict[str, str]:
    """Make one of everything that cannot be carried; what `shown` calls each, and words of the reason."""
    source.mkdir()
    (source / "good").write_bytes(b"good")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(source):
        made.bind("socket")
    (source / "absolute").symlink_to("/etc/passwd")
    (source / "out").symlink_to("../outside")
    (source / "winding").symlink_to("good/../good")
    (source / "d").mkdir()
    (source / "d" / "deep").symlink_to("../../outside")
    os.mkfifo(os.fsencode(source) + b"/\xff\n")
    return {
        "fifo": "FIFO",
        "socket": "socket",
        "absolute": "absolute",
        "out": "out of the folder",
        "winding": "up again",
        "d/deep": "out of the folder",
        "\\xff\\u000a": "FIFO",
    }


def test_what_cannot_be_carried_is_named_and_left_out_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    expected = odd_ones(source)
    named: dict[str, str] = {}
    tree = read_tree(list_folder(source), on_odd=named.__setitem__)
    assert set(named) == set(expected)
    assert all(expected[path] in named[path] for path in expected)
    assert [entry.path for entry in tree.found.entries] == [b"d", b"good"]  # d is empty now, and stays
    assert dict(tree.found.skipped) == named
    index = carry(tree, tmp_path, tmp_path / "target")
    assert index.skipped_count == len(expected)
    assert look(tmp_path / "target").keys() == {b"good", b"d"}
    with pytest.raises(UsageError, match="cannot be carried"):
        read_tree(list_folder(source))


def test_no_two_paths_are_shown_alike() -> None:
    paths = [b"\x80", "\x80".encode(), rb"\x80", b"\n", rb"\u000a", "\u2028".encode(), b"a", "ä".encode()]
    assert len({shown(path) for path in paths}) == len(paths)
    assert all(shown(path).isprintable() for path in paths)


def test_many_skipped_are_counted_and_the_first_named(tmp_path: Path) -> None:
    files = [(f"no{number}", tmp_path / "none") for number in range(MAX_SKIPPED + 5)]
    tree = read_tree([*files, ("x/" * MAX_DEPTH + "x", tmp_path)], on_odd=lambda *_: None)
    assert tree.found.skipped_count == MAX_SKIPPED + 6
    assert len(parse_index(tree.index).skipped) == MAX_SKIPPED


def seal(tree: Tree) -> None:
    seal_package(
        io.BytesIO(),
        payload_key=fresh_payload_key(),
        files={INDEX_NAME: tree.index},
        tensors=tree.tensors,
        extra={},
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"y" * 100),  # as long, at another time
        lambda path: path.write_bytes(b"x" * 101),
        lambda path: path.write_bytes(b"x" * 10),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["content", "longer", "shorter", "gone", "link", "fifo"],
)
def test_a_file_that_changes_is_refused_by_name(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "source" / "some file"
    path.parent.mkdir()
    path.write_bytes(b"x" * 100)
    os.utime(path, (1, 1))
    tree = read_tree(list_folder(path.parent))
    list(tree.tensors)
    change(path)
    with pytest.raises(SealError, match=r"some file changed.*source-changed"):
        seal(tree)


def test_a_change_between_the_passes_is_refused_also_in_the_last_file(tmp_path: Path) -> None:
    path = tmp_path / "only"
    path.write_bytes(b"x" * PIECE)
    tree = read_tree([("only", path)], piece_bytes=PIECE)

    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            if self.passes == 2:
                path.write_bytes(b"y" * PIECE)
                os.utime(path, (1, 1))
            return iter(tree.tensors)

    with pytest.raises(SealError, match="source-changed"):
        seal_package(io.BytesIO(), payload_key=fresh_payload_key(), files={}, tensors=Changing(), extra={})


# -- hostile indexes

HOSTILE = [
    b"/etc/x",
    b"../x",
    b"a/../x",
    b".",
    b"..",
    b"",
    b"a//b",
    b"a/",
    b"./a",
    b"a\0b",
    b"n" * 256,
    b"a/" * 200 + b"a",
]


def packed(entries: list[Entry], /, **table: object) -> bytes:
    """An index of any entries, unchecked."""
    return canonical_json(
        {
            "format": FORMAT,
            "pieceBytes": PIECE,
            "entries": [entry.row() for entry in entries],
            "skipped": [],
            "skippedCount": 0,
            "changed": [],
        }
        | table
    )


def tensors_of(size: int, piece: int = PIECE) -> Mapping[str, tuple[TensorSpec, memoryview]]:
    found = {}
    for number, start in enumerate(range(0, size, piece)):
        data = os.urandom(min(piece, size - start))
        spec = TensorSpec(f"tree/{number}", "uint8", (len(data),))
        found[spec.name] = (spec, memoryview(bytearray(data)))
    return found


def refused(index: bytes, tensors: Mapping[str, tuple[TensorSpec, memoryview]], folder: Path) -> None:
    with pytest.raises(SealError, match="tree-malformed"):
        write_tree(index, tensors, folder)
    assert not folder.exists()  # checked before anything is written


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_path_that_is_none_is_refused(path: bytes, kind: str, tmp_path: Path) -> None:
    refused(packed([Entry(kind, path, target=b"a")]), {}, tmp_path / "target")


@pytest.mark.parametrize(
    "target", [b"/etc", b"..", b"../..", b"a/../..", b"a/..", b"", b"\0", b"a/b/../../..", b"./../x"]
)
def test_a_link_that_leads_out_is_refused(target: bytes, tmp_path: Path) -> None:
    refused(packed([Entry("link", b"link", target=target)]), {}, tmp_path / "target")


def file(path: bytes, size: int = 0) -> Entry:
    return Entry("file", path, size)


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ([file(b"a"), file(b"a")], 0),
        ([file(b"b"), file(b"a")], 0),
        ([file(b"a"), file(b"a/b")], 0),
        ([Entry("link", b"a", target=b"d"), file(b"a/b")], 0),
        ([Entry("link", b"a", target=b"d"), file(b"a-b"), file(b"a/b/c")], 0),
        ([file(b"a", 10)], 11),
        ([file(b"a", 10)], 9),
        ([file(b"a", 10)], 0),
        ([file(b"a", PIECE)], PIECE + 1),
        ([file(b"a", 2**53 - 1), file(b"b", 2**53 - 1)], 10),
        ([file(b"a", 2**53 - 1)], 10),
        ([file(b"a", PIECE * 2**16 + 1)], 10),
    ],
)
def test_entries_that_do_not_fit_are_refused(entries: list[Entry], size: int, tmp_path: Path) -> None:
    refused(packed(entries), tensors_of(size), tmp_path / "target")


@pytest.mark.parametrize(
    "table",
    [
        {"format": "x"},
        {"pieceBytes": 0},
        {"pieceBytes": 1 << 30},
        {"pieceBytes": True},
        {"skippedCount": -1},
        {"skipped": [{"path": "a", "reason": "\x1b[2J"}], "skippedCount": 1},
        {"entries": [{"kind": "file", "path": "a"}]},
        {"entries": [{"kind": "device", "path": "a"}]},
        {"entries": [{"kind": "folder", "path": "a", "rawPath": "YQ"}]},
        {"entries": [{"kind": "folder", "rawPath": "YQ"}]},  # it has a path in UTF-8
        {"entries": {"kind": "folder"}},
        {"entries": [None]},
        {"more": 1},
    ],
)
def test_an_index_that_is_none_is_refused(table: dict[str, object], tmp_path: Path) -> None:
    refused(packed([], **table), {}, tmp_path / "target")
    refused(b"\xff", {}, tmp_path / "target")


ANY = st.one_of(PATH, st.sampled_from(HOSTILE), st.binary(max_size=20))
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["file", "folder", "link"]),
        ANY,
        nbytes=st.integers(0, 2 * PIECE),
        target=st.one_of(ANY, st.sampled_from([b"..", b"../target-2", b"a/../.."])),
    ),
    max_size=8,
)


@settings(max_examples=150)
@given(entries=ENTRIES, ordered=st.booleans(), off=st.sampled_from([0, 0, 0, 1, -1]))
def test_nothing_is_written_outside_whatever_the_index_says(
    entries: list[Entry], ordered: bool, off: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("hostile")
    (base / "target-2").mkdir()
    if ordered:
        entries = list(
            {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.path)}.values()
        )
    size = max(0, sum(entry.nbytes for entry in entries if entry.kind == "file") + off)
    try:
        write_tree(packed(entries), tensors_of(size), base / "target")
    except SealError:
        assert not (base / "target").exists()
    else:
        written = look(base / "target")
        assert {entry.path for entry in entries} <= written.keys()
        for path in written:
            place = os.path.join(os.fsencode(base / "target"), path)  # noqa: PTH118
            real = os.path.realpath(place)
            assert real == os.fsencode(base / "target") or real.startswith(
                os.fsencode(base / "target") + b"/"
            )
    assert {path.name for path in base.iterdir()} <= {"target", "target-2"}
    assert list((base / "target-2").iterdir()) == []


def test_links_that_are_there_already_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    target = tmp_path / "target"
    target.mkdir()
    (target / "d").symlink_to(outside)
    (target / "f").symlink_to(outside / "victim")
    for keep_same in (False, True):
        for name in (b"d/victim", b"f", b"d/new"):
            with pytest.raises(OSError, match=name.decode()) as caught:
                write_tree(packed([file(name, 9)]), tensors_of(9), target, keep_same=keep_same)
            assert caught.value.filename == name.decode()
        with pytest.raises(OSError, match="d"):
            write_tree(packed([Entry("folder", b"d")]), {}, target, keep_same=keep_same)
    assert (outside / "victim").read_bytes() == b"untouched"
    assert len(list(outside.iterdir())) == 1


def test_what_is_there_and_differs_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    entries, contents = [file(b"a", 4), file(b"b", 4), file(b"c/d", 4)], tensors_of(12)
    write_tree(packed(entries), contents, tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(FileExistsError) as caught:
        write_tree(packed(entries), contents, tmp_path, keep_same=True)
    assert caught.value.filename == "b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").unlink()
    write_tree(packed(entries), contents, tmp_path, keep_same=True)
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == contents["tree/0"][1][:8]


def test_a_name_that_is_not_taken_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"mine")
    contents, named = tensors_of(12), dict[str, str]()
    write_tree(
        packed([file(b"a", 4), file(b"b", 4), file(b"c", 4)]), contents, tmp_path, on_name=named.__setitem__
    )
    assert named == {"b": os.strerror(errno.EEXIST)}
    assert (tmp_path / "b").read_bytes() == b"mine"
    assert (tmp_path / "c").read_bytes() == contents["tree/0"][1][8:]


def test_a_disk_that_is_full_names_the_file_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    program = """
import os, resource, signal, sys
from pathlib import Path
from tests.sealing.test_tree import packed, file, tensors_of, write_tree
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    write_tree(packed([file(b"a", 10), file(b"some file", 9000)]), tensors_of(9010), Path(sys.argv[1]))
except OSError as error:
    print(error.errno, error.filename)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "target"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{errno.EFBIG} some file\n"
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["a"]


# -- sizes

MANY = 10_000


def test_ten_thousand_small_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(MANY):
        place = source / f"d{number % 100}"
        if number < 100:
            place.mkdir(parents=True)
        (place / f"{number}.txt").write_bytes(b"%d" % number)
    tree = read_tree(list_folder(source))
    assert len(list(tree.tensors)) == 1
    index = carry(tree, tmp_path, tmp_path / "target")
    assert len(index.files) == MANY
    assert look(tmp_path / "target") == look(source)


LARGE = 1 << 30
SEAL_LARGE = """
import sys, resource
from pathlib import Path
from glasshouse.sealing.tree import INDEX_NAME, list_folder, read_tree
from glasshouse.sealing.container import fresh_payload_key, seal_package
class Nowhere:
    size = 0
    def write(self, data):
        self.size += len(data)
        return len(data)
out = Nowhere()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tree = read_tree(list_folder(Path(sys.argv[1])))
files = {INDEX_NAME: tree.index}
seal_package(out, payload_key=fresh_payload_key(), files=files, tensors=tree.tensors, extra={}, threads=2)
print(out.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def test_a_file_of_a_gibibyte_is_never_in_memory_whole(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as out:
        out.truncate(LARGE)
    done = subprocess.run(
        [sys.executable, "-c", SEAL_LARGE, tmp_path], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > LARGE
    assert grown < LARGE // 3


WRITE_LARGE = """
import mmap, sys
from pathlib import Path
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.memory import give_back, private_region
from glasshouse.sealing.tree import write_tree
from glasshouse.sealing.tree_index import PIECE_BYTES, Entry, Index

LARGE, COUNT = 1 << 30, (1 << 30) // PIECE_BYTES
region = private_region(LARGE)
plain = memoryview(region)
specs = [TensorSpec(f"tree/{at}", "uint8", (PIECE_BYTES,)) for at in range(COUNT)]
tensors = {
    spec.name: (spec, plain[at * PIECE_BYTES : (at + 1) * PIECE_BYTES]) for at, spec in enumerate(specs)
}
for at in range(0, LARGE, mmap.PAGESIZE):
    region[at] = 1
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
full, given, held = resident(), 0, []
def release(view):
    global given
    assert view.nbytes <= PIECE_BYTES
    give_back(view)
    given += view.nbytes
    written = sum(path.stat().st_size for path in Path(sys.argv[1]).iterdir())
    held.append(resident() + written)
write_tree(Index((Entry("file", b"large", LARGE),)).pack(), tensors, Path(sys.argv[1]), release=release)
print(given == LARGE, max(held) - full, full - resident())
"""


def test_memory_is_given_back_while_a_tree_is_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", WRITE_LARGE, target], capture_output=True, text=True, check=True
    )
    everything, twice, freed = done.stdout.split()
    assert everything == "True"
    assert int(twice) < 96 << 20  # one piece, and some for the interpreter
    assert int(freed) > LARGE - (96 << 20)
    assert (target / "large").stat().st_size == LARGE
    (target / "large").unlink()
