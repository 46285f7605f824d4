"""Private keys under a passphrase, several keys of one owner, and a backup that brings a lost folder back."""

from __future__ import annotations

import io
import os
import pty
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse import paths
from glasshouse.cli import main
from glasshouse.errors import GlasshouseError, SealError, UsageError
from glasshouse.records import key_backup, keys, locked
from glasshouse.records.keys import public_bytes
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.sealing.outputs import open_outputs, seal_outputs

WORDS = b"correct horse battery staple"
CONTEXT = {"run": "r", "leg": "s000", "launch": "1"}


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    locked.forget()
    yield
    locked.forget()


@pytest.fixture
def passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(WORDS + b"\nand nothing of this line\n")
    path.chmod(0o600)
    monkeypatch.setenv(locked.VARIABLE, str(path))
    return path


def test_keys_are_put_under_a_passphrase_and_work_with_it_alone(
    passphrase: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (public_bytes(keys.operator_key()), kem_public_bytes(keys.owner_key()))
    seed = keys._raw_private(paths.keys_dir() / "owner.xwing").split()[1]
    assert main(["keys", "--lock"]) == 0
    assert WORDS.decode() not in "".join(capsys.readouterr())
    for path in keys.private_files():
        assert locked.is_locked(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"PRIVATE KEY" not in path.read_bytes()
        assert seed not in path.read_bytes()
    assert len(keys.private_files()) == 4
    locked.forget()
    assert (public_bytes(keys.operator_key()), kem_public_bytes(keys.owner_key())) == before
    # A key that is made later is under it, too.
    keys.rotate("broker", 3)
    assert locked.is_locked((paths.keys_dir() / "broker.ed25519.pem").read_bytes())

    locked.forget()
    passphrase.write_bytes(b"another passphrase\n")
    with pytest.raises(UsageError, match="does not open it"):
        keys.operator_key()
    monkeypatch.delenv(locked.VARIABLE)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UsageError, match="nobody is there to type it") as caught:
        keys.owner_key()
    assert locked.VARIABLE in str(caught.value)

    passphrase.write_bytes(WORDS)
    monkeypatch.setenv(locked.VARIABLE, str(passphrase))
    assert main(["keys", "--unlock"]) == 0
    monkeypatch.delenv(locked.VARIABLE)
    locked.forget()
    assert kem_public_bytes(keys.owner_key()) == before[1]


def test_it_is_asked_for_on_a_terminal_and_never_shown() -> None:
    keys.make_all()
    code = "import sys; from glasshouse.cli import main; sys.exit(main(sys.argv[1:]))"
    for answers, words in ((2, ["keys", "--lock"]), (1, ["keys", "--unlock"])):
        ours, theirs = pty.openpty()
        job = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        said = b""
        for _ in range(answers):
            while not said.endswith(b": "):
                said += os.read(ours, 4096)
            os.write(ours, WORDS + b"\n")
            said += b"|"
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # the other side closed
            pass
        os.close(ours)
        assert job.wait(60) == 0, said
        assert WORDS not in said
    assert not any(locked.is_locked(path.read_bytes()) for path in keys.private_files())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_passphrases_file_that_others_read_is_refused(passphrase: Path, mode: int) -> None:
    passphrase.chmod(mode)
    with pytest.raises(UsageError, match="not private"):
        locked.new_passphrase("x")


def test_other_passphrases_files_are_refused(passphrase: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passphrase.write_bytes(b"\n")
    with pytest.raises(UsageError, match="is empty"):
        locked.new_passphrase("x")
    passphrase.write_bytes(b"short")
    with pytest.raises(UsageError, match="too short"):
        locked.new_passphrase("x")
    for place in (passphrase.parent, passphrase.parent / "absent"):
        monkeypatch.setenv(locked.VARIABLE, str(place))
        with pytest.raises(UsageError):
            locked.new_passphrase("x")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_damaged_bytes_end_in_one_line(rest: bytes) -> None:
    data = locked.LABEL + b" " + rest
    with pytest.raises(UsageError, match=r"damaged|does not open"):
        locked.unlock(data, "owner.xwing", b"x")
    assert locked.unlock(rest, "owner.xwing") == rest or locked.is_locked(rest)


def test_any_key_of_an_owner_opens_what_is_sealed_to_all(tmp_path: Path) -> None:
    spare = tmp_path / "stick" / "owner.key"
    spare.parent.mkdir()
    name = keys.add_owner(spare)
    assert stat.S_IMODE(spare.stat().st_mode) == 0o600
    assert (paths.keys_dir() / f"owner-{name}.pub").exists()
    publics = keys.owner_publics()
    assert len(publics) == 2
    with pytest.raises(UsageError, match="cannot make the file"):
        keys.add_owner(spare)

    sealed = tmp_path / "outputs.sealed"
    with sealed.open("wb") as out:
        seal_outputs(
            out, owner_public=b"".join(publics), context=CONTEXT, files={"a": b"trained"}, tensors=[]
        )
    for held in (keys.owner_keys(), keys.owner_keys(spare), (generate_kem_key(), *keys.owner_keys(spare))):
        with open_outputs(sealed, held, context=CONTEXT) as opened:
            assert bytes(opened.files["a"]) == b"trained"
    with pytest.raises(SealError):
        open_outputs(sealed, [generate_kem_key()], context=CONTEXT)
    # The machine's own key is lost: what was sealed is not.
    shutil.rmtree(paths.keys_dir())
    assert keys.owner_publics()[0] not in publics
    with open_outputs(sealed, keys.owner_keys(spare), context=CONTEXT) as opened:
        assert bytes(opened.files["a"]) == b"trained"


def test_the_head_of_outputs_for_several_keys_is_read_strictly(tmp_path: Path) -> None:
    one, two = generate_kem_key(), generate_kem_key()
    publics = kem_public_bytes(one) + kem_public_bytes(two)
    place = tmp_path / "outputs.sealed"
    with place.open("wb") as out:
        seal_outputs(out, owner_public=publics, context=CONTEXT, files={"a": b"x"}, tensors=[])
    data = place.read_bytes()
    for at, value in (
        (9, b"\x01"),
        (9, b"\x03"),
        (11, b"\x00"),
        (11, b"\x01"),
        (11, b"\x03"),
        (11, b"\xff"),
        (50, b"\xff"),
    ):
        place.write_bytes(data[:at] + value + data[at + 1 :])
        with pytest.raises(GlasshouseError):
            open_outputs(place, [one], context=CONTEXT)
    for size in (0, 1215, 1217, 9 * 1216):
        with pytest.raises(SealError):
            seal_outputs(io.BytesIO(), owner_public=bytes(size), context=CONTEXT, files={}, tensors=[])


def test_a_backup_brings_a_lost_folder_back(
    passphrase: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.make_all()
    keys.add_owner(tmp_path / "spare")
    folder = paths.keys_dir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    file = tmp_path / "keys.locked"
    assert main(["keys", "--backup", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"PRIVATE" not in file.read_bytes()
    assert main(["keys", "--backup", str(file)]) == 2  # never over another
    shutil.rmtree(folder)
    locked.forget()
    assert main(["keys", "--restore", str(file)]) == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert after == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert "nothing was missing" in (main(["keys", "--restore", str(file)]), capsys.readouterr().err)[1]

    shutil.rmtree(folder)
    keys.operator_key()
    with pytest.raises(UsageError, match="another key is here already: operator"):
        key_backup.restore(file)
    assert not (folder / "owner.xwing").exists()
    file.write_bytes(file.read_bytes()[:-9] + b"AAAAAAAA\n")
    with pytest.raises(UsageError):
        key_backup.restore(file)
    (tmp_path / "none").write_text("{}")
    with pytest.raises(UsageError, match="not a backup"):
        key_backup.restore(tmp_path / "none")
