"""Of a job's whole folder comes back what it made or changed, and nothing that is as it was sent."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime import comes_back
from glasshouse.runtime.params import WHEELS_FOLDER
from glasshouse.runtime.project import found_in
from glasshouse.sealing.tree import list_folder, read_tree, write_tree


def project(folder: Path, files: dict[str, bytes]) -> tuple[Path, comes_back.Sent]:
    """A folder as it was sent, and what its package says of it."""
    mine = folder / "mine"
    for name, data in files.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_bytes(data)
    (mine / "link").symlink_to(next(iter(files)))
    tree = read_tree(list_folder(mine))
    place = folder / "place"
    write_tree(tree.index, {spec.name: (spec, data) for spec, data in tree.tensors}, place)
    return place, comes_back.sent(tree.index)


def back(place: Path, came: comes_back.Sent) -> set[str]:
    found, lost = found_in(place, comes_back.taken(place, comes_back.WHOLE, came))
    assert lost == []
    return {os.fsdecode(entry.path) for entry in found.found.entries}


def test_what_was_made_or_changed_comes_back(tmp_path: Path) -> None:
    place, came = project(tmp_path, {"a.py": b"one", "src/b.py": b"two", "src/deep/c.json": b"{}"})
    assert back(place, came) == set()
    (place / "src/b.py").write_bytes(b"new")  # as long as before
    (place / "src/deep/c.json").chmod(0o755)
    (place / "runs/exp 1").mkdir(parents=True)
    (place / "runs/exp 1/model ü.pt").write_bytes(b"weights")
    (place / "empty").mkdir()
    (place / "src/new").symlink_to("b.py")
    for name in ("__pycache__", "src/__pycache__", WHEELS_FOLDER):
        (place / name).mkdir()
        (place / name / "x.pyc").write_bytes(b"x")
    assert back(place, came) == {
        "src/b.py", "src/deep/c.json", "runs/exp 1/model ü.pt", "empty", "src/new"
    }  # fmt: skip


def test_what_became_something_else_comes_back_as_that(tmp_path: Path) -> None:
    place, came = project(tmp_path, {"a.py": b"one", "src/b.py": b"two"})
    (place / "link").unlink()
    (place / "link").symlink_to("src")
    (place / "a.py").unlink()
    (place / "a.py").mkdir()
    (place / "a.py/x").write_bytes(b"x")
    (place / "src/b.py").unlink()
    (place / "src").rmdir()
    (place / "src").write_bytes(b"a file now")
    os.mkfifo(place / "fifo")
    assert back(place, came) == {"link", "a.py/x", "src"}


def test_what_the_caller_leaves_out_of_the_sent_comes_back_as_it_is(tmp_path: Path) -> None:
    place, came = project(tmp_path, {"a.py": b"one", "runs/last.pt": b"of the run before"})
    kept = {path: entry for path, entry in came.items() if not path.startswith(b"runs/")}
    assert back(place, kept) == {"runs/last.pt"}


def test_a_folder_of_outputs_comes_back_as_a_whole(tmp_path: Path) -> None:
    assert comes_back.taken(tmp_path, "outputs", {}) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_no_name_breaks_it(name: bytes) -> None:
    only = comes_back.taken(Path("/nowhere"), comes_back.WHOLE, {})
    assert only is not None
    assert only(os.fsdecode(name)) in (True, False)
