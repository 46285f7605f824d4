"""`glasshouse publish --from`, and tools/journey.py on either end."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.canonical import parse_json
from glasshouse.records import keys
from glasshouse.records.keys import public_bytes, publisher_key
from glasshouse.records.ledger import Ledger, log_key
from tests.commands.kit import ROOT, Call
from tests.publishing.journeys import Away, leave


@pytest.fixture
def away(
    repository: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Away:
    """A journey that this machine announced, with one row."""
    own = log_key(public_bytes(publisher_key()))
    made = leave(tmp_path_factory.mktemp("away"), Ledger(), own, monkeypatch)
    made.run()
    return made


def test_a_stranger_is_named_and_nothing_is_written(
    repository: tuple[Path, Path], away: Away, call: Call
) -> None:
    root, _ = repository
    path, _ = away.pack()
    before = _files(root)
    code, out, err = call("publish", "--from", str(path))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert away.journey.commitment in err
    assert f"which entry {away.journey.open_serial} of this machine's ledger announces" in err
    assert "add --trust LABEL" in err
    assert _files(root) == before
    (keys.paths.state_dir() / "ledger" / "leaves.jsonl").write_bytes(b"")
    code, _, err = call("publish", "--from", str(path))
    assert code == 2
    assert "which this machine's ledger does not announce" in err
    assert _files(root) == before


def test_trusted_it_is_published_and_the_journey_ends(
    repository: tuple[Path, Path], away: Away, call: Call
) -> None:
    root, _ = repository
    (away.folder / "look.json").write_text("{}")
    path, _ = away.pack(away.folder / "look.json", away.folder / "absent")
    code, out, err = call("ledger")
    assert "open: nothing came back yet" in out
    assert json.loads(call("ledger", "--json")[1])["openJourneys"] == [away.journey.open_serial]
    code, out, err = call("publish", "--from", str(path), "--trust", "a borrowed H100", "--yes")
    assert (code, err) == (0, "published, for ever, as: a borrowed H100, operator\n")
    assert away.journey.commitment in out
    assert f"announced as entry {away.journey.open_serial} of log {away.journey.opened_in}" in out
    assert "trusted as a borrowed H100, publisher" in out
    assert "3 in conf/trust" not in out
    assert "1 in conf/trust" in out
    assert f"ended as entry {away.journey.open_serial + 1} of this machine's ledger" in out
    assert "not published: 1 further files" in out
    assert "left out when it was packed: extra/absent: not a plain file" in out
    ring = keys.parse_keyring((root / "conf" / "trust" / "keyring.json").read_bytes())
    assert ring.find(away.journey.commitment, "publisher").label == "a borrowed H100, publisher"
    assert json.loads(call("ledger", "--json")[1])["openJourneys"] == []
    assert "came back" in call("ledger")[1]
    before = _files(root)
    code, out, _ = call("publish", "--from", str(path))  # listed by now: no --trust
    assert code == 0
    assert "nothing to write: it is all there already" in out
    code, out, _ = call("publish", "--from", str(path), "--json")
    document = json.loads(out)
    assert (document["written"], document["journey"]) == ([], away.journey.id)
    assert document["leftOut"] == {"extra/absent": "not a plain file"}
    assert _files(root) == before
    (artifact,) = (root / "site" / "research" / "artifacts").glob("*.json")
    ring_file = str(root / "conf" / "trust" / "keyring.json")
    assert call("verify", str(artifact), "--keys", ring_file)[0] == 0
    (row,) = document["rows"]
    code, out, _ = call("unpublish", row, "--reason", "the clock was wrong", "--yes")
    assert code == 0


def test_keys_are_trusted_for_what_came_back_and_no_further(
    repository: tuple[Path, Path], away: Away, call: Call
) -> None:
    root, folder = repository
    ring = root / "conf" / "trust" / "keyring.json"
    early, _ = away.pack(name="early.tar.gz")
    assert call("publish", "--from", str(early), "--trust", "one", "--yes")[0] == 0
    bounds = {"operator": 4, "broker": 4, "publisher": 4}
    assert _bounds(ring, "one") == bounds
    away.run()
    path, _ = away.pack()
    before = _files(root)
    code, _, err = call("publish", "--from", str(path))
    assert (code, err.count("\n")) == (2, 1)
    assert "conf/trust does not list for so many entries the keys of journey" in err
    ended = away.journey.open_serial + 1
    said = f"it ended as entry {ended}, and this adds 2 entries after its end, whose rows are registered-late"
    assert said in err
    assert _files(root) == before
    code, out, _ = call("publish", "--from", str(path), "--trust", "two", "--yes")
    assert (code, said in out) == (0, True)
    assert _bounds(ring, "one") == dict.fromkeys(bounds, 6)  # the first label stays
    for archive in (early, path):  # nor does an earlier archive take anything back
        code, out, _ = call("publish", "--from", str(archive), "--trust", "three", "--yes", "--json")
        assert (code, json.loads(out)["written"]) == (0, [])
    # Whoever finds the private keys later can enter nothing more that is published.
    away.run()
    log = root / "site" / "research" / "ledger" / away.journey.commitment[:16]
    leaves = away.factory.ledger.leaves()
    (log / "leaves.jsonl").write_bytes(b"".join(leaf.data + b"\n" for leaf in leaves))
    (log / "checkpoint.txt").write_text(away.factory.ledger.checkpoint(away.factory.publisher))
    code, _, err = call("publish", str(folder))
    assert code == 1
    assert "ledger-signer-retired" in err


def test_an_archive_cannot_borrow_a_key_that_is_listed(
    repository: tuple[Path, Path], away: Away, call: Call
) -> None:
    root, _ = repository
    ring = root / "conf" / "trust" / "keyring.json"
    entry = next(item for item in away.factory.keyring.entries if item.role == "operator")
    document = keys.parse_keyring(ring.read_bytes())
    ring.write_bytes(keys.listed_as(document, [entry], "retired", until=0).as_bytes())
    before = _files(root)
    code, _, err = call("publish", "--from", str(away.pack()[0]), "--trust", "x", "--yes")
    assert code == 1
    assert "a key that conf/trust lists for another machine (failed=journey-keys)" in err
    assert _files(root) == before


def _bounds(ring: Path, label: str) -> dict[str, int | None]:
    entries = keys.parse_keyring(ring.read_bytes()).entries
    return {entry.role: entry.valid_until for entry in entries if entry.label.startswith(f"{label}, ")}


def test_an_unannounced_one_says_so(repository: tuple[Path, Path], away: Away, call: Call) -> None:
    place = keys.paths.state_dir() / "ledger" / "leaves.jsonl"
    place.write_bytes(b"".join(place.read_bytes().splitlines(keepends=True)[:-1]))
    code, out, err = call("publish", "--from", str(away.pack()[0]), "--trust", "somebody", "--yes")
    assert (code, err) == (0, "published, for ever, as: somebody, operator\n")
    assert "no published log announced it before its first plan: its rows carry registered-late" in out
    assert "ended as" not in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--from", "absent.tar.gz"], 2, "the archive cannot be read: No such file or directory"),
        (["--from", "."], 2, "the archive cannot be read: Is a directory"),
        (["--from", "cut.tar.gz"], 1, "the archive cannot be read: the file ends too early"),
        (["--from", "text"], 1, "not gzip, or damaged"),
        (["--trust", "x", "some-run"], 2, "--trust is for an archive"),
        (["--from", "good.tar.gz", "some-run"], 2, "--from takes no runs"),
        (["--from", "good.tar.gz", "--local"], 2, "not allowed with argument"),
        (["--from", "good.tar.gz", "--trust", ""], 2, "not a label"),
        (["--from", "good.tar.gz", "--trust", "a\nb"], 2, "not a label"),
    ],
)
def test_mistakes_are_one_line(words: list[str], code: int, said: str, away: Away, call: Call) -> None:
    data = away.pack()[0].read_bytes()
    here = Path.cwd()
    (here / "good.tar.gz").write_bytes(data)
    (here / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    (here / "text").write_text("hello")
    before = _files(here / "checkout")
    found, _, err = call("publish", *words)
    assert (found, err.count("\n")) == (code, 1)
    assert said in err
    assert _files(here / "checkout") == before


def test_a_machine_whose_own_key_is_not_listed_is_told_so(
    repository: tuple[Path, Path], away: Away, call: Call
) -> None:
    root, _ = repository
    (root / "conf" / "trust" / "keyring.json").write_bytes(b'{"keys":[]}')
    code, _, err = call("publish", "--from", str(away.pack()[0]), "--trust", "x", "--yes")
    assert code == 1
    assert "`glasshouse keys --trust LABEL` lists this machine's" in err
    assert (root / "conf" / "trust" / "keyring.json").read_bytes() == b'{"keys":[]}'


# --- tools/journey.py --------------------------------------------------------------------------------


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.journey", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_kit_holds_what_the_journey_needs_and_no_key_of_the_operators(tmp_path: Path) -> None:
    out = tmp_path / "kit"
    done = tool(
        "carry", "--python", "3.12", "--budget", "9m", "--seed", "11", "--no-wheels", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    said = parse_json((out / "journey.json").read_bytes())
    (leaf,) = Ledger().leaves()
    assert (leaf.kind, leaf.body["journey"], leaf.body["commitment"]) == (
        "journey",
        said["journey"],
        said["commitment"],
    )
    assert (said["seed"], said["budgetSec"], said["openSerial"]) == (11, 540, 0)
    assert said["openedIn"] == log_key(public_bytes(publisher_key()))
    assert said["commitment"] in done.stdout
    kinds = [item.kind for item in Ledger(out / "home" / "state" / "ledger").leaves()]
    assert kinds == ["journey-log", "key", "key"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    private = sorted((out / "home" / "keys").iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    ours = {path.read_bytes() for path in keys.paths.keys_dir().iterdir() if path.suffix == ".pem"}
    theirs = {path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert ours
    assert not ours & theirs
    listed = subprocess.run(["tar", "tf", str(out / "src.tar")], capture_output=True, text=True, check=True)
    assert "glasshouse/run.py" in listed.stdout.splitlines()
    # At any moment there is something to bring back.
    archive = tmp_path / "gpu.tar.gz"
    done = tool("pack", "--home", str(out / "home"), "--runs", str(tmp_path), "--out", str(archive))
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 runs, 0 further files" in done.stdout
    assert archive.is_file()


@pytest.mark.soak
def test_the_wheels_are_all_that_they_need(tmp_path: Path) -> None:
    """Needs the package index, as making a kit does. Installed alone, without it, no wheel misses another."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    kit, env = tmp_path / "kit", tmp_path / "env"
    done = tool("carry", "--python", version, "--budget", "9m", "--out", str(kit))
    assert done.returncode == 0, done.stderr
    wheels = sorted(map(str, (kit / "wheels").iterdir()))
    assert all(name.endswith(".whl") for name in wheels)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(env / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels], check=True)
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    command = [env / "bin" / "python", "-m", "glasshouse", "keys", "--make"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--python", "2.7", "--budget", "9m"], "not a Python version (python=2.7)"),
        (["--python", "3.12", "--budget", "nine"], "not a budget (budget=nine)"),
        (["--python", "3.12", "--budget", "9m", "--seed", "-1"], "not a seed (seed=-1)"),
    ],
)
def test_a_kit_that_cannot_be_made_announces_nothing(words: list[str], said: str, tmp_path: Path) -> None:
    done = tool("carry", *words, "--no-wheels", "--out", str(tmp_path / "kit"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "kit").exists()
    assert Ledger().leaves() == ()


def test_a_kit_does_not_replace_another(tmp_path: Path) -> None:
    done = tool("carry", "--python", "3.12", "--budget", "9m", "--no-wheels", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "the kit's folder is there" in done.stderr
    assert Ledger().leaves() == ()


def test_a_home_that_is_no_journeys_is_not_packed(tmp_path: Path) -> None:
    done = tool("pack", "--home", str(tmp_path), "--out", str(tmp_path / "a.tar.gz"))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the journey's publisher key cannot be read (key={tmp_path}/keys/publisher.ed25519.pem): "
        "give the kit's home\n"
    )


def _files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
