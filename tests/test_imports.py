"""The rules of ARCHITECTURE.md about who may import what, read from the source itself."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import glasshouse
from glasshouse.runtime.archive import MODULES

ROOT = Path(glasshouse.__file__).parent

# A package, or a module beside the packages, imports only from its own row or from rows above it.
LAYERS = (
    (
        "codes",
        "reasons",
        "errors",
        "canonical",
        "host",
        "paths",
        "extras",
        "origin",
        "retry",
        "cutting",
        "secret_patterns",
        "random_looking",
        "vendor_tokens",
    ),
    ("spec", "conf_files"),
    ("schema",),
    ("spec_errors",),
    ("measurement",),
    ("remote",),
    ("providers",),
    ("sealing",),
    ("attestation",),
    ("runtime",),
    ("workloads",),
    ("judgement",),
    ("records",),
    ("publishing",),
    ("watching",),
    ("lifecycle",),
    ("run",),
    ("config",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: number for number, row in enumerate(LAYERS) for name in row}

# Where a value meets the outside world; pure modules take and give values.
IO_MODULES = {
    *("asyncio", "ctypes", "http", "io", "mmap", "multiprocessing", "os", "pathlib", "random", "secrets"),
    *("shutil", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib"),
    *("asyncssh", "fabric", "httpx", "paramiko", "sqlalchemy"),
}
PURE = (
    "attestation/appraise.py",
    "measurement/controls.py",
    "measurement/estimate.py",
    "measurement/expected_cost.py",
    "measurement/fixed_cost.py",
    "measurement/pooling.py",
    "measurement/randomisation.py",
    "measurement/roofline.py",
    "measurement/schedule.py",
    "measurement/stats.py",
    "judgement/caveats.py",
    "judgement/facts.py",
    "judgement/figures.py",
    "judgement/judge.py",
    "judgement/record.py",
    "judgement/rules.py",
    "judgement/conclusions.py",
    "judgement/nothing_to_check.py",
    "publishing/charts.py",
    "publishing/pages.py",
    "reasons/__init__.py",
    "reasons/attestation.py",
    "reasons/entry.py",
    "reasons/publication.py",
    "reasons/records.py",
    "reasons/runs.py",
)
HEAVY = {"torch", "transformers", "peft", "safetensors", "huggingface_hub", "accelerate"}


@dataclass(frozen=True)
class Import:
    """One imported name: dotted, by which file and line."""

    name: str
    file: str
    line: int

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


class _Visitor(ast.NodeVisitor):
    """Collects every import that can run: also those inside functions, not those for type checkers."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Import] = []

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, self.file, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:  # relative to this file's package
            parts = ("glasshouse", *Path(self.file).parent.parts)
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            self.found.append(Import(f"{base}.{alias.name}", self.file, node.lineno))


def imports_of(text: str, file: str) -> list[Import]:
    visitor = _Visitor(file)
    visitor.visit(ast.parse(text))
    return visitor.found


def sources() -> Iterator[Path]:
    return (path for path in sorted(ROOT.rglob("*.py")))


@functools.cache
def every_import() -> list[Import]:
    return [
        item
        for path in sources()
        for item in imports_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]


def layer(module: str) -> str | None:
    """glasshouse.records.keys -> records; glasshouse.__version__ belongs to no layer."""
    name = module.split(".")[1] if module.startswith("glasshouse.") else ""
    return name if name in LEVEL else None


def layer_faults(imports: list[Import]) -> list[str]:
    faults = []
    for item in imports:
        mine, theirs = (
            layer("glasshouse." + item.file.removesuffix(".py").replace("/", ".")),
            layer(item.name),
        )
        if mine is not None and theirs is not None and LEVEL[theirs] > LEVEL[mine]:
            faults.append(f"{item} upwards")
    return faults


def test_every_source_has_a_layer() -> None:
    tops = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sources()}
    assert tops - {"__init__"} == set(LEVEL)


