"""Wheels: unpacked as an installer does it, and nothing outside, whatever they hold."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glasshouse
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import project, wheel
from glasshouse.runtime.wheel import WheelError, read_wheel, read_wheels, unpack
from tests.install.kit import make_wheel

INFO = "alpha-1.0.dist-info"
MORE = {
    "pkg/__init__.py": "",
    "DATA/scripts/old-say": "#!python\nimport sys\nprint(sys.argv[1:])\n",
    "DATA/purelib/extra.py": "X = 1\n",
    "DATA/data/share/words.txt": "words",
    "INFO/entry_points.txt": (
        "[console_scripts]\nsay = pkg.cli:main.run [more]\nbad/../name = pkg:main\nworse = x\n"
    ),
}


def places(folder: Path) -> tuple[Path, Path]:
    site, programs = folder / "site", folder / "programs"
    for place in (site, programs):
        place.mkdir()
    return site, programs


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_wheel_is_unpacked_as_an_installer_does_it(tmp_path: Path) -> None:
    site, programs = places(tmp_path)
    path = make_wheel(tmp_path, "alpha", "1.0", more=MORE)
    found = unpack(path, site, programs, python=sys.executable)
    assert found == read_wheel(path)
    assert found.modules == {"alpha", "pkg", "extra", "share"}
    assert found.programs == {"old-say", "say"}
    inside = {"alpha.py", "pkg/__init__.py", "extra.py", "share/words.txt"}
    about = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert files(site) == inside | about
    assert files(programs) == {"old-say", "say"}
    assert (programs / "say").read_text() == (
        f"#!{sys.executable}\nimport sys\nfrom pkg.cli import main\nsys.exit(main.run())\n"
    )
    assert stat.S_IMODE((programs / "say").stat().st_mode) == 0o700
    said = subprocess.run([programs / "old-say", "x"], capture_output=True, text=True, check=True)
    assert said.stdout == "['x']\n"
    # Another one's file of the same name takes its place.
    unpack(make_wheel(tmp_path, "beta", "1", more={"extra.py": "X = 2\n"}), site, programs, python="p")
    assert (site / "extra.py").read_text() == "X = 2\n"


def record(content: Mapping[str, bytes], **changes: str) -> str:
    lines = []
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},{changes.get('hash', 'sha256=' + digest)},{len(data)}\n")
    return "".join(lines) + f"{INFO}/RECORD,,\n" + changes.get("more", "")


def made(path: Path, content: Mapping[str, bytes], listed: str | None = None, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            wheel.writestr(info, data)
        wheel.writestr(f"{INFO}/RECORD", record(content) if listed is None else listed)
    return path


@pytest.mark.parametrize(
    "name",
    ["../out.py", "/out.py", "a/../../out.py", "a//b.py", "./a.py", "a\\..\\b.py",
     "alpha-1.0.data/scripts/../x", "alpha-1.0.data/elsewhere/x", "alpha-1.0.data/x", "x" * 2000,
     "alpha-2.0.dist-info/METADATA"],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    site, programs = places(tmp_path)
    path = made(tmp_path / "alpha-1.0-py3-none-any.whl", {"first.py": b"", name: b"x"})
    with pytest.raises(WheelError) as caught:
        unpack(path, site, programs, python="python")
    assert caught.value.value == path.name
    assert files(tmp_path) == {path.name}


# What no file system could hold: bytes of a name, and a file in a folder's place.
UNWRITABLE = {
    "a long part": {"a/" + "x" * 300: b""},
    "a long part in bytes": {"\u4e00" * 86: b""},
    "a long name in bytes": {"/".join(["\u4e00" * 80] * 5): b""},
    "file and folder": {"a": b"", "a/b": b""},
    "file and folder, in either order": {"a/b/c": b"", "a/b-c": b"", "a/b": b""},
    "by another way": {"alpha-1.0.data/purelib/a": b"", "a/b": b""},
    "programs": {"alpha-1.0.data/scripts/say": b"", "alpha-1.0.data/scripts/say/it": b""},
    "a program and its folder": {
        "alpha-1.0.data/scripts/say/it": b"",
        f"{INFO}/entry_points.txt": b"[console_scripts]\nsay = a:b\n",
    },
}


@pytest.mark.parametrize("how", sorted(UNWRITABLE))
def test_what_could_not_be_written_is_refused_before_anything_is(tmp_path: Path, how: str) -> None:
    site, programs = places(tmp_path)
    path = made(tmp_path / "alpha-1.0-py3-none-any.whl", {"0.py": b"", **UNWRITABLE[how]})
    with pytest.raises(WheelError):
        read_wheel(path)
    with pytest.raises(WheelError, match=r"too long|needs a folder"):
        unpack(path, site, programs, python="python")
    assert files(tmp_path) == {path.name}


def test_names_that_only_begin_alike_are_written(tmp_path: Path) -> None:
    site, programs = places(tmp_path)
    content = {"a-b": b"", "a/b": b"", "alpha-1.0.data/scripts/a": b"", "\u4e00" * 80 + ".so": b"\x7fELF"}
    path = made(tmp_path / "alpha-1.0-py3-none-any.whl", content)
    unpack(path, site, programs, python="python", in_memory=True)
    assert files(programs) == {"a"}
    assert {"a-b", "a/b"} < files(site)


def test_what_unpacks_to_too_much_is_refused_by_its_list_alone(
    tmp_path: Path,
) -> None:
    bomb = tmp_path / "alpha-1.0-py3-none-any.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as file:
        for _ in range(70):
            file.write(bytes(1 << 20))
    sound = [make_wheel(tmp_path, name, "1.0") for name in ("beta", "gamma")]
    each = read_wheel(sound[0])
    assert [found.nbytes for found in read_wheels(sound)] == [each.nbytes, read_wheel(sound[1]).nbytes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was read"))
        with pytest.raises(WheelError, match="more than 200 times its size") as caught:
            read_wheels([*sound, bomb])
        assert caught.value.value == bomb.name
        with pytest.raises(WheelError, match="more than 200 times its size"):
            unpack(bomb, *places(tmp_path), python="python")
        patch.setattr(wheel, "MAX_BYTES", each.nbytes * 3 // 2)
        with pytest.raises(WheelError, match="with those before it, it holds too much") as caught:
            read_wheels(sound)
        assert caught.value.value == sound[1].name


def test_what_record_does_not_vouch_for_is_refused(tmp_path: Path) -> None:
    site, programs = places(tmp_path)
    content = {"a.py": b"A = 1\n"}
    name = tmp_path / "alpha-1.0-py3-none-any.whl"
    wrong = {
        "not the one": record({"a.py": b"A = 2\n"}),
        "no digest": record(content, hash="md5=x"),
        "no digest of": f"{INFO}/RECORD,,\n",
        "is not in it": record(content, more="b.py,sha256=x,1\n"),
    }
    for words, listed in wrong.items():
        with pytest.raises(WheelError, match=words):
            unpack(made(name, content, listed), site, programs, python="python")
    with pytest.raises(WheelError, match="a link"):
        unpack(
            made(name, {"a.py": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), site, programs, python="python"
        )
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr("a.py", b"A = 1\n")
        with pytest.warns(UserWarning, match="Duplicate name"):
            wheel.writestr("a.py", b"A = 2\n")
    with pytest.raises(WheelError, match="twice"):
        unpack(name, site, programs, python="python")
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr(f"{INFO}/METADATA", "")
    with pytest.raises(WheelError, match="no RECORD"):
        unpack(name, site, programs, python="python")
    whole = make_wheel(tmp_path, "beta", "1.0").read_bytes()
    name.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with contextlib.suppress(WheelError):
        read_wheel(name)
    name.write_bytes(whole[:-30])
    with pytest.raises(WheelError, match="no whole zip"):
        read_wheel(name)
    assert files(site) == files(programs) == set()


@given(st.binary(max_size=200), st.integers(0, 1200), st.integers(0, 1200))
def test_no_bytes_end_otherwise_than_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, until: int
) -> None:
    base = tmp_path_factory.mktemp("any")
    whole = make_wheel(base, "alpha", "1.0", more=MORE)
    sound = whole.read_bytes()
    whole.write_bytes(sound[:at] + data + sound[until:])
    with contextlib.suppress(WheelError):
        read_wheel(whole)


def test_a_leg_unpacks_what_came_along_and_names_what_does_not_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels, scratch = tmp_path / "wheels", tmp_path / "scratch"
    assert project._installed(wheels, scratch) is None
    scratch.mkdir()
    make_wheel(wheels, "alpha", "1.0", more=MORE)
    site = project._installed(wheels, scratch)
    assert site is not None
    assert {"alpha.py", f"{INFO}/RECORD"} < files(site.modules)
    assert files(site.programs) == {"old-say", "say"}
    assert not wheels.exists()
    wheels.mkdir()
    (wheels / "beta-1.0-py3-none-any.whl").write_bytes(b"PK")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(LegError) as caught:
        project._installed(wheels, other)
    assert caught.value.code == Code.DEPENDENCIES_UNMET
    assert "beta" not in caught.value.line()  # which leaves the machine in the clear
    assert "beta-1.0-py3-none-any.whl" in capsys.readouterr().out  # the sealed log
    with pytest.raises(LegError) as caught:
        project._installed(wheels, tmp_path / "nowhere")
    assert caught.value.code == Code.PROJECT_NOT_WRITTEN


IMPORTS = """
import os, sys, subprocess
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from glasshouse.runtime.wheel import unpack
place = Path(sys.argv[2])
assert os.statvfs(place).f_flag & os.ST_NOEXEC
for name in ("site", "programs"):
    (place / name).mkdir()
