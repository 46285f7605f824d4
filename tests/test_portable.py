"""A controller needs nothing that Linux alone has: read from the source, and tried where it is taken away.

Whole runs in that condition: tests/e2e/test_mac.py.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import glasshouse
from tests.mac.kit import Mac, can_hide
from tests.mac.linux_only import GLIBC_ONLY, LINUX_ONLY, PATHS

ROOT = Path(glasshouse.__file__).parent

# Which sources may use what only Linux has, and why; a name that ends in / is a folder.
LINUX = {
    "runtime/": "runs on the pod",
    "lifecycle/observe.py": "a shell script that runs on the pod",
    "lifecycle/poll_script.py": "a shell script that runs on the pod",
    "lifecycle/room.py": "a shell script that runs on the pod",
    "remote/receive_script.py": "runs on the pod",
    "remote/send_script.py": "runs on the pod",
    "remote/sweep_script.py": "runs on the pod, and for provider=local, which needs Linux",
    "providers/fakes/container.py": "stands for a rented machine; the fakes need Linux",
    "commands/doctor.py": "asks what a leg on this machine could use, on Linux only",
}
# Who may load the C library: everything that is called there is on both systems, or guarded.
LIBC = {"sealing/memory.py"}
# Who starts processes on the controller's side, and which: a program is as little on both systems as a name.
PROGRAMS = {
    "commands/against.py": "git",
    "commands/doctor.py": "nvidia-smi, where there is one",
    "host.py": "ps, sysctl: macOS' own",
    "lifecycle/watchdog.py": "this program",
    "origin.py": "git",
    "providers/fakes/__main__.py": "the command that it was given",
    "providers/fakes/container.py": "stands for a rented machine",
    "providers/pod_server.py": "stands for a pod",
    "remote/sweep_script.py": "runs on the pod",
    "workloads/git_files.py": "git",
    "workloads/installed.py": "the interpreter of provider=local",
    "workloads/pip.py": "pip",
}
_PATH = re.compile(rf"({'|'.join(map(re.escape, PATHS))})(/|\Z)")
_SHARED_OBJECT = re.compile(r"\.so(\.\d+)?\Z")


class _Names(ast.NodeVisitor):
    """Collects what only Linux has, outside of `if sys.platform == "linux":`."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def _note(self, node: ast.expr | ast.stmt, what: str) -> None:
        self.found.append(f"line {node.lineno}: {what}")

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "sys.platform == 'linux'":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        module = node.value.id.lstrip("_") if isinstance(node.value, ast.Name) else ""
        if node.attr in LINUX_ONLY.get("os" if module == "posix" else module, ()):
            self._note(node, f"{module}.{node.attr}")
        elif module not in LINUX_ONLY and node.attr in GLIBC_ONLY:
            self._note(node, f"{node.attr} of glibc")
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name in LINUX_ONLY.get(node.module or "", ()):
                self._note(node, f"{node.module}.{alias.name}")

    def visit_Call(self, node: ast.Call) -> None:
        # getattr with a third argument is how to ask for what may be missing.
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 2:
            what = ast.unparse(node.args[1]).strip("'")
            if any(what in names for names in LINUX_ONLY.values()):
                self._note(node, what)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # else a docstring, which says and does nothing
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and (_PATH.search(node.value) or _SHARED_OBJECT.search(node.value)):
            self._note(node, node.value.strip()[:60])


def linux_names(text: str) -> list[str]:
    visitor = _Names()
    visitor.visit(ast.parse(text))
    return visitor.found


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def exempt(file: str) -> bool:
    return file.endswith("_pod.py") or any(
        file.startswith(name) if name.endswith("/") else file == name for name in LINUX
    )


def test_only_what_runs_on_the_pod_uses_what_only_linux_has() -> None:
    found = {file: linux_names(text) for file, text in sources() if not exempt(file)}
    assert {file: names for file, names in found.items() if names} == {}


