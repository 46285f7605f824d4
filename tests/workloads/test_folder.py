"""Which files of a folder go along: with real git repositories, and without git."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.errors import UsageError
from glasshouse.workloads import folder as folders
from glasshouse.workloads.folder import Selection, select
from glasshouse.workloads.folder_lines import lines, size_words

LONG = "x" * 200
ODD = (
    "with space.py",
    "new\nline.txt",
    "名前/ファイル.py",
    f"{LONG}/{LONG}.txt",
    "-rf",
    ":(top)a",
    "*.py",
    "#a",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with no settings of git's, and none of the machine's."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")  # for the test's own calls: select() drops it
    return path


@pytest.fixture
def project(home: Path) -> Path:
    """A folder without git."""
    path = home / "finetune"
    path.mkdir()
    return path


@pytest.fixture
def repository(project: Path) -> Path:
    return init(project)


def init(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    git(folder, "init", "-q")
    return folder


def git(folder: Path, *words: str, fails: bool = False) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stdout


def put(folder: Path, *names: str, size: int = 3) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def names(selection: Selection) -> list[str]:
    return [file.name for file in selection.files]


def refused(folder: Path | str, **settings: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        select(folder, **settings)  # type: ignore[arg-type]
    assert "\n" not in caught.value.line()
    return caught.value


# In a git work tree


def test_git_says_what_goes_along_and_the_work_tree_with_which_content(repository: Path) -> None:
    put(repository, "train.py", "src/model.py", "notes.txt", ".github/ci.yml")
    git(repository, "add", "train.py", "src", ".github")
    (repository / "train.py").write_bytes(b"changed since")
    found = select(repository)
    assert names(found) == [".github/ci.yml", "src/model.py", "train.py"]
    assert [file.size for file in found.files] == [3, 3, 13]
    assert found.files[2].path == repository / "train.py"
    assert (found.from_git, found.total_bytes) == (True, 19)
    assert (found.left_out_count, found.left_out_bytes) == (1, 3)
    assert [item.name for item in found.largest_left_out] == ["notes.txt"]


@pytest.mark.parametrize("with_git", [True, False])
def test_odd_names(project: Path, with_git: bool) -> None:
    put(project, *ODD)
    if with_git:
        init(project)
        git(project, "add", "-A")
    assert set(names(select(project))) == set(ODD)


def test_a_folder_inside_a_repository_is_taken_alone(repository: Path) -> None:
    put(repository, "a/train.py", "a/sub/m.py", "b/other.py")
    git(repository, "add", "-A")
    assert names(select(repository / "a")) == ["sub/m.py", "train.py"]


def test_what_was_deleted_in_the_work_tree_stays_out_with_a_note(repository: Path) -> None:
    put(repository, "train.py", "gone.py", "was/file.py")
    git(repository, "add", "-A")
    (repository / "gone.py").unlink()
    (repository / "was/file.py").unlink()
    (repository / "was").rmdir()
    (repository / "elsewhere").mkdir()
    put(repository, "elsewhere/file.py")
    (repository / "was").symlink_to("elsewhere")  # git calls was/file.py deleted then
    found = select(repository)
    assert names(found) == ["train.py"]
    assert found.notes == ("git tracks gone.py, was/file.py, which are not in the work tree",)


def test_files_in_conflict_are_taken_once(repository: Path) -> None:
    put(repository, "train.py")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "one")
    git(repository, "checkout", "-qb", "other")
    put(repository, "train.py", size=4)
    git(repository, "commit", "-qam", "two")
    git(repository, "checkout", "-q", "-")
    put(repository, "train.py", size=5)
    git(repository, "commit", "-qam", "three")
    assert git(repository, "merge", "-q", "other", fails=True)
    assert len(git(repository, "ls-files", "--unmerged").splitlines()) == 3
    assert names(select(repository)) == ["train.py"]


def test_a_submodule_is_taken_with_what_it_tracks(repository: Path, home: Path) -> None:
    library = init(home / "library")
    put(library, "lib/code.py")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "one")
    put(repository, "train.py")
    git(repository, "submodule", "--quiet", "add", str(library), "vendor")
    put(repository, "vendor/made.bin")
    git(repository, "add", "train.py")
    found = select(repository)
    assert names(found) == [".gitmodules", "train.py", "vendor/lib/code.py"]
    git(repository, "commit", "-qm", "one")
    git(repository, "submodule", "--quiet", "deinit", "-f", "vendor")
    error = refused(repository)
    assert (error.field, error.value) == ("model.folder", "vendor")
    assert "git submodule update --init" in error.remedy
    put(repository, ".glasshouseignore")
    (repository / ".glasshouseignore").write_text("vendor/\n", encoding="utf-8")
    assert names(select(repository)) == [".gitmodules", "train.py"]


def test_the_caller_s_git_variables_and_the_repository_s_programs_do_nothing(
    repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, "train.py")
    git(repository, "add", "-A")
    monitor = home / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {home}/ran\n", encoding="utf-8")
    monitor.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(monitor))
    git(repository, "status")
    assert (home / "ran").exists()  # as it would
    (home / "ran").unlink()
    other = init(home / "other")
    for name, value in (
        ("GIT_DIR", other / ".git"),
        ("GIT_INDEX_FILE", other / "x"),
        ("GIT_WORK_TREE", other),
    ):
        monkeypatch.setenv(name, str(value))
    put(repository, "untracked.py")
    assert names(select(repository)) == ["train.py"]
    assert not (home / "ran").exists()


def test_a_repository_that_git_refuses_is_an_error_in_its_words(repository: Path) -> None:
    put(repository, "train.py")
    (repository / ".git/config").write_text("[core\n", encoding="utf-8")
    error = refused(repository)
    assert error.field == "model.folder"
    assert "config" in error.remedy


def test_a_work_tree_without_git_installed_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, "train.py")
    monkeypatch.setenv("PATH", str(repository))
    assert "git is not installed" in refused(repository).what


def test_a_file_named_git_that_is_no_repository_is_no_obstacle(project: Path) -> None:
    put(project, "train.py")
    (project / ".git").mkdir()
    found = select(project)
    assert (names(found), found.from_git) == (["train.py"], False)


def test_an_untracked_folder_of_a_repository_holds_nothing(repository: Path) -> None:
    put(repository, "a/train.py")
    assert "git add" in refused(repository / "a").remedy
    assert names(select(repository / "a", include=["**"])) == ["train.py"]


def test_the_bit_that_makes_a_file_a_program_is_kept(repository: Path) -> None:
    put(repository, "a.sh", "b.sh")
    (repository / "a.sh").chmod(0o755)
    git(repository, "add", "-A")
    assert [file.executable for file in select(repository).files] == [True, False]


def test_files_that_git_lfs_has_not_fetched_are_noted(repository: Path) -> None:
    put(repository, "train.py", "w.bin")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (repository / "w.bin").write_text(pointer, encoding="utf-8")
    git(repository, "add", "-A")
    assert select(repository).notes == ("Git LFS has not fetched w.bin: git lfs pull",)


# Without git


def test_without_git_all_but_hidden_files_environments_and_outputs_go_along(project: Path) -> None:
    put(project, "train.py", "build/code.py", "dist/d.py", "outputs/ckpt.pt", ".cache/big", ".hidden")
    put(project, "venv/pyvenv.cfg", "venv/bin/python", "mine/conda-meta/history", "node_modules/a.js")
    put(
        project,
        "__pycache__/t.pyc",
        "sub/__pycache__/t.pyc",
        "a.egg-info/PKG-INFO",
        "env/plain.py",
        "sub/.git/x",
    )
    found = select(project)
    assert names(found) == ["build/code.py", "dist/d.py", "env/plain.py", "train.py"]
    assert found.environments == ("mine", "node_modules", "venv")
    assert found.left_out_count == 2
    assert {item.name for item in found.largest_left_out} == {".cache/big", ".hidden"}
    assert not found.from_git


def test_folders_of_this_programs_own_stay(project: Path, home: Path) -> None:
    put(project, "train.py", "runs/one/bundle/record.json", "out/model.pt")
    assert names(select(project, outputs="out", apart=[project / "runs", home / "keys"])) == ["train.py"]
    assert names(select(project, outputs="./out/", apart=[project / "runs"])) == ["train.py"]
    init(project)
    git(project, "add", "-A")
    assert "out/model.pt" in names(select(project, outputs="out", apart=[project / "runs"]))


# model.include and .glasshouseignore


def test_include_adds_what_git_does_not_track(repository: Path) -> None:
    put(repository, "train.py", "data/a.bin", "data/deep/b.bin", "data/.hidden", "notes.txt", ".env", "x.log")
    (repository / ".gitignore").write_text("*.bin\ndata\n", encoding="utf-8")
    git(repository, "add", "train.py", ".gitignore")
    assert names(select(repository, include=["data/**", ".env"])) == [
        *(".env", ".gitignore", "data/a.bin", "data/deep/b.bin", "train.py"),
    ]
    assert names(select(repository, include=["train.py"])) == [".gitignore", "train.py"]


def test_only_a_name_that_is_spelled_opens_an_environment_or_the_outputs(project: Path) -> None:
    put(
        project,
        "a.json",
        "venv/pyvenv.cfg",
        "venv/b.json",
        "outputs/c.json",
        ".git/d.json",
        "__pycache__/e.json",
    )
    assert names(select(project, include=["**/*.json", "**"])) == ["a.json"]
    assert names(select(project, include=["venv/**", "outputs/c.json"])) == [
        *("a.json", "outputs/c.json", "venv/b.json", "venv/pyvenv.cfg"),
    ]
    assert refused(project, include=[".git/**"]).field == "model.include"


def test_glasshouseignore_has_the_last_word(repository: Path) -> None:
    put(repository, "train.py", "big/a", "big/b", "tests/t.py", "data/x", "data/y")
    git(repository, "add", "train.py", "big", "tests")
    (repository / ".glasshouseignore").write_text("tests/\n/big/*\n!/big/b\ndata/y\n", encoding="utf-8")
    found = select(repository, include=["data/**"])
    assert names(found) == ["big/b", "data/x", "train.py"]
    assert {item.name for item in found.largest_left_out if item.ignored} == {"big/a", "tests/t.py", "data/y"}


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("dta/**", "did you mean data/**?"),
        ("data/a.jsn", "did you mean data/a.json?"),
        ("zzzzzz", "patterns begin at"),
        ("../x", "model.data"),
        ("/abs", "model.data"),
        ("~/x", "model.data"),
        ("!data", ".glasshouseignore"),
        ("", "such as data/**"),
        ("ignored.txt", ".glasshouseignore"),
    ],
)
def test_a_pattern_that_brings_nothing_is_refused(project: Path, pattern: str, remedy: str) -> None:
    put(project, "train.py", "data/a.json", "ignored.txt")
    (project / ".glasshouseignore").write_text("ignored.txt", encoding="utf-8")
    error = refused(project, include=[pattern])
    assert error.field == "model.include"
    assert error.value == (pattern or '""')
    assert remedy in error.remedy


# Links


def test_links_that_stay_inside_are_links(repository: Path) -> None:
    put(repository, "real/a.txt", "train.py")
    (repository / "link.txt").symlink_to("real/a.txt")
    (repository / "real/up").symlink_to("../train.py")
    (repository / "dir").symlink_to("./real/")
    git(repository, "add", "-A")
    links = {file.name: (file.link, file.leads_to) for file in select(repository).files if file.link}
    assert links == {
        "link.txt": ("real/a.txt", "real/a.txt"),
        "real/up": ("../train.py", "train.py"),
        "dir": ("./real/", "real"),
    }
    assert select(repository).notes == ()


@pytest.mark.parametrize("way", ["{folder}/real/a.txt", "../finetune/real/a.txt", "sub/../real/a.txt"])
def test_links_by_a_way_of_this_machine_are_copies(repository: Path, way: str) -> None:
    put(repository, "real/a.txt", "sub/x", size=7)
    (repository / "link").symlink_to(way.format(folder=repository))
    git(repository, "add", "-A")
    (link,) = [file for file in select(repository).files if file.name == "link"]
    assert (link.link, link.path, link.size) == (None, repository / "real/a.txt", 7)
    (repository / "link").unlink()
    (repository / "link").symlink_to(repository / "real")
    assert "let it say real" in refused(repository).remedy


def test_paths_that_no_tree_can_carry_are_refused(project: Path) -> None:
    put(project, "train.py", "/".join(["d"] * 130))
    assert refused(project).what == "a file's path is too long, or too deep"


def test_a_link_to_what_stays_here_is_noted(repository: Path) -> None:
    put(repository, "train.py", "big.bin")
    (repository / "link").symlink_to("big.bin")
    (repository / "loop").symlink_to("loop")
    git(repository, "add", "train.py", "link", "loop")
    assert select(repository).notes == ("leads to nothing that goes along: the link link",)
    assert select(repository, include=["big.bin"]).notes == ()


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize("target", ["/etc/passwd", "../elsewhere", "sub/../../elsewhere/x", "hop"])
def test_a_link_that_leads_outside_is_refused(project: Path, target: str, with_git: bool) -> None:
    put(project, "train.py", "sub/x")
    put(project.parent, "elsewhere/x")
    (project / "hop").symlink_to("../elsewhere/x")
    (project / "a").symlink_to(target)
    if with_git:
        init(project)
        git(project, "add", "-A")
    error = refused(project)
    assert error.field == "model.folder"
    assert error.value in ("a", "hop")
    assert "model.data" in error.remedy
    (project / ".glasshouseignore").write_text("/a\nhop\n", encoding="utf-8")
    assert "train.py" in names(select(project))


def test_a_pattern_through_a_link_says_so(repository: Path) -> None:
    put(repository, "train.py")
    put(repository.parent, "elsewhere/x")
    (repository / "data").symlink_to("../elsewhere")
    git(repository, "add", "train.py")
    assert "data is a link" in refused(repository, include=["data/**"]).remedy


# What is refused of the folder itself


def test_folders_that_are_none_are_refused(project: Path, home: Path) -> None:
    put(project, "train.py")
    assert "did you mean" in refused(home / "fintune").remedy
    assert refused(project / "train.py").what == "not a folder"
    for much in ("/", home, home.parent, "~"):
        assert refused(much).what == "too much would be sealed"
    (project.parent / "empty").mkdir()
    assert refused(home / "empty").what == "the folder holds nothing to seal"


def test_more_files_than_can_be_meant_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a", "b", "c")
    monkeypatch.setattr(folders, "MAX_FILES", 2)
    assert "3 files would be sealed" in refused(project).what


@pytest.mark.parametrize("outputs", ["", "..", "../x", "/abs", "a/../..", "~/x", "train.py"])
def test_outputs_lie_inside(project: Path, outputs: str) -> None:
    put(project, "train.py")
    error = refused(project, outputs=outputs)
    assert (error.field, error.value) == ("model.outputs", outputs or '""')


def test_a_name_that_is_no_utf_8_is_refused(project: Path) -> None:
    put(project, "train.py")
    try:
        (project / os.fsdecode(b"bad\xff.bin")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert refused(project).what == "a file's name is not UTF-8"
    (project / ".glasshouseignore").write_text("bad*", encoding="utf-8")
    assert names(select(project)) == ["train.py"]


WITHOUT_PRIVILEGE = """
import sys
from glasshouse.errors import UsageError
from glasshouse.workloads.folder import select
try:
    print([file.name for file in select(sys.argv[1]).files])
