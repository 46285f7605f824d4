"""What a launch is told, and how the archive starts it: bad input ends at once, with one line."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.canonical import b64u, canonical_json
from glasshouse.runtime.archive import MODULES, build_archive
from glasshouse.runtime.params import MAX_PARAMS_BYTES, LaunchParams, parse_launch, read_launch, write_launch
from tests.runtime.rig import wait_until

STRETCH = {"warmup_sec": 0, "measured_sec": 1.5, "steps": None, "delay_pct": 0.0}
GOOD = {
    "arm": "raw", "run": "20260101-000000-aaaaaa", "leg": "s000", "launch": 1, "leg_dir": "/x",
    "allocation": "gh-20260101-000000-aaaaaa-00000000", "public_allocation": "0" * 64,
    "stretch": STRETCH, "device": "cpu", "deadline_sec": 30, "raw_dir": "/y", "broker_public": b64u(b"k"),
}  # fmt: skip
KEY = bytes(range(32))

MALFORMED = [
    {"arm": "both"}, {"arm": None}, {"launch": "1"}, {"launch": 0}, {"launch": True}, {"launch": 10**9},
    {"deadline_sec": "30"}, {"deadline_sec": -1}, {"deadline_sec": 1e300}, {"deadline_sec": None},
    {"stretch": None}, {"stretch": []}, {"stretch": {}}, {"stretch": {**STRETCH, "measured_sec": "nan"}},
    {"stretch": {**STRETCH, "measured_sec": "inf"}}, {"stretch": {**STRETCH, "steps": -1}},
    {"stretch": {**STRETCH, "warmup_sec": None}}, {"stretch": {**STRETCH, "delay_pct": "nan"}},
    {"broker_public": 3}, {"broker_public": "!"}, {"broker_public": []},
    {"broker_port": 65536}, {"broker_port": "1"},
    {"leg": "../../x"}, {"leg": ""}, {"allocation": "a/b"}, {"allocation": ".."}, {"secret": ""},
    {"package": {}}, {"markers": {}}, {"markers_hash": 3}, {"private": True}, {"salt": ""},
    {"require_landlock": "no"}, {"extra": 1}, {"run": None}, {"leg_dir": ["x"]},
]  # fmt: skip


def test_good_parameters_are_read() -> None:
    launch = parse_launch(canonical_json(GOOD), bytearray(KEY))
    assert launch.broker_public == b"k"
    assert launch.stretch.measured_sec == 1.5
    assert launch.stretch.steps is None
    assert launch.require_landlock


def test_every_needed_name_is_needed() -> None:
    needed = {
        item.name
        for item in dataclasses.fields(LaunchParams)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    for name in needed:
        with pytest.raises((KeyError, TypeError, ValueError)):
            parse_launch(
                canonical_json({key: value for key, value in GOOD.items() if key != name}), bytearray(KEY)
            )


@pytest.mark.parametrize("change", MALFORMED, ids=lambda change: json.dumps(change)[:40])
def test_malformed_parameters_are_refused(change: dict) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_launch(json.dumps({**GOOD, **change}).encode(), bytearray(KEY))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 5000, b'{"arm":"raw","arm":"raw"}', b'"' * 70_000],
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_launch(data, bytearray(KEY))


@given(st.sampled_from(sorted(GOOD)), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3), max_leaves=4,
))  # fmt: skip
def test_any_value_gives_a_launch_or_a_refusal(name: str, value: object) -> None:
    try:
        launch = parse_launch(json.dumps({**GOOD, name: value}).encode(), bytearray(KEY))
    except (KeyError, TypeError, ValueError):
        return
    assert 0 <= launch.deadline_sec < 1e9
    assert "/" not in launch.allocation + launch.leg


TICKET = b"\n" + bytes(range(100, 131))  # the byte that ends the parameters may begin it
PROTECTED = {**{key: value for key, value in GOOD.items() if key != "raw_dir"}, "arm": "protected"}


@pytest.mark.parametrize(
    ("arm", "size"), [(arm, size) for arm in ("raw", "protected") for size in (0, 31, 33, 64)]
)
def test_a_launch_has_its_one_secret_and_no_more(arm: str, size: int) -> None:
    with pytest.raises(ValueError, match="ticket"):
        parse_launch(canonical_json({**PROTECTED, "arm": arm}), bytearray(size))


def _through_pipe(data: bytes, pieces: int) -> LaunchParams:
    read_end, write_end = os.pipe()
    size = -(-len(data) // pieces)

    def write() -> None:
        for at in range(0, len(data), size):
            os.write(write_end, data[at : at + size])
        os.close(write_end)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return read_launch(read_end)
    finally:
        thread.join()
        os.close(read_end)


@pytest.mark.parametrize("pieces", [1, 2, 7, 400])
def test_parameters_and_ticket_come_apart_however_they_arrive(pieces: int) -> None:
    launch = _through_pipe(canonical_json(PROTECTED) + b"\n" + TICKET, pieces)
    assert (launch.secret, launch.run) == (TICKET, GOOD["run"])
    assert "secret" not in repr(launch)
    assert _through_pipe(canonical_json(GOOD) + b"\n" + KEY, pieces).secret == KEY
    for wrong in (TICKET[:-1], TICKET + b"x", b""):
        with pytest.raises(ValueError, match="ticket"):
            _through_pipe(canonical_json(PROTECTED) + b"\n" + wrong, pieces)


def test_no_raw_launch_opens_a_private_payload() -> None:
    with pytest.raises(ValueError, match="private"):
        parse_launch(canonical_json({**GOOD, "private": True}), bytearray(KEY))
    assert parse_launch(canonical_json({**GOOD, "private": False}), bytearray(KEY)).secret == KEY


def test_what_is_written_is_what_is_read() -> None:
    raw = parse_launch(canonical_json(GOOD), bytearray(KEY))
    given = {"broker_public": b64u(b"key"), "broker_port": 7, "package": "/p", "private": True}
    protected = parse_launch(canonical_json({**PROTECTED, **given}), bytearray(TICKET))
    for launch in (raw, protected):
        assert _through_pipe(write_launch(launch), 7) == launch
    line, _, ticket = write_launch(protected).partition(b"\n")
    assert ticket == TICKET
    # Every parameter that stood in the line before stands in it as it did.
    assert json.loads(line).items() >= {**PROTECTED, **given}.items()
    text, _, key = write_launch(raw).partition(b"\n")
    assert json.loads(text).items() >= GOOD.items()
    assert key == KEY


# --- the archive ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "runtime.zip"
    path.write_bytes(build_archive()[0])
    return path


def start(archive: Path, *words: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-I", str(archive), *words], input=stdin, capture_output=True, timeout=30,
        env={**os.environ, **more}, check=False,
    )  # fmt: skip


def test_the_archive_is_the_same_bytes_each_time() -> None:
    data, digest = build_archive()
    assert build_archive() == (data, digest)
    assert digest == hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        names = opened.namelist()
        assert names == ["__main__.py", *(f"glasshouse/{name}" for name in MODULES)]
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    elsewhere = "import sys; sys.path.insert(0, '.'); from glasshouse.runtime.archive import build_archive; "
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", elsewhere + "print(build_archive()[1])"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert said.stdout.strip() == digest


LISTED = """
import runpy, sys
sys.argv = ["ARCHIVE", "usage"]
sys.path.insert(0, sys.argv.pop(0) and {archive!r})
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "numpy", "transformers", "pydantic", "sqlalchemy", "fabric"}}:
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
from glasshouse.runtime import custodian, entry, raw, sealer, supervisor, trainer
import sysconfig
stdlib = set(sys.stdlib_module_names)
found = {{name.partition(".")[0] for name in sys.modules}} - stdlib - {{"__main__", "__mp_main__"}}
print(sorted(found))
print(glasshouse.__file__ if "glasshouse" in globals() else sys.modules["glasshouse"].__file__)
"""


def test_the_archive_needs_the_standard_library_and_three_packages_alone(archive: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-I", "-c", LISTED.format(archive=str(archive))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, where = said.stdout.splitlines()
    # What cryptography and PyNaCl bring along, and what the environment's own .pth files load at start.
    brought = {"_cffi_backend", "_openssl", "_sodium", "bcrypt", "cffi", "typing_extensions"}
    brought |= {"_distutils_hack", "sitecustomize", "usercustomize"}
    foreign = {name for name in eval(names) if not name.startswith("__editable__")} - brought
    assert foreign == {"cryptography", "glasshouse", "jwt", "nacl"}
    assert where.startswith(str(archive))


@pytest.mark.parametrize("words", [(), ("launch",), ("start", "x"), ("launch", "x", "y")])
def test_other_words_are_a_usage_line(archive: Path, words: tuple[str, ...]) -> None:
    done = start(archive, *words)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"x" * (MAX_PARAMS_BYTES + 10),
        b"{}\nsecret-ticket",
        canonical_json(GOOD) + b"\n" + b"secret-ticket-of-32-bytes-exactly",
        canonical_json({**GOOD, "arm": "protected"}) + b"\nsecret-ticket",
    ],
)
def test_bad_parameters_are_one_line_that_repeats_none_of_them(
    archive: Path, tmp_path: Path, data: bytes
) -> None:
    done = start(archive, "launch", str(tmp_path / "leg"), stdin=data)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert b"secret" not in done.stderr + done.stdout
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "leg").exists()


def test_a_folder_that_is_there_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "leg").mkdir()
    done = start(archive, "launch", str(tmp_path / "leg"), stdin=canonical_json(GOOD) + b"\n" + KEY)
    assert done.returncode == 2
    assert done.stderr.startswith(b"leg folder")
    assert b"Traceback" not in done.stderr


def test_a_launch_is_detached_and_answers_with_its_pid(archive: Path, tmp_path: Path) -> None:
    leg = tmp_path / "deep" / "leg"
    done = start(
        archive, "launch", str(leg),
        stdin=canonical_json({**GOOD, "raw_dir": str(tmp_path / "raw")}) + b"\n" + KEY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pid"] > 1
    wait_until((leg / "result.json").exists, 20, "a result")
    result = json.loads((leg / "result.json").read_bytes())
    assert (result["arm"], result["status"], result["result"]) == ("raw", "failed", None)
    assert oct(leg.stat().st_mode)[-3:] == "700"
    assert oct((leg / "runtime.log").stat().st_mode)[-3:] == "600"
