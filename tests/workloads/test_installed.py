"""What a machine's Python says it has; lists of images; what becomes of what a project asks for."""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.spec import CloudProvider, Gpu, LocalProvider, ProjectModel, SshProvider
from glasshouse.workloads.dependencies import Dependencies
from glasshouse.workloads.installed import Installed, ask_here, known_machine, listed, read_answer
from glasshouse.workloads.outlook import NOT_KNOWN, outlook
from glasshouse.workloads.pip import Target
from glasshouse.workloads.project import look
from glasshouse.workloads.requirement import MAX_NEEDS

ANSWER: dict[str, Any] = {
    "python": [3, 12, 4], "implementation": "cpython", "threads": False, "machine": "x86_64",
    "libc": ["glibc", "2.35"], "packages": {"Torch": "2.9.0+cu128", "PyYAML": "6.0", "of.Debian": "1-ubuntu"},
    "extras": {"PyYAML": ["more; extra == 'x'", "not one!", "a @ https://x.example/a.whl", "b\n-r /x",
                          "c===${PIP_INDEX_URL}; extra == 'x'", "d; extra == '\u2028'"]},
    "modules": ["torch", "yaml"],
}  # fmt: skip
DIGEST = "ab" * 32
GPU = Gpu(name="cpu")


def answer(**changes: Any) -> str:
    return json.dumps(ANSWER | changes)


def test_an_interpreter_is_asked() -> None:
    found = ask_here(sys.executable)
    assert found.target.python == f"3.{sys.version_info[1]}"
    assert found.packages["packaging"] == metadata.version("packaging")
    assert "packaging" in found.modules
    assert known_machine(LocalProvider(kind="local")) == found
    for wrong in ("/nowhere/python", "/bin/true"):
        with pytest.raises(RemoteError, match="does not say what it has"):
            ask_here(wrong)


def test_an_answer_is_read_with_care() -> None:
    assert read_answer(answer()) == Installed(
        Target("3.12", "x86_64", 35, 4), {"torch": "2.9.0+cu128", "pyyaml": "6.0"},
        {"pyyaml": ("more; extra == 'x'",)}, frozenset({"torch", "yaml"}),
    )  # fmt: skip
    assert read_answer(answer(libc=["", ""])).target.glibc_minor == 0
    needed = ["internal", "internal; python_version > '3'", "internal; extra == 'x' or os_name == 'posix'"]
    assert read_answer(answer(extras={"p": needed})).extras == {}
    assert read_answer(answer(packages={"../x": "1", "a/b": "1", "a\n": "1", "ok": "../../1"})).packages == {}


def test_only_so_much_of_what_extras_need_is_taken() -> None:
    """Two hundred thousand would be minutes of work, and none of them is asked for."""
    many = [f"a{number}; extra == 'x'" for number in range(20_000)]
    found = read_answer(answer(extras={f"p{number}": many for number in range(11)})).extras
    assert {name: len(needs) for name, needs in found.items()} == {f"p{n}": MAX_NEEDS for n in range(10)}
    long = "a; " + " or ".join(["extra == 'x'"] * 2000)
    assert read_answer(answer(extras={"p": [long, "a; extra == 'x'"]})).extras == {"p": ("a; extra == 'x'",)}


@given(st.lists(st.text(max_size=60), max_size=3))
@example(["a;" + "(" * 5000 + "os_name=='x'" + ")" * 5000, "a; os_name ~= 'a'", "b; extra == 'x'"])
def test_no_need_of_an_extra_ends_otherwise(items: list[str]) -> None:
    assert set(read_answer(answer(extras={"p": items})).extras.get("p", ())) <= set(items)


@pytest.mark.parametrize(
    "change",
    [{"python": [3, 12]}, {"python": [3, 12, "x"]}, {"machine": "../x"}, {"packages": []}, {"modules": [1]},
     {"extras": {"a": "b"}}, {"libc": []}, {"more": 1},
     {"packages": {"a": "1" * 300}}],
)  # fmt: skip
def test_what_the_script_would_not_print_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        read_answer(answer(**change))