except UsageError as error:
    print(error.line())
"""


@pytest.mark.parametrize(
    ("name", "words"), [("secret.bin", "cannot read a file"), ("sub", "cannot look into")]
)
def test_what_cannot_be_read_is_named(project: Path, name: str, words: str) -> None:
    put(project, "train.py", "secret.bin", "sub/a")
    (project / name).chmod(0)
    command = [sys.executable, "-c", WITHOUT_PRIVILEGE, str(project)]
    if os.geteuid() == 0:  # root reads everything, unless these are taken from it
        drop = shutil.which("setpriv") or pytest.skip("no setpriv")
        command = [drop, "--bounding-set=-dac_override,-dac_read_search", *command]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        (project / name).chmod(0o700)
    assert words in said
    assert f"model.folder={project / name}" in said


def test_pipes_and_the_like_stay(project: Path) -> None:
    put(project, "train.py")
    os.mkfifo(project / "pipe")
    assert names(select(project)) == ["train.py"]


# model.data


def test_data_appears_under_its_name(project: Path, home: Path) -> None:
    put(project, "train.py", "data/own.txt")
    put(home, "sets/corpus/a/b.txt", "sets/corpus/.hidden", "sets/corpus/.git/x", "one.jsonl")
    found = select(project, data=["~/sets/corpus", home / "one.jsonl"])
    assert names(found) == [
        *("data/corpus/.hidden", "data/corpus/a/b.txt", "data/one.jsonl", "data/own.txt", "train.py"),
    ]
    assert found.files[1].path == home / "sets/corpus/a/b.txt"
    assert (found.data_count, found.data_bytes) == (3, 9)


def test_links_of_data_are_taken_as_what_they_lead_to_outside(project: Path, home: Path) -> None:
    put(project, "train.py")
    put(home, "blobs/abc", "snap/real.txt", "deep/x", size=7)
    (home / "snap/model.bin").symlink_to("../blobs/abc")  # as in a cache that holds each file once
    (home / "snap/again").symlink_to("real.txt")
    (home / "latest").symlink_to("snap")
    files = {file.name: file for file in select(project, data=[home / "latest"]).files}
    assert files["data/latest/model.bin"].path == home / "blobs/abc"
    assert files["data/latest/model.bin"].size == 7
    assert files["data/latest/again"].link == "real.txt"
    assert files["data/latest/again"].leads_to == "data/latest/real.txt"
    (home / "snap/folder").symlink_to("../deep")
    error = refused(project, data=[home / "latest"])
    assert (error.field, error.value) == ("model.data", "folder")


def test_data_that_cannot_go_along_is_refused(project: Path, home: Path) -> None:
    put(project, "train.py", "data/corpus/x")
    put(home, "a/corpus/y", "b/corpus/y", "c/x")
    (home / "empty").mkdir()
    assert refused(project, data=[home / "nothing"]).field == "model.data"
    assert refused(project, data=[home / "empty"]).what == "the folder holds no files"
    assert "called x" in refused(project, data=[home / "c/x", home / "c/x"]).what
    assert "called corpus" in refused(project, data=[home / "a/corpus", home / "b/corpus"]).what
    assert "the project has" in refused(project, data=[home / "a/corpus"]).what
    assert refused(project, data=["~"]).what == "too much would be sealed"
    shutil.rmtree(project / "data")
    put(project, "data")
    assert "the project has" in refused(project, data=[home / "a/corpus"]).what


# Secrets, and what is told


@pytest.mark.parametrize(
    ("name", "content", "warned"),
    [
        (".env", "", True),
        ("conf/.env.production", "", True),
        (".env.example", "", False),
        ("id_rsa", "", True),
        ("id_rsa.pub", "", False),
        ("certs/server.pem", "", True),
        (".aws/credentials", "", True),
        (".netrc", "", True),
        ("kaggle.json", "", True),
        ("api_key.txt", "", True),
        ("tokenizer.json", "", False),
        ("bos_token.py", "", False),
        ("train.py", "login(token='hf_" + "a" * 24 + "')", True),
        ("train.py", "import torch", False),
        ("deploy", "-----BEGIN OPENSSH PRIVATE KEY-----", True),
    ],
)
def test_secrets_are_named(repository: Path, name: str, content: str, warned: bool) -> None:
    put(repository, "main.py", name)
    (repository / name).write_text(content, encoding="utf-8")
    git(repository, "add", "-A")
    assert select(repository).secrets == ((name,) if warned else ())


def test_what_is_told_in_git(repository: Path, home: Path) -> None:
    put(repository, "train.py", size=1500)
    put(repository, "data/train.bin", size=2_500_000)
    put(repository, "data/small.bin", "\x1b[31mred", "venv/pyvenv.cfg")
    put(home, "one.jsonl")
    git(repository, "add", "train.py", "\x1b[31mred")
    first, second = lines(select(repository))
    assert first == "sealing 2 files, 1.5 kB of finetune (what git tracks)"
    assert second == (
        "left out: 2 files, 2.5 MB, the largest data/train.bin 2.5 MB: name one in model.include to take it"
        " along; environments, unseen: venv"
    )
    first, second = lines(select(repository, include=["data/train.bin"], data=[home / "one.jsonl"]))
    assert first == (
        "sealing 4 files, 2.5 MB of finetune (what git tracks, and model.include),"
        " 1 file, 3 bytes of model.data among them, in data/"
    )
    assert second == (
        "left out: 1 file, 3 bytes, data/small.bin: name it in model.include to take it along;"
        " environments, unseen: venv"
    )


def test_what_is_told_without_git(project: Path) -> None:
    put(project, "train.py", ".env", "a\n\x1b[31m.pem")
    (project / ".glasshouseignore").write_text("big", encoding="utf-8")
    put(project, "big", size=2000)
    first, second, third = lines(select(project, include=[".env"]))
    assert first == "sealing 3 files, 9 bytes of finetune (no git: all but hidden files, and model.include)"
    assert second == "left out: 2 files, 2.0 kB, the largest big 2.0 kB (by .glasshouseignore)"
    assert third == (
        "warning: sealed with the rest, and may hold a secret: .env, a\ufffd\ufffd[31m.pem"
        " (to leave one out: .glasshouseignore)"
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [
        *((0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (999_400, "999.4 kB")),
        *(
            (999_990, "1.0 MB"),
            (2_300_000, "2.3 MB"),
            (8_100_000_000, "8.1 GB"),
            (8_100_000_000_000, "8100.0 GB"),
        ),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert size_words(count) == words


def a_run(place: Path, run: str = "20260102-030405-abcdef") -> Path:
    put(place, "controller.log", "bundle/record.json", "opened/s000-1/model.pt")
    (place / "run.json").write_text(json.dumps({"run": run, "name": f"gh-{run}-0a1b2c3d", "spec": {}}))
    return place


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize("place", ["runs/20260102-030405-abcdef", "elsewhere/kept"])
def test_a_run_of_ours_never_goes_along_and_is_named(project: Path, place: str, with_git: bool) -> None:
    put(project, "train.py", f"{place.partition('/')[0]}/exp/last.pt")
    if with_git:
        init(project)
        git(project, "add", "train.py")
    a_run(project / place)
    top = place.partition("/")[0]
    for include in ([f"{top}/**"], [f"{top}/**", "**"]):
        found = select(project, include=include, outputs="runs", apart=[project / "runs"])
        assert sorted(names(found)) == sorted([f"{top}/exp/last.pt", "train.py"])
        assert found.closed == (place,)
        assert lines(found)[1] == f"left out: Glasshouse's own: {place}"
    with pytest.raises(UsageError, match=f"out of {place}/opened"):
        select(project, include=[f"{place}/**"], outputs="runs", apart=[project / "runs"])
    with pytest.raises(UsageError, match="a run of Glasshouse cannot go along"):
        select(project, data=[(project / place).parent])
    data = select(project, data=[project / place / "opened" / "s000-1"])
    assert "data/s000-1/model.pt" in names(data)


@pytest.mark.parametrize(
    "kept", ["{", "[]", "[" * 100_000, '{"run": 1, "name": "x"}', '{"run": "a", "name": "gh-a-"}']
)
def test_a_run_json_of_somebody_elses_is_a_file(project: Path, kept: str) -> None:
    put(project, "exp/lock", "exp/parts/a")
    (project / "exp" / "run.json").write_text(kept)
    assert names(select(project)) == ["exp/lock", "exp/parts/a", "exp/run.json"]


def test_an_outputs_folder_that_is_there_is_named_as_left_out(project: Path) -> None:
    put(project, "train.py", "outputs/old.pt", "runs/a")
    assert lines(select(project, apart=[project / "runs"]))[1] == (
        "left out: outputs/ as it is here (model.outputs); Glasshouse's own: runs"
    )