def test_no_exemption_is_left_over() -> None:
    files = dict(sources())
    for name in LINUX:
        held = [text for file, text in files.items() if file == name or file.startswith(name)]
        assert any(linux_names(text) for text in held), name


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.sched_getaffinity(0)",
        "from os import sched_getaffinity",
        "import os\ngetattr(os, 'pidfd_open')",
        "import mmap\nadvice = mmap.MADV_HUGEPAGE",
        "_libc.prctl(1, 2)",
        "Path('/proc/self/stat')",
        "Path(f'/proc/{pid}/stat')",
        "os.stat('/dev/shm')",
        "CDLL('libc.so.6')",
        "import sys\nif sys.platform != 'linux':\n    open('/sys/kernel')",
        "import sys\nif sys.platform == 'linux':\n    pass\nelse:\n    open('/sys/kernel')",
    ],
)
def test_what_only_linux_has_is_found_however_it_is_written(text: str) -> None:
    assert len(linux_names(text)) == 1


def test_what_is_guarded_or_only_said_is_not_found() -> None:
    guarded = "import os, sys\nif sys.platform == 'linux':\n    os.sched_getaffinity(0)\n"
    asked = "import time\nclock = getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC)\n"
    assert linux_names(f'"""Looks at /proc/self."""\n{guarded}{asked}') == []


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [({"subprocess", "pty"}, PROGRAMS.keys()), ({"ctypes"}, LIBC)],
)
def test_programs_and_the_c_library_are_used_where_they_are_named(
    modules: set[str], allowed: set[str]
) -> None:
    users = set()
    for file, text in sources():
        if file.startswith("runtime/"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import) and any(alias.name in modules for alias in node.names):
                users.add(file)
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                users.add(file)
    assert users == set(allowed)


def test_the_type_checker_knows_every_other_name_too() -> None:
    """typeshed says of each name of the standard library on which systems it is."""
    command = [
        sys.executable, "-m", "mypy", "--platform", "darwin", "--no-warn-unreachable", "--no-error-summary",
        "--cache-dir", ".mypy_cache/darwin", "-p", "glasshouse",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "glasshouse/runtime/" in done.stdout, "nothing that only Linux has was found on the pod's side"
    errors = [line.removeprefix("glasshouse/") for line in done.stdout.splitlines()]
    assert [line for line in errors if not exempt(line.partition(":")[0])] == []


PLAYED = """
import ctypes, json, mmap, os, select, sys
from pathlib import Path
def fails(call):
    try:
        call()
    except (AttributeError, OSError) as error:
        return type(error).__name__
print(json.dumps([sys.platform, hasattr(os, "sched_getaffinity"), hasattr(mmap, "MADV_DONTDUMP"),
    hasattr(select, "epoll"), fails(lambda: open("/proc/self/stat")), fails(lambda: os.listdir("/sys")),
    fails(lambda: ctypes.CDLL(None).prctl), fails(lambda: ctypes.CDLL(None).mprotect),
    Path("/proc/self").exists()]))
"""


def test_what_is_taken_away_for_a_mac_is_gone_and_asking_for_it_is_noticed(tmp_path: Path) -> None:
    mac = Mac(tmp_path)
    done = subprocess.run(
        mac.command(mac.python, "-c", PLAYED),
        env=mac.environment({"PATH": os.environ["PATH"]}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    missing = '"FileNotFoundError", "FileNotFoundError", "AttributeError", null'
    there = "false" if can_hide() else "true"
    assert done.stdout.strip() == f'["darwin", false, false, false, {missing}, {there}]', done.stderr
    touched = [line.partition(" by ")[0] for line in mac.touched()]
    assert touched == ["/proc/self/stat", "/sys", "dlsym prctl"]


IMPORTED = """
import importlib
import glasshouse.run
from glasshouse.cli import COMMANDS
from glasshouse.providers.registry import _OPENERS
for name in COMMANDS:
    importlib.import_module(f"glasshouse.commands.{name}")
for opener in _OPENERS.values():
    importlib.import_module(opener.partition(":")[0])
"""


def test_a_controllers_modules_can_be_imported_on_a_mac(tmp_path: Path) -> None:
    mac = Mac(tmp_path)
    done = subprocess.run(
        mac.command(mac.python, "-c", IMPORTED),
        env=mac.environment({"PATH": os.environ["PATH"], "HOME": str(tmp_path)}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, mac.touched()) == (0, []), done.stderr
