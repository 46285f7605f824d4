"""At home: all that was sealed for an owner with two keys, under a passphrase, opens with either of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse import config, paths
from glasshouse.lifecycle import resumed
from glasshouse.records import keys, locked
from glasshouse.runtime.resume import INDEX
from tests.commands.kit import Call
from tests.lifecycle.checkpoint_kit import died
from tests.watching.kit import RUN, JobAtHome


@pytest.fixture
def spare(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another key of the owner's; keys are under a passphrase, which a file has."""
    folder = tmp_path_factory.mktemp("stick")
    words = folder / "words"
    words.write_text("correct horse battery staple\n")
    words.chmod(0o600)
    monkeypatch.setenv(locked.VARIABLE, str(words))
    locked.forget()
    keys.make_all()
    keys.add_owner(folder / "owner.key")
    keys.relock(locked.new_passphrase("the keys"))
    locked.forget()
    assert locked.is_locked((paths.keys_dir() / "owner.xwing").read_bytes())
    yield folder / "owner.key"
    locked.forget()


def swap(spare: Path) -> None:
    """This machine has the other key alone from now on, as if the first were lost."""
    (paths.keys_dir() / "owner.xwing").unlink()
    shutil.copy(spare, paths.keys_dir() / "owner.xwing")
    locked.forget()


@pytest.mark.parametrize("lost", [False, True], ids=["with this machine's", "with the other one"])
def test_what_is_watched_and_printed_is_shown(
    spare: Path, elsewhere: Path, call: Call, *, lost: bool
) -> None:
    job = JobAtHome(elsewhere / "runs", steps=400, duration=None)
    job.log.write(b"printed this\n")
    (job.job / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 0.5}) + "\n")
    job.record()
    if lost:
        swap(spare)
    code, out, _ = call("watch", RUN)
    assert (code, "loss 0.5" in out) == (0, True)
    code, out, _ = call("logs", RUN)
    assert (code, out) == (0, "printed this\n")
    assert call("pages", "--private", "--out", str(elsewhere / "own"))[0] == 0


@pytest.mark.parametrize("lost", [False, True], ids=["with this machine's", "with the other one"])
def test_a_checkpoint_is_opened_and_gone_on_from(
    spare: Path, elsewhere: Path, call: Call, *, lost: bool
) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "train.py").write_text("print()")
    words = ["model=project", f"model.folder={elsewhere / 'mine'}", "model.outputs=out",
             "model.command=[python,train.py]"]  # fmt: skip
    run = died(elsewhere, config.load(words), [{"state.pt": b"weights"}], overrides=words)
    if lost:
        swap(spare)
    name = str(run.folder)
    code, _, err = call("open", name, "--checkpoint", "1", "--to", str(elsewhere / "one"))
    assert code == 0, err
    assert call("open", name, "--checkpoint", "1", "--to", "two", "--key", str(spare))[0] == 0
    for place in ("one", "two"):
        (found,) = (elsewhere / place).rglob("state.pt")
        assert found.read_bytes() == b"weights"
    spec = config.load([f"from={run.run}"], runs=run.folder.parent)
    with resumed.opened(spec) as found_again:
        assert INDEX in found_again.files
        assert found_again.nbytes == len(b"weights")
