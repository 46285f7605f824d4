"""A folder is sealed to its owner whatever happens in it meanwhile: one odd file spoils nothing."""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime.sealer import TREE_TRIES, seal_tree, seal_tree_in_child
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.grant import kem_public_bytes, load_kem_private
from glasshouse.sealing.outputs import open_outputs
from glasshouse.sealing.tree import INDEX_NAME, Index, parse_index, write_tree
from tests.runtime.rig import rig

OWNER = load_kem_private(b"\5" * 32)
CONTEXT = {"run": "20261121-090000-abcdef", "leg": "s000", "launch": "1"}
PIECE = 1 << 12


def opened(data: bytes, scratch: Path) -> tuple[OpenedPackage, Index]:
    sealed = scratch / "sealed"
    sealed.write_bytes(data)
    package = open_outputs(sealed, OWNER, context=CONTEXT)
    sealed.unlink()
    return package, parse_index(package.files[INDEX_NAME])


def sealed_in_child(folder: Path, **arguments: object) -> tuple[bytes, object]:
    read_end, write_end = os.pipe()
    found = list[bytes]()

    def drain() -> None:
        with os.fdopen(read_end, "rb") as stream:
            found.append(stream.read())

    reader = threading.Thread(target=drain)
    reader.start()
    given = {"owner_public": kem_public_bytes(OWNER), "context": CONTEXT, "extra": {"run.log": b"said\n"}}
    try:
        report = seal_tree_in_child(write_end, folder, **(given | arguments))
    finally:
        reader.join()
    return found[0], report


def test_a_folder_comes_back_with_what_was_said_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "sub dir" / "grün.bin").write_bytes(os.urandom(100_000))
    (folder / "latest").symlink_to("sub dir/grün.bin")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo")
    data, report = sealed_in_child(folder)
    assert report.bytes == len(data)
    package, index = opened(data, tmp_path)
    assert bytes(package.files["run.log"]) == b"said\n"
    assert [(item.path, "FIFO" in item.reason) for item in index.skipped] == [("fifo", True)]
    assert (index.changed, package.mismatched) == ((), frozenset())
    write_tree(package.files[INDEX_NAME], package.tensors, tmp_path / "target")
    for name in ("sub dir/grün.bin", "latest"):
        assert (tmp_path / "target" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "target" / "empty").is_dir()


def test_only_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    for name in ("a.pt", "b.tmp"):
        (tmp_path / name).write_bytes(b"x")
    data, _ = sealed_in_child(tmp_path, only=lambda name: name.endswith(".pt"))
    assert [entry.path for entry in opened(data, tmp_path)[1].entries] == [b"a.pt"]


def test_a_file_too_large_to_be_fetched_is_left_out_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    contents = three_files(folder)
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 42)  # a sparse one, which takes nothing there
    data, _ = sealed_in_child(folder)
    package, index = opened(data, tmp_path)
    assert [item.path for item in index.skipped] == ["huge"]
    write_tree(package.files[INDEX_NAME], package.tensors, tmp_path / "target")
    for name, content in contents.items():
        assert (tmp_path / "target" / name).read_bytes() == content


def test_a_folder_that_is_not_there_is_an_empty_tree_that_says_so(tmp_path: Path) -> None:
    data, _ = sealed_in_child(tmp_path / "none")
    _, index = opened(data, tmp_path)
    assert index.entries == ()
    assert [item.path for item in index.skipped] == ["."]


def test_a_sealer_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(LegError, match="sealing-failed"):
        sealed_in_child(tmp_path, owner_public=b"none")


class _Between(Mapping[str, bytes]):
    """Extra files that are taken after the folder was looked at, and before its files are read."""

    def __init__(self, change: Callable[[int], object]) -> None:
        self._turns = itertools.count(1)
        self._change = change

    def __iter__(self) -> Iterator[str]:
        self._change(next(self._turns))
        return iter(["run.log"])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> bytes:
        return b"said\n"