@pytest.mark.parametrize("change", [{"implementation": "pypy"}, {"threads": True}, {"python": [4, 0, 0]}])
def test_another_python_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="CPython 3 with its lock alone"):
        read_answer(answer(**change))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_answer_ends_otherwise(data: bytes | str) -> None:
    with contextlib.suppress(ValueError):
        read_answer(data)


def cloud(image: str) -> CloudProvider:
    return CloudProvider(kind="runpod", base_url="https://x.example", image=image)


def test_a_list_of_an_image_is_read_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"{DIGEST}.json"
    image = f"runpod/pytorch@sha256:{DIGEST}"
    listing = {
        "format": "glasshouse/image-packages/v1", "image": f"sha256:{DIGEST}", "date": "2026-11-28",
        "source": "the script, in the image", "machine": ANSWER,
    }  # fmt: skip
    assert listed(image, tmp_path) is None
    path.write_text(json.dumps(listing))
    found = known_machine(cloud(image), tmp_path)
    assert found is not None
    assert found == read_answer(answer())
    assert found.source == "list of 2026-11-28"
    assert listed("runpod/pytorch:latest", tmp_path) is None
    ssh = SshProvider(kind="ssh", host="x.example", user="u", key="k")
    assert known_machine(ssh, tmp_path) is None
    for wrong in (
        listing | {"image": f"sha256:{'cd' * 32}"}, listing | {"date": "lately"}, listing | {"source": ""},
        listing | {"machine": {}}, [],
    ):  # fmt: skip
        path.write_text(json.dumps(wrong))
        with pytest.raises(GlasshouseError, match="list of") as caught:
            listed(image, tmp_path)
        assert caught.value.value == path


def needs(*requirements: str, **more: Any) -> Dependencies:
    return Dependencies(requirements, source="requirements.txt", **more)


def test_what_becomes_of_requirements_and_imports() -> None:
    machine = read_answer(answer(), "list of 2026-11-28")
    asked = needs("torch>=2", "PyYAML>7", "scikit-learn", "old; python_version < '3'")
    found = outlook(asked, ("yaml", "sklearn", "nowhere", "cv2"), machine)
    assert (found.provided, found.to_send) == (("torch",), ("pyyaml", "scikit-learn"))
    there = "the machine has torch (list of 2026-11-28)"
    assert found.lines() == [
        f"requirements: requirements.txt: {there}; to be sent with what they need: pyyaml, scikit-learn",
        "imported, and neither there nor asked for: nowhere, cv2 (opencv-python)",
    ]
    pinned = outlook(needs("pyyaml==6", "torch", hashes={"pyyaml": frozenset({"a"})}), (), machine)
    assert (pinned.provided, pinned.to_send) == (("torch",), ("pyyaml",))


def test_a_command_of_a_requirement_is_no_surprise(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["Not_There-yet"]\n')
    model: dict[str, Any] = {"kind": "project", "name": "p", "folder": str(tmp_path)}
    for module, warned in (("not_there_yet", False), ("nor_this", True)):
        found = look(ProjectModel(**model, command=("python", "-m", f"{module}.cli")), GPU)
        assert any("neither in the project" in line for line in found.lines) is warned
        assert any(line.startswith("needs, by pyproject.toml: Not_There-yet (") for line in found.lines)
    (tmp_path / ".glasshouse-wheels").mkdir()
    (tmp_path / ".glasshouse-wheels" / "x").touch()
    with pytest.raises(UsageError, match="where wheels are put"):
        look(ProjectModel(**model, command=("python", "-m", "x"), include=(".glasshouse-wheels/x",)), GPU)


def test_what_is_not_known_is_said_to_be() -> None:
    found = outlook(needs("torch>=2", "old; python_version < '3'"), ("torch", "nowhere"), None)
    assert found.lines() == [
        f"requirements: requirements.txt asks for old, torch; {NOT_KNOWN}",
        "imported, and not asked for: nowhere; whether the machine has it is not known",
    ]
    assert found.as_json()["provided"] is None
    assert outlook(Dependencies(), (), None).lines() == [f"requirements: none are read; {NOT_KNOWN}"]
