"""What a project's code imports that neither Python nor the project brings, read from its syntax, never run.

Only files that the command's own file leads to are read. What Python imports by other means (a name put
together at run time, an entry point) is not seen; what need not be there is not asked for: an import for type
checkers, or one whose failure the code catches.
"""

from __future__ import annotations

import ast
import posixpath
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from glasshouse.host import read_regular
from glasshouse.runtime.command import Command
from glasshouse.workloads.chosen import ChosenFile

MAX_FILES: Final = 2000
MAX_FILE_BYTES: Final = 4 << 20
MAX_TOTAL_BYTES: Final = 64 << 20

# Modules whose distribution has another name, as of November 2026. Others are called as they are imported.
DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "IPython": "ipython",
    "Levenshtein": "python-Levenshtein",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "pillow",
    "absl": "absl-py",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "community": "python-louvain",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dns": "dnspython",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "flash_attn": "flash-attn",
    "git": "GitPython",
    "grpc": "grpcio",
    "hydra": "hydra-core",
    "imblearn": "imbalanced-learn",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "llama_cpp": "llama-cpp-python",
    "magic": "python-magic",
    "mpl_toolkits": "matplotlib",
    "nacl": "PyNaCl",
    "open_clip": "open_clip_torch",
    "osgeo": "GDAL",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pylab": "matplotlib",
    "pynvml": "nvidia-ml-py",
    "pythonjsonlogger": "python-json-logger",
    "pywt": "PyWavelets",
    "ruamel": "ruamel.yaml",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
# Modules of several distributions, of which none can be named.
_SHARED: Final = frozenset({"google", "nvidia", "azure", "hydra_plugins"})
_FAILURES: Final = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def distribution(module: str) -> str | None:
    """Return what an index calls the distribution that brings a top-level module; None where several do."""
    return None if module in _SHARED else DISTRIBUTIONS.get(module, module)


def wanted(files: Sequence[ChosenFile], command: Command) -> tuple[str, ...]:
    """Return the top-level modules, sorted, that the command's code imports from elsewhere.

    files: what goes along. Of a file that cannot be read as Python, of one larger than 4 MiB and beyond the
    first 2000 files or 64 MiB nothing is known. Of an installed command only its name is known: ().
    """
    reading = _Reading(files, command)
    for name in reading.begin():
        reading.ahead.append(name)
    while reading.ahead:
        reading.read(reading.ahead.pop())
    return tuple(sorted(reading.outside))


class _Reading:
    """A walk from file to file along imports."""

    def __init__(self, files: Sequence[ChosenFile], command: Command) -> None:
        self._files = {file.name: file for file in files if file.name.endswith((".py", ".pyi"))}
        self._folders = {parent for name in self._files for parent in _parents(name)}
        # Where Python looks first: beside a file that it runs, else in the current folder. `src` is usual.
        own = posixpath.dirname(command.target) if command.kind == "file" else ""
        self._roots = list(dict.fromkeys((own, "", "src")))
        self._command = command
        self._done: set[str] = set()
        self._left = MAX_TOTAL_BYTES
        self.ahead: list[str] = []
        self.outside: set[str] = set()

    def begin(self) -> list[str]:
        """The command's file; of a module that is elsewhere there is none, and it is wanted itself."""
        target = self._command.target
        if self._command.kind == "file":
            return [target] if target in self._files else []
        if self._command.kind == "module":
            self._imported(target, "", star=True)
            return [name for name in (f"{target.replace('.', '/')}/__main__.py",) if name in self._files]
        if self._command.kind == "code":
            self._take(target, "")
        return []

    def read(self, name: str) -> None:
        """Take one file's imports."""
        file = self._files[name]
        if name in self._done or len(self._done) >= MAX_FILES or file.size > min(MAX_FILE_BYTES, self._left):
            return
        self._done.add(name)
        self._left -= file.size
        try:
            source = read_regular(file.path, MAX_FILE_BYTES, follow=file.link is not None)
        except (OSError, ValueError):
            return
        self._take(source, name)

    def _take(self, source: bytes | str, name: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its escapes, which are its author's
                tree = ast.parse(source, name)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        for module, level, names in _imports(tree):
            if level:
                base = self._package(name, level)
                if base is None:
                    continue
                dotted = ".".join(filter(None, (base.replace("/", "."), module)))
                for each in names or [""]:
                    self._here(".".join(filter(None, (dotted, each))), "")
            else:
                self._imported(module, names)

    def _package(self, name: str, level: int) -> str | None:
        folder = posixpath.dirname(name)
        for _ in range(level - 1):
            if not folder:
                return None
            folder = posixpath.dirname(folder)
        return folder

    def _imported(self, module: str, names: Iterable[str], *, star: bool = False) -> None:
        top = module.partition(".")[0]
        for root in self._roots:
            if self._has(posixpath.join(root, top)):
                for each in names or [""]:
                    self._here(".".join(filter(None, (module, each))), root)
                return
        if star or top not in sys.stdlib_module_names:
            self.outside.add(top)

    def _has(self, path: str) -> bool:
        return f"{path}.py" in self._files or f"{path}.pyi" in self._files or path in self._folders

    def _here(self, dotted: str, root: str) -> None:
        """Read a module of the project, and the packages around it, which Python runs first."""
        path = root
        for part in filter(None, dotted.split(".")):
            path = posixpath.join(path, part)
            self.ahead += [name for name in (f"{path}.py", f"{path}/__init__.py") if name in self._files]


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _imports(tree: ast.Module) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield what is imported wherever it stands: the module, how many dots before it, the names from it."""
    ahead: list[ast.AST] = [tree]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0, ()
        elif isinstance(node, ast.ImportFrom):
            yield (
                node.module or "",
                node.level,
                tuple(alias.name for alias in node.names if alias.name != "*"),
            )
        elif isinstance(node, ast.Call):
            if (name := _named(node)) is not None:
                yield name, 0, ()
            ahead += ast.iter_child_nodes(node)
        elif isinstance(node, ast.If) and _word(node.test) == "TYPE_CHECKING":
            ahead += node.orelse
        elif isinstance(node, ast.With) and any(map(_suppresses, node.items)):
            ahead += [part for part in node.body if not isinstance(part, ast.Import | ast.ImportFrom)]
        elif isinstance(node, ast.Try) and any(map(_catches, node.handlers)):
            ahead += [*node.handlers, *node.orelse, *node.finalbody]
            ahead += [part for part in node.body if not isinstance(part, ast.Import | ast.ImportFrom)]
        else:
            ahead += ast.iter_child_nodes(node)


def _named(call: ast.Call) -> str | None:
    """The module of importlib.import_module("it") or __import__("it")."""
    if _word(call.func) not in ("import_module", "__import__") or len(call.args) != 1:
        return None
    value = call.args[0]
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and not value.value.startswith("."):
        return value.value or None
    return None


def _catches(handler: ast.ExceptHandler) -> bool:
    """Whether a handler lets the code go on after an import that failed."""
    if any(isinstance(node, ast.Raise) for part in handler.body for node in ast.walk(part)):
        return False
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return handler.type is None or any(_word(kind) in _FAILURES for kind in kinds)


def _suppresses(item: ast.withitem) -> bool:
    """Whether it is contextlib.suppress(ImportError) or the like."""
    call = item.context_expr
    return (
        isinstance(call, ast.Call)
        and _word(call.func) == "suppress"
        and any(_word(argument) in _FAILURES for argument in call.args)
    )


def _word(node: ast.AST | None) -> str:
    """The last name of `a.b.name`; "" of what is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
