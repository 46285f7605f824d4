"""The wheel in another folder: what it carries, what it does there, and what it reads of nobody else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES
from tests.commands.kit import served
from tests.installed.conftest import COMMIT, ROOT, Installed, install, with_all
from tests.publishing.conftest import enter
from tests.records.factory import Factory
from tests.specs import make_spec

ROW = "2026-11-21-local-auto-mlp-100s-abba-mtrugh"
BUNDLE = ROOT / "site" / "research" / "bundles" / ROW
SWEEP = ["plan", "-m", "gpu=h100,pro6000", "duration=1800"]


def test_it_carries_what_it_reads_and_owns_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("glasshouse/_data/commit").decode() == f"{COMMIT}\n"
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"glasshouse", "glasshouse_train-0.1.0.dist-info"}
    for part in ("conf", "templates", "site"):
        for path in (ROOT / part).rglob("*"):
            hidden = any(name.startswith(".") or name == "__pycache__" for name in path.parts)
            if path.is_file() and not hidden:
                assert f"glasshouse/_data/{path.relative_to(ROOT)}" in names
    assert "glasshouse/stale.py" not in names
    assert not [name for name in names if "/." in name]


# --- the base install --------------------------------------------------------------------------


def test_the_base_install_plans_verifies_and_shows(base: Installed, site: Path, tmp_path: Path) -> None:
    assert "h100" in base.run("--help", cwd=tmp_path).stdout
    said = json.loads(base.run("--version", "--json", cwd=tmp_path).stdout)
    assert said["commit"] == COMMIT
    done = base.run(*SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "together at most" in done.stdout
    done = base.run("verify", str(BUNDLE), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified as what it says" in done.stdout
    with served(site) as address:
        done = base.run("verify", f"{address}/research/artifacts/{ROW}.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "runs").mkdir()
    shutil.copytree(BUNDLE, tmp_path / "runs" / "20261121-000000-mtrugh" / "bundle")
    assert ROW in base.run("runs", cwd=tmp_path).stdout
    done = base.run("show", ROW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steady-state overhead" in done.stdout
    assert "conf/trust" in base.run("keys", cwd=tmp_path).stdout
    log = next((ROOT / "site" / "research" / "ledger").iterdir())
    note = str(log / CHECKPOINT)
    done = base.run("ledger", "check", note, note, "--leaves", str(log / LEAVES), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind: runpod" in base.run("--cfg", "job", "gpu=h100", cwd=tmp_path).stdout
    assert "extra run" in base.run("doctor", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "extra", "names"),
    [
        ([], "run", ["Fabric", "SQLAlchemy", "Rich"]),
        (["-m", "gpu=h100,pro6000", "duration=1800"], "run", ["Fabric"]),
        (["open", "20260101"], "run", ["PyNaCl"]),
        (["reap"], "run", ["AsyncSSH"]),
        (["tamper"], "run", ["SQLAlchemy"]),
        (["broker"], "run", ["SQLAlchemy"]),
        (["pages", "--out", "pages"], "site", ["MkDocs", "Jinja"]),
    ],
)
def test_a_command_that_needs_an_extra_names_it(
    words: list[str], extra: str, names: list[str], base: Installed, tmp_path: Path
) -> None:
    done = base.run(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: (this command|a run) needs .+ \(extra={extra}\): .+\n", done.stderr)
    assert all(name in done.stderr for name in names)
    # The line to copy installs from where this came.
    assert f"pip install 'glasshouse-train[{extra}] @ file://{base.wheel}'\n" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_simulated_providers_name_theirs(base: Installed, tmp_path: Path) -> None:
    done = base.python("-m", "glasshouse.providers.fakes", "--", "true", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a simulated machine needs Fabric, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["publish", "run"], "publish"),
        (["publish", "--history"], "publish --history"),
        (["unpublish", ROW, "--reason", "x"], "unpublish"),
        (["supersede", ROW, "another-row", "--reason", "x"], "supersede"),
        (["keys", "--trust", "lab"], "keys --trust"),
    ],
)
def test_an_installed_program_says_where_a_publication_lives(
    words: list[str], command: str, base: Installed, tmp_path: Path
) -> None:
    done = base.run(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"(command={command}): in a clone of the repository run python -m glasshouse" in done.stderr
    assert not (base.home / "keys" / "publisher.ed25519.pem").exists()


def test_settings_of_ones_own_are_named_and_nothing_else_is(base: Installed, tmp_path: Path) -> None:
    conf = tmp_path / "mine"
    shutil.copytree(ROOT / "conf", conf)
    text = (conf / "gpu" / "h100.yaml").read_text(encoding="utf-8")
    (conf / "gpu" / "h100.yaml").write_text(text.replace("runpod: 3.50", "runpod: 7.00"), encoding="utf-8")
    own = json.loads(base.run("plan", "gpu=h100", "--json", cwd=tmp_path).stdout)
    other = json.loads(base.run("plan", "gpu=h100", "--json", "--conf", "mine", cwd=tmp_path).stdout)
    assert other["maxUsd"] == pytest.approx(2 * own["maxUsd"])
    done = base.run("plan", "--conf", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: no config.yaml there (conf={tmp_path / 'nowhere'}): give --conf DIR" in done.stderr
    done = base.run("plan", "gpu=h100", "--against", "main", cwd=tmp_path)
    assert done.returncode == 2
    assert "(against=main): give --conf DIR" in done.stderr


def test_without_any_keyring_verify_says_so(base: Installed, tmp_path: Path) -> None:
    ring = base.packages / "glasshouse" / "_data" / "conf" / "trust" / "keyring.json"
    away = tmp_path / "keyring.json"
    home = Installed(base.folder, tmp_path / "home", base.wheel)  # without keys of its own, too
    shutil.move(ring, away)
    try:
        done = home.run("verify", str(BUNDLE), cwd=tmp_path)
        given = home.run("verify", str(BUNDLE), "--keys", str(away), cwd=tmp_path)
    finally:
        shutil.move(away, ring)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no keyring: ")
    assert "give --keys FILE" in done.stderr
    assert given.returncode == 0


# --- what others put beside it -----------------------------------------------------------------


def spoil(folder: Path, ring: bytes) -> None:
    """Put there everything that the program was ever seen to read from a place that is not its own."""
    for name in ("conf", "templates", "site"):
        shutil.copytree(
            ROOT / name, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundles")
        )
    for path in [*(folder / "conf").rglob("*.yaml"), *(folder / "templates").rglob("*.j2")]:
        path.write_text("spoilt: true\n", encoding="utf-8")
    (folder / "conf" / "config.yaml").write_text("defaults: [_self_]\nduration: 666\n", encoding="utf-8")
    (folder / "conf" / "trust" / "keyring.json").write_bytes(ring)
    (folder / "conf" / "gpu" / "theirs.yaml").write_text("name: theirs\n", encoding="utf-8")
    for name in ("pyproject.toml", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder)
    plugin = folder / "hydra_plugins" / "theirs"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n"
        "class Theirs(SearchPathPlugin):\n"
        "    def manipulate_search_path(self, search_path):\n"
        f"        search_path.prepend('theirs', 'file://{folder}/conf')\n",
        encoding="utf-8",
    )


def seen(made: Installed, cwd: Path, theirs: Path) -> dict[str, object]:
    """All that an installation says, and the pages that it makes."""
    words = [["--help"], ["plan", "--json", *SWEEP[1:]], ["keys", "--json"], ["plan", "gpu=theirs"]]
    said: dict[str, object] = {}
    for line in [*words, ["verify", str(BUNDLE)], ["verify", str(theirs)]]:
        done = made.run(*line, cwd=cwd)
        said[" ".join(line)] = (done.returncode, done.stdout.replace(str(made.packages), "..."), done.stderr)
    done = made.run("pages", "--out", str(made.home / "pages"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    for path in sorted((made.home / "pages").rglob("*")):
        if path.is_file():
            said[str(path.relative_to(made.home))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return said


def test_nothing_beside_it_and_nothing_in_the_current_folder_changes_a_thing(
    wheel: Path, full: Installed, tmp_path: Path
) -> None:
    factory = Factory(tmp_path / "factory")
    name, files = factory.parts(make_spec())
    files["inclusion.json"] = factory.inclusion(files)
    theirs = tmp_path / "theirs" / name / "bundle"
    theirs.parent.mkdir(parents=True)
    enter(factory, theirs, name, files)
    entries = [{**entry.as_json(), "local": False} for entry in factory.keyring.entries]
    ring = canonical_json({"keys": entries})
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = seen(full, empty, theirs)
    assert clean["plan gpu=theirs"][0] == 2  # type: ignore[index]
    assert clean[f"verify {theirs}"][0] == 1  # type: ignore[index]
    assert "signer-unknown" in str(clean[f"verify {theirs}"])
    # In the folder where it is run, as inside another Hydra project.
    project = tmp_path / "project"
    project.mkdir()
    spoil(project, ring)
    assert seen(full, project, theirs) == clean
    # Beside the package, where any other wheel may put names of its own.
    beside = with_all(install(wheel, tmp_path / "venv", tmp_path / "home"))
    spoil(beside.packages, ring)
    assert seen(beside, empty, theirs) == clean


# --- a whole run -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.train
def test_a_run_is_made_verified_and_shown_where_somebody_works(full: Installed, tmp_path: Path) -> None:
    # A module of theirs with a name that we import: it would say so.
    for name in ("yaml", "rich", "sqlalchemy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'theirs')!r}, 'w')\n")
    # Fixed work: beside other tests a unit of a busy moment takes a stretch of a second out of any tolerance.
    run = ["order=raw-first", "measure=quick", "duration=null", "steps=40", "provider.threads=1"]
    done = full.run(*run, "--json", cwd=tmp_path, timeout=150)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "watchdog.log").read_bytes() == b""
    done = full.run("verify", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "signed by local: operator of this machine" in done.stdout
    done = full.run("publish", "--local", str(folder), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (tmp_path / "build" / "artifacts" / f"{row}.json").is_file()
    done = full.run("pages", "--out", "pages", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local, verified" in (tmp_path / "pages" / "rows" / f"{row}.md").read_text(encoding="utf-8")
    assert (tmp_path / "pages" / "rows" / f"{ROW}.md").is_file()
    done = full.run("pages", "--site", "site", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local, verified" in (tmp_path / "site" / "rows" / row / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "research" / "bundles" / row / "record.json").is_file()
    done = full.run("pages", "--site", "other", "--committed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "other" / "rows" / row).exists()
    assert (tmp_path / "other" / "method" / "index.html").is_file()
    assert not (tmp_path / "theirs").exists()
    # Where the program lies, nothing was written.
    written = {path.name for path in (full.packages / "glasshouse" / "_data").iterdir()}
    assert written == {"commit", "conf", "mkdocs.yml", "site", "templates"}