def test_nothing_imports_upwards() -> None:
    assert layer_faults(every_import()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import glasshouse.publishing.publication_files",
        "from glasshouse.publishing import publication_files",
        "from ..publishing import store",
        "def late():\n    from glasshouse.publishing.publication_files import read_publication",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(text: str) -> None:
    assert len(layer_faults(imports_of(text, "records/keys.py"))) == 1


def test_an_import_for_type_checkers_is_none() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert [item.name for item in imports_of(text, "errors.py")] == ["typing.TYPE_CHECKING"]


@pytest.mark.parametrize(
    ("libraries", "allowed"),
    [
        ({"fabric", "paramiko", "invoke"}, ("remote/",)),
        ({"asyncssh"}, ("remote/", "providers/")),
        ({"hydra", "omegaconf", "hydra_plugins"}, ("config.py", "cli.py")),
        (HEAVY, ("workloads/",)),
        ({"mkdocs"}, ("publishing/hook.py", "publishing/build.py")),
    ],
)
def test_a_library_stays_where_it_belongs(libraries: set[str], allowed: tuple[str, ...]) -> None:
    strays = [
        str(item) for item in every_import() if item.top in libraries and not item.file.startswith(allowed)
    ]
    assert strays == []


def reached_from(*modules: str) -> set[str]:
    """The files that are run when `modules` are imported, nothing of which waits inside a function."""
    top: dict[str, set[str]] = {}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = imports_of(ast.unparse(ast.Module(body=list(kept), type_ignores=[])), name)
        top[name] = {item.name for item in found}
    files, ahead = set[str](), [f"glasshouse.{module}" for module in modules]
    while ahead:
        parts = ahead.pop().split(".")[1:]
        for length in range(len(parts) + 1):
            stem = "/".join(parts[:length])
            for name in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
                if name in top and name not in files:
                    files.add(name)
                    ahead += [item for item in top[name] if item.startswith("glasshouse.")]
    return files


def test_what_verifies_needs_no_library_that_has_ml_kem_or_hpke() -> None:
    """A cryptography of 2021 verifies; newer modules are imported where a key is made or a grant opened."""
    files = reached_from(
        "commands.verify", "commands.show", "commands.ledger", "commands.keys", "commands.publish"
    )
    assert {"records/verify.py", "attestation/appraise.py", "publishing/verify_artifact.py"} <= files
    newer = [item for item in every_import() if re.search(r"\.(mlkem|hpke)\b", item.name)]
    assert {item.file for item in newer} == {"sealing/grant.py"}
    assert "sealing/grant.py" not in files


@pytest.mark.parametrize("file", PURE)
def test_pure_modules_do_no_io(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [str(item) for item in imports_of(text, file) if item.top in IO_MODULES] == []
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert {"open", "print", "input"} & set(calls) == set()


def test_the_pods_archive_needs_only_itself_and_three_packages() -> None:
    archived = {"glasshouse." + name.removesuffix(".py").replace("/", ".") for name in MODULES}
    archived |= {name.removesuffix(".__init__") for name in archived}
    strays = []
    for name in MODULES:
        for item in imports_of((ROOT / name).read_text(encoding="utf-8"), name):
            own = item.name in archived or item.name.rpartition(".")[0] in archived
            if not (own or item.top in sys.stdlib_module_names | {"cryptography", "jwt", "nacl"}):
                strays.append(f"{name} {item.top}")
    assert strays == ["runtime/gpus.py pynvml"]  # used where it is there; test_telemetry.py does without


def test_the_archive_is_the_whole_runtime() -> None:
    on_disk = {path.relative_to(ROOT).as_posix() for path in (ROOT / "runtime").glob("*.py")}
    assert on_disk - set(MODULES) == {"runtime/archive.py"}  # what builds the archive stays behind


def test_no_module_imports_itself_through_others() -> None:
    """Also where an import hides in a function or is for types alone: the pieces are cut wrongly then."""
    shape = importlib.util.spec_from_file_location("shape", ROOT.parent / "tools" / "shape.py")
    assert shape is not None
    assert shape.loader is not None
    module = importlib.util.module_from_spec(shape)
    shape.loader.exec_module(module)
    assert module.cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    every = list(module.modules())
    known = {name for name, _, _ in every}
    assert module.cycles({name: module.imports(name, path, tree, known) for name, path, tree in every}) == []
