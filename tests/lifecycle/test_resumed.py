"""A checkpoint opened for the next package: its contents come out right, in memory, and are wiped."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from glasshouse import config
from glasshouse.canonical import canonical_json
from glasshouse.errors import GlasshouseError, SealError, UsageError
from glasshouse.lifecycle import resumed
from glasshouse.runtime import resume
from glasshouse.sealing.container import fresh_payload_key, open_package, seal_package
from glasshouse.spec import RunSpec
from tests.lifecycle.checkpoint_kit import Died, died

NEEDLE = b"NEEDLE-of-the-owner" * 50
WORDS = ["order=protected-only", "payload=private", "duration=null", "steps=100"]
STATE = {
    "checkpoint-20/state.safetensors": b"older",
    "checkpoint-20/state.json": b"{}",
    "checkpoint-100/state.safetensors": NEEDLE,
    "checkpoint-100/state.json": canonical_json({"steps": 100}),
    "writing/state.safetensors": b"half",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def project(home: Path, *files: dict[str, bytes], **made: object) -> tuple[Died, RunSpec]:
    (home / "mine").mkdir()
    (home / "mine" / "train.py").write_text("print()")
    words = [
        "model=project",
        f"model.folder={home / 'mine'}",
        "model.outputs=out",
        "model.command=[python,train.py]",
    ]
    run = died(home, config.load(words), files, overrides=words, **made)  # type: ignore[arg-type]
    return run, config.load([f"from={run.run}"], runs=run.folder.parent)


def test_a_projects_files_go_into_the_next_package_as_they_were(home: Path) -> None:
    files = {"a/state.pt": NEEDLE, "b": b"", "c.txt": b"three"}
    _, spec = project(home, files)
    out, key = io.BytesIO(), fresh_payload_key()
    with resumed.opened(spec) as found:
        assert found.nbytes == len(NEEDLE) + 5
        digest = seal_package(out, payload_key=key, files=found.files, tensors=found.tensors, extra={})
    assert NEEDLE[:19] not in out.getvalue()
    sealed = home / "package.sealed"
    sealed.write_bytes(out.getvalue())
    with open_package(sealed, payload_key=key, manifest_hash=digest) as package:
        assert resume.put_back(package.files, package.tensors, home / "back")
    assert {
        str(path.relative_to(home / "back")) for path in (home / "back").rglob("*") if path.is_file()
    } == set(files)
    for name, data in files.items():
        assert (home / "back" / name).read_bytes() == data


def test_a_sessions_state_is_the_newest_whole_one_and_is_wiped(home: Path) -> None:
    run = died(home, config.load(WORDS), [STATE], overrides=WORDS, steps=[40])
    spec = config.load([f"from={run.run}"], runs=run.folder.parent)
    with resumed.opened(spec) as found:
        assert bytes(found.files[resume.TENSORS]) == NEEDLE
        assert bytes(found.files[resume.VALUES]) == canonical_json({"steps": 100})
        views = list(found.files.values())
    assert all(not any(memoryview(view)) for view in views)


def test_nothing_of_it_lies_on_this_machines_disk(home: Path) -> None:
    """But for what the test itself sealed it from."""
    run = died(home, config.load(WORDS), [STATE], overrides=WORDS, steps=[40])
    spec = config.load([f"from={run.run}"], runs=run.folder.parent)
    before = {path for path in home.rglob("*") if path.is_file()}
    with resumed.opened(spec):
        after = {path for path in home.rglob("*") if path.is_file()}
    assert after == before


def test_one_without_a_state_is_said(home: Path) -> None:
    run = died(home, config.load(WORDS), [{"a": b"1"}], overrides=WORDS, steps=[40])
    spec = config.load([f"from={run.run}"], runs=run.folder.parent)
    with pytest.raises(UsageError, match="holds no state"), resumed.opened(spec):
        pass


def test_what_nothing_marked_as_whole_is_said(home: Path) -> None:
    _, spec = project(home, {"a": b"1"}, states=["unmarked"])
    said: list[str] = []
    with resumed.opened(spec, said.append):
        pass
    assert "may be torn" in said[0]
    assert len(said) == 1


def test_one_that_was_marked_is_named_beside_one_that_was_not(home: Path) -> None:
    run, spec = project(home, {"a": b"1"}, {"a": b"2"}, states=["whole", "unmarked"])
    said: list[str] = []
    with resumed.opened(spec, said.append):
        pass
    assert f"from={run.run}@1" in said[1]


def test_one_that_was_exchanged_since_the_plan_is_refused(home: Path) -> None:
    run, spec = project(home, {"a": b"1"})
    run.place(1).write_bytes(b"other")
    with pytest.raises(GlasshouseError, match="checkpoint-torn"), resumed.opened(spec):
        pass
    run.drop(1)
    with pytest.raises(UsageError, match="not here any more"), resumed.opened(spec):
        pass


def test_another_owners_is_said_in_words(home: Path) -> None:
    _, spec = project(home, {"a": b"1"})
    (own,) = (home / "home" / "keys").glob("owner*")
    own.unlink()
    with pytest.raises(SealError, match="another owner's key"), resumed.opened(spec):
        pass


def test_what_no_job_makes_is_refused_before_anything_is_rented(home: Path) -> None:
    _, spec = project(home, {".glasshouse-wheels/a.whl": b"a wheel"})
    with pytest.raises(UsageError, match=r"files in \.glasshouse-wheels"):
        resumed.check_beforehand(spec)
