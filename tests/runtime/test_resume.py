"""What a job goes on from is put back before anything of the owner's runs, and nothing else is believed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json
from glasshouse.errors import LegError, SealError
from glasshouse.runtime import resume
from glasshouse.runtime.harness import safetensors_layout, tensor_bytes
from glasshouse.runtime.safetensors import parse_safetensors, read_safetensors
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.tree import list_folder, read_tree


def file_of(tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file, as a checkpoint has it."""
    described = {
        name: (
            str(value.dtype).removeprefix("torch."),
            list(value.shape),
            value.numel() * value.element_size(),
        )
        for name, value in tensors.items()
    }
    head, order = safetensors_layout(described)
    return head + b"".join(bytes(tensor_bytes(tensors[name])[0]) for name in order)


TENSORS = {
    "weights.a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7.0),
    "random.cpu": torch.arange(9, dtype=torch.uint8),
    "empty": torch.empty((0, 3), dtype=torch.int64),
    "flags": torch.tensor([True, False]),
}


def test_tensors_come_back_bit_for_bit() -> None:
    found = read_safetensors(file_of(TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value)


def head(entry: Any, body: bytes = b"") -> bytes:
    text = canonical_json(entry)
    return struct.pack("<Q", len(text)) + text + body


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 1 << 60) + b"{}",
        head([]),
        head({"a": {**F4, "dtype": "F31"}}, b"1234"),
        head({"a": {**F4, "shape": [2]}}, b"1234"),
        head({"a": {**F4, "shape": [-1]}}, b"1234"),
        head({"a": {**F4, "data_offsets": [0, 8]}}, b"1234"),
        head({"a": F4, "b": F4}, b"1234"),
        head({"a": {**F4, "data_offsets": [4, 8]}}, b"12341234"),
        head({"a": F4}, b"12345"),
        head({"a": {**F4, "more": 1}}, b"1234"),
    ],
)
def test_another_form_of_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_safetensors(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_bytes_lie_there_are_a_file_or_a_value_error(data: bytes, headed: bool) -> None:
    whole = file_of(TENSORS)
    tried = data if not headed else whole[: len(data)] + data + whole[2 * len(data) :]
    try:
        found = parse_safetensors(tried)
    except ValueError:
        return
    assert sum(view.nbytes for _, _, view in found.values()) <= len(tried)


class Session:
    """One that keeps what it is given."""

    def restore(self, tensors: dict[str, Any], values: dict[str, Any]) -> None:
        if values["steps"] < 0:
            raise ValueError("steps is no number of steps")
        self.given = (tensors, values)


def state(**values: Any) -> dict[str, Any]:
    return {resume.TENSORS: file_of(TENSORS), resume.VALUES: canonical_json({"steps": 3, **values})}


def test_a_session_gets_its_state() -> None:
    session = Session()
    assert resume.restore(session, state())
    assert session.given[1] == {"steps": 3}
    assert torch.equal(session.given[0]["weights.a"], TENSORS["weights.a"])


def test_a_session_that_begins_anew_gets_none() -> None:
    session = Session()
    assert not resume.restore(session, {"workload.py": b""})
    assert not hasattr(session, "given")


@pytest.mark.parametrize(
    ("session", "files"),
    [
        (Session(), state(steps=-1)),
        (Session(), {**state(), resume.VALUES: b"[]"}),
        (Session(), {**state(), resume.VALUES: b"{"}),
        (Session(), {**state(), resume.TENSORS: b"no file"}),
        (Session(), {resume.VALUES: b"{}"}),
        (object(), state()),
    ],
)
def test_what_a_session_does_not_take_ends_the_leg_by_its_code(session: Any, files: dict[str, Any]) -> None:
    with pytest.raises(LegError) as caught:
        resume.restore(session, files)
    assert caught.value.code == "checkpoint-not-restored"


# --- a project's files -----------------------------------------------------------------------


def package(folder: Path, files: dict[str, bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and tensors of a package that holds these files as what is gone on from."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    tree = read_tree(list_folder(folder), piece_bytes=4)
    tensors = {
        f"{resume.PREFIX}{spec.name}": (
            TensorSpec(f"{resume.PREFIX}{spec.name}", spec.dtype, spec.shape),
            view,
        )
        for spec, view in tree.tensors
    }
    return {resume.INDEX: tree.index}, tensors


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_outputs_folder_is_the_checkpoints_alone(tmp_path: Path) -> None:
    place = tmp_path / "project"
    (place / "out").mkdir(parents=True)
    (place / "out" / "old").write_bytes(b"went along")
    (place / "train.py").write_bytes(b"code")
    files = {"a/state.pt": b"0123456789", "b": b""}
    assert resume.put_back(*package(tmp_path / "saved", files), place / "out")
    assert there(place) == {"train.py": b"code", "out/a/state.pt": b"0123456789", "out/b": b""}


def test_where_all_of_the_folder_comes_back_the_rest_of_it_stays(tmp_path: Path) -> None:
    place = tmp_path / "project"
    (place / "logs").mkdir(parents=True)
    (place / "train.py").write_bytes(b"code")
    (place / "log").write_bytes(b"of before")
    (place / "link").symlink_to("train.py")
    files = {"log": b"of then", "model/state.pt": b"0123456789", "link": b"no link any more"}
    assert resume.put_back(*package(tmp_path / "saved", files), place, whole=True)
    assert there(place) == {"train.py": b"code", **files}
    assert not (place / "link").is_symlink()


def _link(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "x").write_bytes(b"mine")
    (place / "out").symlink_to("data")


def _file(place: Path) -> None:
    (place / "out").write_bytes(b"a file")


def _folder(place: Path) -> None:
    (place / "out" / "deep").mkdir(parents=True)
    (place / "out" / "deep" / "y").write_bytes(b"y")


def _links_in_folder(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "x").write_bytes(b"mine")
    (place / "out").mkdir()
    (place / "out" / "there").symlink_to("../data")


@pytest.mark.parametrize("before", [_link, _file, _folder, _links_in_folder])
@pytest.mark.parametrize("now", ["file", "folder", "empty", "link"])
def test_a_job_that_changed_the_kind_of_a_path_goes_on(
    tmp_path: Path, before: Callable[[Path], None], now: str
) -> None:
    """And nothing that a link led to is lost."""
    place, saved = tmp_path / "project", tmp_path / "saved"
    place.mkdir()
    saved.mkdir()
    (place / "train.py").write_bytes(b"code")
    before(place)
    if now == "link":
        (saved / "out").symlink_to("elsewhere")
    if now == "empty":
        (saved / "out").mkdir()
    files = {"file": {"out": b"new"}, "folder": {"out/x": b"new"}}.get(now, {})
    files_there = {f"out/{name}": data for name, data in there(place / "out").items()}
    assert resume.put_back(*package(saved, files), place, whole=True)
    assert (place / "train.py").read_bytes() == b"code"
    if (place / "data").exists():
        assert there(place / "data") == {"x": b"mine"}
    if now == "link":
        assert os.readlink(place / "out") == "elsewhere"  # noqa: PTH115
    elif now == "empty":
        assert (place / "out").is_dir()
        assert not (place / "out").is_symlink()
    else:
        kept = files_there if before is _folder and now == "folder" else {}
        found = there(place)
        assert {name: found[name] for name in found if name.startswith("out")} == {**kept, **files}


def test_a_project_that_begins_anew_keeps_what_went_along(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"went along")
    assert not resume.put_back({}, {}, tmp_path / "out")
    assert (tmp_path / "out" / "old").exists()


def test_a_link_in_the_place_of_the_folder_is_not_followed_out(tmp_path: Path) -> None:
    place, other = tmp_path / "project", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    (other / "mine").write_bytes(b"mine")
    (place / "out").symlink_to(other)
    files, tensors = package(tmp_path / "saved", {"mine": b"theirs"})
    with pytest.raises((OSError, SealError)):
        resume.put_back(files, tensors, place / "out")
    assert (other / "mine").read_bytes() == b"mine"
    assert [path.name for path in other.iterdir()] == ["mine"]