in_memory = sys.argv[4] == "memory"
unpack(Path(sys.argv[3]), place / "site", place / "programs", python="python", in_memory=in_memory)
sys.path.insert(0, str(place / "site"))
if os.fork() == 0:
    try:
        import ghnative
        print(ghnative.__file__, flush=True)
    except OSError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def native_wheel(folder: Path) -> Path:
    """A wheel with a shared object in it: one that this interpreter brings, for any will do."""
    part = next(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"))
    code = "import ctypes, os\nPART = os.path.join(os.path.dirname(__file__), 'part.so')\nctypes.CDLL(PART)\n"
    content = {
        "ghnative/__init__.py": code.encode(),
        "ghnative/part.so": part.read_bytes(),
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return made(folder / "alpha-1.0-py3-none-any.whl", content)


@pytest.mark.parametrize("how", ["memory", "files"])
def test_shared_objects_are_loaded_where_nothing_may_be_executed(tmp_path: Path, how: str) -> None:
    """As in most containers' /dev/shm. Written there as files they cannot be, which is why."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    place = tmp_path / "place"
    place.mkdir()
    script = 'mount -t tmpfs -o noexec tmpfs "$1" && exec "$2" -c "$3" "$4" "$1" "$5" "$6"'
    words = [
        place,
        sys.executable,
        IMPORTS,
        Path(glasshouse.__file__).parents[1],
        native_wheel(tmp_path),
        how,
    ]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    if how == "memory":
        assert last == f"{place}/site/ghnative/__init__.py"
    else:
        assert "failed to map segment" in last
