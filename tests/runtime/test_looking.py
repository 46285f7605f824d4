"""When a folder rests, and what in it is whole, as far as stat(2) tells."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime.looking import Entry, TooManyError, changed, is_empty, kept, look, marks

TICK = 0.02  # more than one of the kernel's clock


def filled(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names or ("weights.bin",):
        (folder / name).write_bytes(b"w" * 100)
    return folder


def roots(folder: Path, ready: str = "") -> set[str]:
    return {mark.root for mark in marks(look(folder), ready)}


def test_a_look_tells_every_change_and_none_where_there_is_none(tmp_path: Path) -> None:
    assert look(tmp_path / "nowhere") == {}
    filled(tmp_path / "a" / "b")
    before = look(tmp_path)
    assert set(before) == {"a", "a/b", "a/b/weights.bin"}
    assert look(tmp_path) == before
    path = tmp_path / "a" / "b" / "weights.bin"
    time.sleep(TICK)
    path.write_bytes(b"x" * 100)
    after = look(tmp_path)
    assert after != before
    # Times can be copied, as `cp -p` does; that of the change of state cannot.
    os.utime(path, ns=(before["a/b/weights.bin"].mtime, before["a/b/weights.bin"].mtime))
    seen = look(tmp_path)["a/b/weights.bin"]
    assert seen.mtime == before["a/b/weights.bin"].mtime
    assert seen != before["a/b/weights.bin"]


def test_folders_alone_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert is_empty(look(tmp_path))
    (tmp_path / "a" / "file").touch()
    assert not is_empty(look(tmp_path))


def test_what_does_not_count_is_not_seen(tmp_path: Path) -> None:
    filled(tmp_path / "writing")
    filled(tmp_path / "checkpoint-1")
    assert set(look(tmp_path, lambda name: not name.startswith("writing"))) == {
        "checkpoint-1", "checkpoint-1/weights.bin",
    }  # fmt: skip


def test_no_more_is_looked_at_than_can_be_sealed(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}").touch()
    with pytest.raises(TooManyError):
        look(tmp_path, most=10)


def test_a_folder_that_is_filled_in_place_is_not_whole(tmp_path: Path) -> None:
    filled(tmp_path / "checkpoint-1", "a", "b")
    assert roots(tmp_path) == set()


def test_a_folder_that_is_renamed_into_place_is_whole_until_something_in_it_is_touched(
    tmp_path: Path,
) -> None:
    place = filled(tmp_path / "tmp-checkpoint-1", "a", "b")
    time.sleep(TICK)
    place = place.rename(tmp_path / "checkpoint-1")
    first = marks(look(tmp_path), "")
    assert {mark.root for mark in first} == {"checkpoint-1"}
    # What else lies in the folder, or is written there later, does not matter to it.
    (tmp_path / "log.jsonl").write_text("step 1\n")
    assert marks(look(tmp_path), "") == first
    time.sleep(TICK)
    with (place / "a").open("ab") as file:
        file.write(b"more")
    assert roots(tmp_path) == set()


def test_an_empty_folder_and_one_within_a_renamed_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    time.sleep(TICK)
    (tmp_path / "x").rename(tmp_path / "y")
    assert roots(tmp_path) == set()
    inner = filled(tmp_path / "runs" / "tmp")
    time.sleep(TICK)
    inner.rename(tmp_path / "runs" / "step-5")
    assert roots(tmp_path) == {"runs/step-5"}


def test_a_second_rename_is_another_mark(tmp_path: Path) -> None:
    place = filled(tmp_path / "tmp")
    time.sleep(TICK)
    place = place.rename(tmp_path / "best")
    (first,) = marks(look(tmp_path), "")
    (place / "weights.bin").write_bytes(b"better")
    time.sleep(TICK)
    place.rename(tmp_path / "tmp").rename(tmp_path / "best")
    (second,) = marks(look(tmp_path), "")
    assert (second.root, second.inode) == (first.root, first.inode)
    assert second != first


@pytest.mark.parametrize(
    ("ready", "path", "root"),
    [
        ("latest", "latest", ""),
        ("*/trainer_state.json", "checkpoint-5/trainer_state.json", "checkpoint-5"),
        ("checkpoint-*/DONE", "checkpoint-5/DONE", "checkpoint-5"),
    ],
)
def test_a_named_file_marks_what_lies_in_its_folder(tmp_path: Path, ready: str, path: str, root: str) -> None:
    filled(tmp_path / "checkpoint-5")
    assert roots(tmp_path, ready) == set()
    time.sleep(TICK)
    (tmp_path / path).write_text("5")
    first = marks(look(tmp_path), ready)
    assert {mark.root for mark in first} == {root}
    assert roots(tmp_path, "another") == set()
    # The next save begins: until the file says so again, nothing is whole.
    time.sleep(TICK)
    (tmp_path / "checkpoint-5" / "weights.bin").write_bytes(b"half")
    assert roots(tmp_path, ready) == set()
    time.sleep(TICK)
    (tmp_path / path).write_text("6")
    again = marks(look(tmp_path), ready)
    assert {mark.root for mark in again} == {root}
    assert again != first


def test_a_folder_of_that_name_marks_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "latest")
    (tmp_path / "ready").symlink_to("latest/weights.bin")
    assert roots(tmp_path, "latest") == set()
    assert roots(tmp_path, "ready") == set()


def test_a_set_is_the_same_where_nothing_beneath_it_differs(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    filled(tmp_path / "ab")
    before = look(tmp_path)
    time.sleep(TICK)
    (tmp_path / "ab" / "weights.bin").write_bytes(b"other")
    after = look(tmp_path)
    assert changed(before, after) == {"ab/weights.bin", "ab", ""}
    assert changed(before, before) == set()
    filled(tmp_path / "ab" / "new")
    assert changed(after, look(tmp_path)) == {"ab/new/weights.bin", "ab/new", "ab", ""}
    assert changed(before, {}) == {"a", "a/weights.bin", "ab", "ab/weights.bin", ""}


def deep(files: int, folders: int) -> dict[str, Entry]:
    """So many folders within each other, and files in the innermost, each as old as its number."""
    seen = {
        "/".join(["d"] * depth): Entry(stat.S_IFDIR, 0, 1, 10**6 + depth, depth)
        for depth in range(1, folders + 1)
    }
    inner = "/".join(["d"] * folders)
    return seen | {f"{inner}/{number}": Entry(stat.S_IFREG, 1, 1, number, 1) for number in range(files)}


@pytest.mark.parametrize("what", ["deep", "wide"])
def test_it_takes_time_by_the_entry_and_not_by_the_depth_or_the_marks(what: str) -> None:
    if what == "deep":
        seen = deep(20_000, 900)
        expected = {"/".join(["d"] * 900)}  # of the others, something beneath is newer
    else:
        seen = {f"{number}": Entry(stat.S_IFDIR, 0, 1, 9, number) for number in range(20_000)}
        expected = set(seen)
        seen |= {f"{number}/file": Entry(stat.S_IFREG, 1, 1, 5, 1) for number in range(20_000)}
    began = time.process_time()
    found = marks(seen, "")
    assert {mark.root for mark in found} == expected
    touched = changed(seen, {**seen, "new": Entry(stat.S_IFREG, 1, 1, 5, 1)})
    assert touched == {"new", ""}
    assert time.process_time() - began < 3.0


@given(
    st.dictionaries(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join),
        st.tuples(st.booleans(), st.integers(1, 4), st.integers(1, 4)),
        max_size=12,
    )
)
def test_marked_is_what_was_renamed_with_a_file_and_nothing_newer_beneath(
    drawn: dict[str, tuple[bool, int, int]],
) -> None:
    seen = {
        path: Entry(stat.S_IFDIR if folder else stat.S_IFREG, 1, mtime, ctime, 1)
        for path, (folder, mtime, ctime) in drawn.items()
    }
    expected = set()
    for root, entry in seen.items():
        beneath = [each for path, each in seen.items() if path.startswith(f"{root}/")]
        if (
            stat.S_ISDIR(entry.kind)
            and entry.ctime > entry.mtime
            and any(stat.S_ISREG(each.kind) for each in beneath)
            and all(each.ctime <= entry.ctime for each in beneath)
        ):
            expected.add(root)
    assert {mark.root for mark in marks(seen, "")} == expected


def test_a_long_look_can_be_ended_and_long_names_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        (tmp_path / f"{number}").touch()

    def stop() -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        look(tmp_path, beat=stop)
    monkeypatch.setattr("glasshouse.runtime.looking.MAX_INDEX_BYTES", 1000)
    with pytest.raises(TooManyError):
        look(tmp_path)


@pytest.mark.parametrize(
    ("states", "stay"),
    [
        ("", set()),
        ("u", {1}),
        ("uu", {1, 2}),
        ("uuu", {2, 3}),
        ("wuu", {1, 3}),  # the one that is known to be good is not pushed out by two that are not
        ("www", {2, 3}),
        ("wuw", {1, 3}),
    ],
)
def test_two_are_kept_and_a_whole_one_is_among_them(states: str, stay: set[int]) -> None:
    words = {"u": "unmarked", "w": "whole"}
    assert kept({number: words[word] for number, word in enumerate(states, 1)}) == stay


@given(st.lists(st.sampled_from(["whole", "unmarked"]), min_size=1, max_size=40))
def test_the_newest_stays_and_so_does_the_newest_whole_one(states: list[str]) -> None:
    have: dict[int, str] = {}
    for number, state in enumerate(states, 1):
        have[number] = state
        have = {each: have[each] for each in kept(have)}
        assert number in have
        assert len(have) <= 2
        whole = [each for each, word in enumerate(states[:number], 1) if word == "whole"]
        assert not whole or whole[-1] in have