class _AfterManifest(io.BytesIO):
    """A sink that changes something at its first write: then the manifest is fixed."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self._change: Callable[[], object] | None = change

    def write(self, data: bytes, /) -> int:
        if self._change is not None:
            self._change()
            self._change = None
        return super().write(data)


def three_files(folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    contents = {name: os.urandom(PIECE + 100) for name in ("a", "odd", "z")}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (1, 1))
    return contents


def seal_while(folder: Path, out: io.BytesIO, extra: Mapping[str, bytes]) -> bytes:
    seal_tree(
        out, folder, owner_public=kem_public_bytes(OWNER), context=CONTEXT, extra=extra, piece_bytes=PIECE
    )
    return out.getvalue()


CHANGES: dict[str, Callable[[Path, int], object]] = {
    "gone": lambda path, _: path.unlink(missing_ok=True),
    "shorter": lambda path, turn: path.write_bytes(b"x" * (1000 - turn)),
    "longer": lambda path, turn: path.write_bytes(b"x" * (20_000 + turn)),
    "link": lambda path, _: (path.unlink(), path.symlink_to("/etc/passwd")),
    "folder": lambda path, turn: turn == 1 and (path.unlink(), path.mkdir(), (path / "in").touch()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_before_it_is_read_is_looked_at_anew(tmp_path: Path, what: str) -> None:
    contents = three_files(tmp_path / "out")

    def change(turn: int) -> None:
        if turn == 1:
            CHANGES[what](tmp_path / "out" / "odd", turn)

    data = seal_while(tmp_path / "out", io.BytesIO(), _Between(change))
    package, index = opened(data, tmp_path)
    assert package.mismatched == frozenset()
    write_tree(package.files[INDEX_NAME], package.tensors, tmp_path / "target")
    for name in ("a", "z"):
        assert (tmp_path / "target" / name).read_bytes() == contents[name]
    odd = tmp_path / "out" / "odd"
    if what in ("shorter", "longer"):
        assert (tmp_path / "target" / "odd").read_bytes() == odd.read_bytes()
        assert index.changed == ("odd",)
    elif what == "folder":
        assert (tmp_path / "target" / "odd" / "in").exists()
    else:
        assert [item.path for item in index.skipped] == ["odd"]
        assert not (tmp_path / "target" / "odd").exists()


@pytest.mark.parametrize("what", ["shorter", "longer"])
def test_what_never_stops_changing_is_carried_as_far_as_it_was_read(tmp_path: Path, what: str) -> None:
    contents = three_files(tmp_path / "out")
    turns = list[int]()

    def change(turn: int) -> None:
        turns.append(turn)
        CHANGES[what](tmp_path / "out" / "odd", turn)

    data = seal_while(tmp_path / "out", io.BytesIO(), _Between(change))
    assert len(turns) == TREE_TRIES
    package, index = opened(data, tmp_path)
    assert index.changed == ("odd",)
    write_tree(package.files[INDEX_NAME], package.tensors, tmp_path / "target")
    for name in ("a", "z"):
        assert (tmp_path / "target" / name).read_bytes() == contents[name]
    if what == "shorter":  # what was missing was filled, and the digest shows it
        assert "odd" in index.files_in(package.mismatched)
    else:
        assert (tmp_path / "target" / "odd").read_bytes() == b"x" * (20_000 + TREE_TRIES - 1)


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_after_the_manifest_is_told_by_its_pieces(tmp_path: Path, what: str) -> None:
    contents = three_files(tmp_path / "out")
    out = _AfterManifest(lambda: CHANGES[what](tmp_path / "out" / "odd", 1))
    package, index = opened(seal_while(tmp_path / "out", out, {}), tmp_path)
    doubtful = index.files_in(package.mismatched)
    assert "odd" in doubtful
    write_tree(package.files[INDEX_NAME], package.tensors, tmp_path / "target")
    for name in ("a", "z"):
        assert (tmp_path / "target" / name).read_bytes() == contents[name]


def test_a_folder_in_which_everything_moves_is_sealed_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    contents = three_files(folder)
    stop = threading.Event()

    def stir() -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            path = folder / f"moving-{turn % 7}"
            match turn % 5:
                case 0 | 1:
                    path.write_bytes(os.urandom(turn % 9000))
                case 2:
                    path.unlink(missing_ok=True)
                case 3:
                    path.rename(folder / f"moving-{(turn + 3) % 7}") if path.exists() else None
                case 4:
                    with path.open("ab") as file:
                        file.write(b"line\n")

    stirring = threading.Thread(target=stir)
    stirring.start()
    try:
        for _ in range(20):
            data = seal_while(folder, io.BytesIO(), {})
            package, index = opened(data, tmp_path)
            target = tmp_path / f"target-{len(list(tmp_path.iterdir()))}"
            write_tree(package.files[INDEX_NAME], package.tensors, target)
            for name in ("a", "odd", "z"):
                assert (target / name).read_bytes() == contents[name]
            assert index.nbytes >= 3 * (PIECE + 100)
    finally:
        stop.set()
        stirring.join()


CONFINED = """
import io, stat
from pathlib import Path
from glasshouse.runtime.sealer import seal_tree
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.sealing.tree import list_folder, read_tree, write_tree
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        source = Path("source")
        (source / "a folder" / "empty").mkdir(parents=True)
        (source / "run.sh").write_bytes(os.urandom(10000))
        (source / "run.sh").chmod(0o755)
        (source / "a folder" / "link").symlink_to("../run.sh")
        tree = read_tree(list_folder(source), piece_bytes=4096)
        write_tree(tree.index, {spec.name: (spec, data) for spec, data in tree.tensors}, Path("project"))
        assert (Path("project") / "a folder" / "link").read_bytes() == (source / "run.sh").read_bytes()
        assert os.access("project/run.sh", os.X_OK)
        public = kem_public_bytes(generate_kem_key())
        out = io.BytesIO()
        report = seal_tree(out, Path("project"), owner_public=public, context={"a": "b"}, extra={})
        assert report.bytes == len(out.getvalue()) > 10000
        print("carried", flush=True)
"""


def test_a_confined_trainer_writes_a_tree_and_seals_a_folder() -> None:
    with rig(CONFINED) as made:
        leg = made.launch()
        result = leg.wait()
        log = bytes(made.open(leg, "log.sealed").files["trainer.log"]).decode()
        assert result["status"] == "complete", log
        assert log == "carried\n"
