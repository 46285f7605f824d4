"""What a project says it needs, read; and the wheels for it, from an index on the loopback."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.workloads import pip, wheels
from glasshouse.workloads.chosen import ChosenFile
from glasshouse.workloads.dependencies import (
    MAX_LINES,
    MAX_REQUIREMENTS,
    Dependencies,
    read_dependencies,
)
from glasshouse.workloads.wheels import Target, fetch
from tests.install import kit
from tests.workloads.test_requirement import TEXTS

DIGEST = "a" * 64


def read(folder: Path, files: Mapping[str, str], choice: str = "auto") -> Dependencies:
    chosen = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        chosen.append(ChosenFile(name, path, path.stat().st_size))
    return read_dependencies(chosen, choice, folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch>=2.9\n\n# words\nnumpy # more\nPyYAML==6.0", ["torch>=2.9", "numpy", "PyYAML==6.0"]),
        ("a[x, y] >= 1 ; python_version < '3.12'", ['a[x,y]>=1; python_version < "3.12"']),
        ("a==1 \\\n  ; sys_platform == 'linux'", ['a==1; sys_platform == "linux"']),
        ("\ufeffa\r\nb\r\n", ["a", "b"]),
        ("a\na", ["a"]),
        ("a==1 \\\n    --hash=sha256:" + DIGEST + " \\\n    --hash=sha256:" + "b" * 64, ["a==1"]),
        ("", []),
    ],
)
def test_requirements_txt(tmp_path: Path, text: str, found: list[str]) -> None:
    assert list(read(tmp_path, {"requirements.txt": text}).requirements) == found


def test_files_that_a_file_names_are_read(tmp_path: Path) -> None:
    files = {
        "requirements.txt": "a\n-r more/dev.txt\n-c limits.txt\n--requirement=last.txt",
        "more/dev.txt": "b\n-r ../requirements.txt\n-r next.txt",
        "more/next.txt": "c",
        "limits.txt": "d==1",
        "last.txt": "e",
    }
    found = read(tmp_path, files)
    assert found.requirements == ("a", "b", "c", "e")
    assert found.constraints == ("d==1",)
    assert found.source == "requirements.txt"


def test_a_file_is_read_once_however_often_it_is_named(tmp_path: Path) -> None:
    """Read anew each time it would be sixteen million files."""
    files = {f"r{level}.txt": f"-r r{level + 1}.txt\n" * 8 + f"a{level}" for level in range(8)}
    files |= {"requirements.txt": "-r r0.txt\n-c r0.txt\n-r requirements.txt", "r8.txt": "last"}
    del files["r7.txt"]
    files["r6.txt"] = "-r r8.txt\n-r r0.txt\nb"
    found = read(tmp_path, files)
    assert found.requirements == ("last", "b", "a5", "a4", "a3", "a2", "a1", "a0")
    assert found.constraints == found.requirements


def test_lines_are_counted_while_they_are_read(tmp_path: Path) -> None:
    files = {"requirements.txt": "-r more.txt\nnot one!", "more.txt": "a\n" * (MAX_REQUIREMENTS + 1)}
    with pytest.raises(UsageError, match="too many requirements") as caught:
        read(tmp_path, files)
    assert caught.value.value == f"more.txt line {MAX_REQUIREMENTS + 1}"
    files = {"requirements.txt": "-c more.txt", "more.txt": "a==1\n" * MAX_LINES + "not one!"}
    with pytest.raises(UsageError, match="too many lines") as caught:
        read(tmp_path, files)
    assert caught.value.value == f"more.txt line {MAX_LINES}"
    full = {"requirements.txt": "a\n" * MAX_REQUIREMENTS + "-c more.txt", "more.txt": "b==1"}
    assert read(tmp_path, full).constraints == ("b==1",)


# What the parser of requirements, or a marker that is asked, would end with otherwise.
HARD = {
    "foo; os_name ~= 'a'": "its marker compares what cannot be compared: foo; os_name ~= 'a'",
    "foo; '1' ~= platform_release": "its marker compares what cannot be compared: foo",
    "foo; 'x' in extras": "its marker compares what cannot be compared: foo",
    "foo; " + "(" * 3000 + "os_name == 'a'" + ")" * 3000: "it has more than 2000 characters",
    "foo; " + "(" * 900 + "os_name == 'a'" + ")" * 900: "not a requirement: foo; ((((",
    "a" * 100_000: "it has more than 2000 characters",
    "-f " + "a" * 100_000: "it has more than 2000 characters",
    "-r " + "a" * 100_000: "it has more than 2000 characters",
}


@pytest.mark.parametrize("line", sorted(HARD))
def test_a_line_that_cannot_be_asked_is_named(tmp_path: Path, line: str) -> None:
    files = {"requirements.txt": f"torch\n{line}\n"}
    with pytest.raises(UsageError, match=re.escape(HARD[line])) as caught:
        read(tmp_path, files)
    assert caught.value.value == "requirements.txt line 2"
    assert len(caught.value.line()) < 300
    (tmp_path / "requirements.txt").unlink()
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {"pyproject.toml": f'[project]\ndependencies = ["{line}"]'})
    assert caught.value.value == "pyproject.toml"


def test_hashes_make_no_line_too_long(tmp_path: Path) -> None:
    digests = [f"{number:064x}" for number in range(100)]
    text = "a==1 " + " ".join(f"--hash=sha256:{digest}" for digest in digests)
    assert read(tmp_path, {"requirements.txt": text}).hashes == {"a": frozenset(digests)}


def test_hashes_are_kept_by_name(tmp_path: Path) -> None:
    text = f"Py_YAML==6 --hash=sha256:{DIGEST} --hash=sha256:{'b' * 64}\nother"
    assert read(tmp_path, {"requirements.txt": text}).hashes == {"py-yaml": {DIGEST, "b" * 64}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n-e .", "-e is not possible"),
        ("--editable=git+ssh://x/y", "--editable is not possible"),
        ("--index-url x.example/simple", "--index-url names no index"),
        ("-f wheels", "-f names no folder of this machine: wheels"),
        ("--find-links https://me:secret@x.example/page", "--find-links is not possible"),
        ("--pre", "--pre is not possible"),
        ("git+https://me:secret@x.example/y.git", "must be built, or fetched from elsewhere"),
        ("a @ https://x.example/a.whl", "must be built, or fetched from elsewhere"),
        ("a @ git+ssh://git@x.example/y", "must be built, or fetched from elsewhere"),
        ("./local", "must be built, or fetched from elsewhere"),
        ("old.tar.gz", "must be built, or fetched from elsewhere"),
        ("a @ file:a.whl", "no such wheel on this machine: file:a.whl"),
        ("dist/a-1-py3-none-any.whl", "no such wheel on this machine"),
        ("a b", "not a requirement"),
        ("-r nothing.txt", "nothing.txt does not go along"),
        ("-r ../outside.txt", "does not go along"),
    ],
)
def test_what_cannot_be_had_without_building_is_refused_by_name(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read(tmp_path, {"requirements.txt": text})
    assert caught.value.field == "dependencies"
    assert str(caught.value.value).startswith("requirements.txt line ")
    assert "\n" not in caught.value.line()
    assert "secret" not in caught.value.line()


def test_wheels_of_this_machine_and_where_else_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GH_TOKEN", "hidden")
    wheel = kit.make_wheel(tmp_path / "more" / "dist", "Alpha_One", "1.0")
    (tmp_path / "more" / "old-1.whl").touch()
    text = (
        "--index-url https://u:${GH_TOKEN}@x.example/simple\n--extra-index-url=https://y.example\n-f dist\n"
        f"--no-index\ndist/{wheel.name}\nfile:dist/{wheel.name} ; python_version < '3'\n"
        f"alpha_one @ {wheel.as_uri()}\n--only-binary=:all:\n--prefer-binary\n"
    )
    found = read(tmp_path, {"requirements.txt": "-r more/all.txt", "more/all.txt": text})
    named = f"alpha-one @ {wheel.as_uri()}"
    assert found.requirements == (named, f'{named} ; python_version < "3"', f"alpha_one @ {wheel.as_uri()}")
    assert found.places == (
        "--index-url https://u:hidden@x.example/simple", "--extra-index-url https://y.example",
        f"--find-links {wheel.parent.as_uri()}", "--no-index",
    )  # fmt: skip
    assert "hidden" not in repr(found)
    for wrong in ("beta @ file:dist/" + wheel.name, "old-1.whl"):
        with pytest.raises(UsageError):
            read(tmp_path, {"more/all.txt": wrong, "requirements.txt": "-r more/all.txt"})


def test_the_file_is_chosen(tmp_path: Path) -> None:
    files = {
        "requirements.txt": "a",
        "env/pinned.txt": "b",
        "env/pyproject.toml": PROJECT.replace("a>=1", "c"),
    }
    assert read(tmp_path, files, "env/pinned.txt") == Dependencies(("b",), source="env/pinned.txt")
    assert read(tmp_path, files, "./env/pyproject.toml").requirements == ("c", "b")
    assert read(tmp_path, {"requirements.txt": "git+https://x"}, "none") == Dependencies()
    with pytest.raises(UsageError, match="does not go along") as caught:
        read(tmp_path, files, "../x.txt")
    assert caught.value.field == "model.requirements"


PROJECT = '[project]\nname = "x"\nversion = "1"\ndependencies = ["a>=1", "b"]\n'


def test_pyproject_toml(tmp_path: Path) -> None:
    found = read(tmp_path, {"pyproject.toml": PROJECT})
    assert (found.requirements, found.source) == (("a>=1", "b"), "pyproject.toml")
    assert read(tmp_path, {"pyproject.toml": PROJECT, "requirements.txt": "c"}).requirements == ("c",)
    assert read(tmp_path, {"pyproject.toml": "[tool.ruff]\n"}) == Dependencies(source="pyproject.toml")
    assert read(tmp_path, {"train.py": ""}) == Dependencies()


@pytest.mark.parametrize(
    "text",
    [
        *("[project", "[project]\ndependencies = 'a'\n", "[project]\ndependencies = [1]\n"),
        *("[project]\ndynamic = ['dependencies']\n", "[tool.poetry.dependencies]\ntorch = '^2.9'\n"),
        *(
            "[project]\ndependencies = ['a @ https://x.example/a.whl']\n",
            "[project]\ndependencies = ['-e .']\n",
        ),
    ],
)
def test_other_forms_of_pyproject_toml_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {"pyproject.toml": text})
    assert (caught.value.field, caught.value.value) == ("dependencies", "pyproject.toml")


UV = """
[[package]]
name = "a"
version = "1.5"
source = { registry = "x" }
[[package]]
name = "x"
version = "1"
source = { editable = "." }
[[package]]
name = "two"
version = "1"
source = { registry = "x" }
[[package]]
name = "two"
version = "2"
source = { registry = "x" }
"""
POETRY = """
[[package]]
name = "A"
version = "1.5"
[[package]]
name = "g"
version = "1"
[package.source]
type = "git"
"""
PYLOCK = """
[[packages]]
name = "a"
version = "1.5"
[[packages]]
name = "v"
version = "1"
vcs = { type = "git" }
[[packages]]
name = "no-version"
"""


@pytest.mark.parametrize(
    ("name", "text"), [("uv.lock", UV), ("poetry.lock", POETRY), ("pylock.toml", PYLOCK)]
)
def test_a_lock_limits_versions(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, {"pyproject.toml": PROJECT, name: text}).constraints == ("a==1.5",)
    assert read(tmp_path, {name: text}) == Dependencies()


OPTIONS = st.sampled_from(
    ["", "-f ", "--find-links=", "-i ", "--index-url ", "-r ", "file:", "a @ file:", "~", "./"]
)


@given(st.builds("{}{}{}".format, OPTIONS, st.text(max_size=60), st.sampled_from(["", ".whl", "\0"])) | TEXTS)
def test_no_text_ends_otherwise_than_in_a_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    with contextlib.suppress(UsageError):
        assert all(read_dependencies([ChosenFile("requirements.txt", path, 1)]).requirements)


# The wheels


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kit.Index]:
    with kit.serving(tmp_path / "index") as served:
        monkeypatch.setenv("PIP_INDEX_URL", f"{served.url}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_RETRIES", "0")
        yield served


TARGET = Target("3.12")


def fetched(folder: Path, dependencies: Dependencies, **more: object) -> list[str]:
    place = folder / "wheels"
    place.mkdir(exist_ok=True, parents=True)
    return [path.name.split("-py3")[0] for path in fetch(dependencies, TARGET, place, **more)]  # type: ignore[arg-type]


def needs(*requirements: str, **more: object) -> Dependencies:
    return Dependencies(requirements, source="requirements.txt", **more)  # type: ignore[arg-type]


def test_wheels_are_fetched_with_what_they_need(index: kit.Index, tmp_path: Path) -> None:
    index.add("alpha", "1.0", ["beta>=1"])
    index.add("beta", "1.5")
    index.add("beta", "2.0")
    said = list[str]()
    assert fetched(tmp_path, needs("alpha", constraints=("beta==1.5", "unused==9")), say=said.append) == [
        *("alpha-1.0", "beta-1.5"),
    ]
    assert said == ["resolving 1 requirement of requirements.txt for Python 3.12", "fetching 2 wheels"]


def test_what_the_image_has_limits_and_is_not_fetched(index: kit.Index, tmp_path: Path) -> None:
    index.add("alpha", "1.0", ["torch>=2.8", "triton"])
    index.add("alpha", "2.0", ["torch>=2.10"])
    index.add("triton", "3.0")
    index.add("torch", "2.9.0", ["nvidia-cudnn-cu12"])
    provided = {"torch": "2.9.0+cu128"}
    assert fetched(tmp_path, needs("alpha", "torch"), provided=provided) == ["alpha-1.0"]
    assert not any("/torch/torch-" in path for path in index.asked)
    with pytest.raises(UsageError, match=r"the machine has torch 2\.9\.0\+cu128, and no") as caught:
        fetched(tmp_path, needs("torch==2.8"), provided=provided)
    assert str(caught.value.value) == "torch==2.8"
    assert fetched(tmp_path / "wheels", needs("torch==2.9.0"), provided={"Torch": "2.9.0"}) == []


def test_markers_are_asked_of_the_machine(index: kit.Index, tmp_path: Path) -> None:
    old, new = 'python_version < "3.12"', 'python_version >= "3.12"'  # this Python may be either
    index.add(
        "alpha",
        "1.0",
        [f"older; {old}", f"newer; {new}", "mac; sys_platform == 'darwin'", "more; extra == 'x'"],
    )
    for name in ("older", "newer", "mac", "direct", "more"):
        index.add(name, "1.0", ["under"] if name == "newer" else [])
    index.add("under", "1.0")
    wanted = needs("alpha[x]", f"direct; {new}", f"nowhere; {old}")
    assert set(fetched(tmp_path, wanted)) - {"older-1.0"} == {
        *("alpha-1.0", "newer-1.0", "under-1.0", "direct-1.0", "more-1.0"),
    }


def test_hashes_are_held(index: kit.Index, tmp_path: Path) -> None:
    digest = index.add("alpha", "1.0").removeprefix("sha256:")
    assert fetched(tmp_path, needs("alpha", hashes={"alpha": frozenset({digest, DIGEST})})) == ["alpha-1.0"]
    with pytest.raises(UsageError, match="none of the hashes"):
        fetched(tmp_path, needs("alpha", hashes={"alpha": frozenset({DIGEST})}))


def test_a_requirement_without_a_wheel_is_named(index: kit.Index, tmp_path: Path) -> None:
    index.add("alpha", "1.0", ["nowhere>=3"])
    for wanted, named in (("alpha==9", "alpha==9"), ("nothing", "nothing"), ("alpha", "nowhere>=3")):
        with pytest.raises(UsageError) as caught:
            fetched(tmp_path, needs(wanted))
        assert (caught.value.field, caught.value.value) == ("dependencies", named)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("Alpha==9.9", "requirements.txt line 2: no such version, the newest is 2.0"),
        ("alpha>=2.1 ; python_version > '3'", "requirements.txt line 2: no such version, the newest is"),
        ("alphaa", "requirements.txt line 2: no such package on the index"),
        ("beta<2", "requirements.txt line 2: no wheel fits Python 3.12 on Linux x86_64"),
        ("beta==3", "requirements.txt line 2: no such version, the newest is 1.5"),
        ("gamma", "requirements.txt line 2: no wheel fits Python 3.12 on Linux x86_64"),
        ("delta", "no such package on the index"),  # what it needs stands in no line
    ],
)
def test_why_there_is_no_wheel_is_said_with_the_line(
    index: kit.Index, tmp_path: Path, wanted: str, words: str
) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0")
    index.add("alpha", "3.0rc1")
    index.add("beta", "1.5", tags="cp312-cp312-win_amd64")
    index.add("delta", "1.0", ["nowhere"])
    source = index.folder / "simple" / "gamma"
    source.mkdir(parents=True)
    (source / "index.html").write_text(
        '<!DOCTYPE html><html><body><a href="gamma-1.tar.gz">x</a></body></html>'
    )
    asked = read(tmp_path, {"requirements.txt": f"# words\n{wanted}\n"})
    with pytest.raises(UsageError) as caught:
        fetched(tmp_path, asked)
    assert caught.value.what.startswith(words)
    assert caught.value.value == {"delta": "nowhere"}.get(wanted, wanted.partition(" ")[0])


@given(
    st.lists(
        st.sampled_from(
            ["Found link ", "Skipping link: ", "x: ", "https://", "[", "/", "a-1", ".whl", ".zip"]
        )
    )
)
def test_whatever_pip_says_of_links_is_passed_over_or_read(words: list[str]) -> None:
    fitting, others = pip._versions("".join(words), "a")
    assert {str(version) for version in fitting | others} <= {"1"}


def test_an_index_that_refuses_is_not_one_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        with pytest.raises(RemoteError, match=r"the package index answers 403 \(dependencies=alpha\)"):
            fetched(tmp_path, needs("alpha"))
        server.shutdown()


def test_what_the_machines_own_packages_need_is_its_own(index: kit.Index, tmp_path: Path) -> None:
    """Also where an index has the very version, and a wheel for the very platform."""
    index.add("torch", "2.9.0+cpu", ["setuptools>=77"], tags="cp312-cp312-manylinux_2_35_x86_64")
    index.add("setuptools", "80.0")
    index.add("alpha", "1.0", ["torch>=2"])
    has = {"torch": "2.9.0+cpu", "setuptools": "65.5", "pyyaml": "6.0", "numpy": "2.1"}
    assert fetched(tmp_path, needs("torch", "pyyaml", "numpy>=2"), provided=has) == []
    assert index.asked == []
    assert fetched(tmp_path, needs("torch", "numpy", "alpha"), provided=has) == ["alpha-1.0"]
    assert not any("setuptools" in path or "numpy" in path for path in index.asked)


def test_nothing_is_asked_where_extras_are_there_too(index: kit.Index, tmp_path: Path) -> None:
    extras = {
        "alpha": ("beta>=1; extra == 'more'", "alpha[more]; extra == 'all'", "gamma; extra == 'other'"),
        "beta": ("alpha[all]; extra == 'x'",),
    }
    has = {"alpha": "1.0", "beta": "1.0"}
    assert fetched(tmp_path / "a", needs("alpha[all]", "beta[x]"), provided=has, extras=extras) == []
    assert index.asked == []
    index.add("gamma", "1.0")
    assert fetched(tmp_path / "b", needs("alpha[other]"), provided=has, extras=extras) == ["gamma-1.0"]


def test_no_line_names_a_variable_to_pip(
    index: kit.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip would put its value there, and say it of what it does not find."""
    monkeypatch.setenv("HTTP_PROXY", "me:hidden@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for wanted in (needs("beta===${HTTP_PROXY}"), needs("beta", constraints=("beta===${HTTP_PROXY}",))):
        with pytest.raises(UsageError) as caught:
            fetched(tmp_path, wanted)
        assert caught.value.what == "not a requirement"
        assert "hidden" not in caught.value.line()
    assert index.asked == []


FETCHING = """
import sys
from pathlib import Path
from glasshouse.workloads.dependencies import Dependencies
from glasshouse.workloads.wheels import Target, fetch
fetch(Dependencies(("alpha",), source="requirements.txt"), Target("3.12"), Path(sys.argv[1]))
"""


def test_pip_ends_with_whoever_waits_for_it_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with kit.silent() as url:
        environment = os.environ | {
            "PIP_INDEX_URL": f"{url}/simple", "PIP_CONFIG_FILE": "/dev/null", "TMPDIR": str(tmp_path / "t"),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHING, str(tmp_path)], env=environment, stderr=subprocess.PIPE
        )
        while not any((tmp_path / "t").rglob("pip-*")):  # its own folders, before it asks the index
            assert process.poll() is None
            time.sleep(0.05)
        assert running(str(tmp_path / "t"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in err
    assert not running(str(tmp_path / "t"))
    assert list((tmp_path / "t").iterdir()) == []


def running(words: str) -> list[str]:
    """The processes in whose command line this stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in (said := path.read_bytes().decode(errors="replace")):
                found.append(said)
    return found


def test_another_version_than_the_machines_is_sent_where_its_own_does_not_do(
    index: kit.Index, tmp_path: Path
) -> None:
    index.add("numpy", "1.26")
    index.add("numpy", "2.1")
    index.add("alpha", "1.0", ["numpy<2", "small"])
    index.add("small", "3.0")
    digest = index.add("pinned", "1.0").removeprefix("sha256:")
    has = {"numpy": "2.1", "pinned": "1.0", "small": "1.0", "cryptography": "50.0"}
    assert fetched(tmp_path / "a", needs("numpy>=2", "pinned", "small"), provided=has) == []
    assert fetched(tmp_path / "b", needs("numpy<2"), provided=has) == ["numpy-1.26"]
    # What a requirement needs in its turn: the machine's version stood in the way, and no other one does.
    assert fetched(tmp_path / "c", needs("alpha"), provided=has) == ["alpha-1.0", "numpy-1.26"]
    # A lock is held to, and a digest says which file is meant.
    locked = needs("numpy", constraints=("numpy==1.26", "cryptography==49"))
    assert fetched(tmp_path / "d", locked, provided=has) == ["numpy-1.26"]
    hashed = needs("pinned", hashes={"pinned": frozenset({digest})})
    assert fetched(tmp_path / "e", hashed, provided=has) == ["pinned-1.0"]
    # What the process runs with already is not replaced.
    with pytest.raises(UsageError, match=r"the machine has cryptography 50\.0, and no other is sent"):
        fetched(tmp_path / "f", needs("cryptography<50"), provided=has)


def test_torch_is_never_sent(index: kit.Index, tmp_path: Path) -> None:
    index.add("torch", "2.9.0")
    index.add("alpha", "1.0", ["torch"])
    for name in ("torch>=2", "alpha"):
        with pytest.raises(UsageError, match="the machine has no torch, and none is sent") as caught:
            fetched(tmp_path, needs(name))
        assert caught.value.value == "torch"
        assert list((tmp_path / "wheels").iterdir()) == []


def test_what_is_large_is_not_sent_by_accident(
    index: kit.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "MAX_WHEELS_BYTES", 100)
    index.add("alpha", "1.0")
    with pytest.raises(UsageError, match=r"GB of wheels would be sent, .* GB of it one") as caught:
        fetched(tmp_path, needs("alpha"))
    assert caught.value.value == "alpha-1.0"


def test_an_extra_of_what_the_machine_has_is_sent(index: kit.Index, tmp_path: Path) -> None:
    index.add("beta", "1.0")
    index.add("gamma", "1.0")
    extras = {"alpha": ("beta; extra == 'more'", "gamma; extra == 'other'")}
    has = {"alpha": "1.0"}
    assert fetched(tmp_path, needs("alpha[more]"), provided=has, extras=extras) == ["beta-1.0"]


def test_a_machine_does_not_choose_what_is_fetched(index: kit.Index, tmp_path: Path) -> None:
    """Only for an extra that the project, or what is fetched for it, asks for; and that is said apart."""
    for name, needed in {"alpha": ["numpy[fast]"], "small": [], "internal": [], "quick": ["under"]}.items():
        index.add(name, "1.0", needed)
    index.add("under", "1.0")
    has = {"numpy": "2.0"}
    quick = "quick; extra == 'fast'"
    hostile = tuple(
        f"internal; {marker}"
        for marker in (
            *("extra == 'other'", "python_version > '3'", "extra != 'x'", "extra == ''", "os_name ~= 'a'"),
            "extra == 'fast' or os_name == 'posix'",
        )
    )
    named = list[str]()

    def sent(*wanted: str) -> list[str]:
        named.clear()
        index.asked.clear()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        extras = {"numpy": ("internal", *hostile, quick), "small": hostile, "nowhere": hostile}
        return fetched(folder, needs(*wanted), provided=has, extras=extras, say_named=named.extend)

    assert (sent("numpy", "small"), named) == (["small-1.0"], [])
    assert (sent("numpy[fast]", "small"), named) == (["quick-1.0", "small-1.0", "under-1.0"], ["quick"])
    assert (sent("alpha"), named) == (["alpha-1.0", "quick-1.0", "under-1.0"], ["quick"])
    assert (sent("alpha", "quick"), named) == (["alpha-1.0", "quick-1.0", "under-1.0"], [])
    assert not any("internal" in path for path in index.asked)


def test_wheels_of_this_machine_need_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{kit.closed()}/simple")
    folder = tmp_path / "a folder"
    kit.make_wheel(folder, "alpha", "1.0", ["beta"])
    kit.make_wheel(folder, "beta", "1.0")
    named = kit.make_wheel(tmp_path / "own", "gamma", "1.0+mine")
    other = kit.make_wheel(tmp_path / "own", "gamma", "1.0", tags="cp311-cp311-win_amd64")
    places = (f"--find-links {folder.as_uri()}", "--no-index")
    wanted = needs("alpha", f"gamma @ {named.as_uri()}", places=places)
    provided = {"gamma": "1.0+mine"}
    assert fetched(tmp_path, wanted, provided=provided) == ["alpha-1.0", "beta-1.0", "gamma-1.0+mine"]
    assert (tmp_path / "wheels" / named.name).read_bytes() == named.read_bytes()
    with pytest.raises(UsageError, match="no wheel fits Python") as caught:
        fetched(tmp_path / "x", needs(f"gamma @ {other.as_uri()}", places=places))
    assert caught.value.value == other.name


def test_an_indexs_password_is_shown_nowhere(
    index: kit.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = subprocess.Popen

    def watched(words: list[str], **more: Any) -> Any:
        seen.append((words, more["env"]))
        return real(words, **more)

    monkeypatch.setattr(subprocess, "Popen", watched)
    place = f"--index-url {index.url.replace('//', '//me:hidden@')}/simple"
    index.add("alpha", "1.0")
    assert fetched(tmp_path, needs("alpha", places=(place,))) == ["alpha-1.0"]
    for names in (("nothing",), ("alpha", "alpha==3")):
        with pytest.raises(UsageError) as caught:
            fetched(tmp_path / "x", needs(*names, places=(place,)))
        assert "hidden" not in caught.value.line()
    assert len(seen) == 5
    assert "hidden" not in repr(seen)


def test_requirements_that_contradict_each_other_are_one_line(index: kit.Index, tmp_path: Path) -> None:
    index.add("alpha", "1.0", ["gamma==1"])
    index.add("beta", "1.0", ["gamma==2"])
    index.add("gamma", "1")
    index.add("gamma", "2")
    with pytest.raises(UsageError) as caught:
        fetched(tmp_path, needs("alpha", "beta"))
    assert "alpha" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_an_index_that_is_not_there_is_no_fault_of_the_requirement(
    index: kit.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{kit.closed()}/simple")
    for tries in ("0", "1"):
        monkeypatch.setenv("PIP_RETRIES", tries)
        with pytest.raises(GlasshouseError) as caught:
            fetched(tmp_path, needs("alpha"))
        assert caught.value.what == "the package index cannot be reached"
        assert caught.value.value == "alpha"
        assert caught.value.exit_code == 3


def test_pips_other_settings_here_mean_nothing(
    index: kit.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("alpha", "1.0", ["beta"])
    index.add("beta", "1.0")
    (tmp_path / "mine.txt").write_text("alpha==9\n", encoding="utf-8")
    for name, value in (
        ("PIP_CONSTRAINT", "mine.txt"),
        ("PIP_TARGET", "elsewhere"),
        ("PIP_NO_BINARY", ":all:"),
    ):
        monkeypatch.setenv(name, value if value.startswith(":") else str(tmp_path / value))
    assert fetched(tmp_path, needs("alpha")) == ["alpha-1.0", "beta-1.0"]
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_is_asked_where_nothing_is_needed(index: kit.Index, tmp_path: Path) -> None:
    assert fetched(tmp_path, Dependencies()) == []
    assert fetched(tmp_path, needs("alpha; sys_platform == 'win32'")) == []
    assert index.asked == []


def test_platform_tags_end_at_the_machines_glibc() -> None:
    tags = Target("3.12", glibc_minor=28).platforms
    assert "manylinux_2_28_x86_64" in tags
    assert "manylinux_2_31_x86_64" not in tags
    assert "manylinux2014_x86_64" in tags
    assert Target("3.12", glibc_minor=0).platforms == ("linux_x86_64",)
    assert all(tag.endswith("_aarch64") for tag in Target("3.12", "aarch64").platforms)


@pytest.mark.parametrize(
    "told", [{"hash": f"sha256={'ab' * 32}"}, {"hash": "md5=x", "hashes": {"sha256": "ab" * 32}}]
)
def test_a_digest_is_read_as_any_pip_says_it(told: dict[str, Any]) -> None:
    """The first is pip 23.0's, which Debian 12 has."""
    item = {"metadata": {"name": "Alpha", "version": "1.0"}, "download_info": {"archive_info": told}}
    assert pip._package(item).sha256 == "ab" * 32
