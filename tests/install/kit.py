"""A package index on the loopback, wheels for it, and a small project that tools/install.py installs."""

from __future__ import annotations

import base64
import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    *,
    more: Mapping[str, str] | None = None,
    tags: str = "py3-none-any",
) -> Path:
    """A wheel of one empty module, as pip wants it. more: further files; DATA and INFO in their names are its
    .data and .dist-info folders.
    """
    base = f"{name}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in requires)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{base}.dist-info/METADATA": metadata,
        f"{base}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n",
    }
    for inside, content in (more or {}).items():
        files[inside.replace("DATA", f"{base}.data").replace("INFO", f"{base}.dist-info")] = content
    record = f"{base}.dist-info/RECORD"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{base}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, content in files.items():
            wheel.writestr(inside, content)
        lines = [f"{inside},sha256={_digest(content)},{len(content)}\n" for inside, content in files.items()]
        wheel.writestr(record, "".join([*lines, f"{record},,\n"]))
    return path


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


@dataclass
class Index:
    """Indexes under one server: `simple` is pip's, `whl/cpu` and the like are PyTorch's."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        version: str,
        requires: Sequence[str] = (),
        under: str = "simple",
        more: Mapping[str, str] | None = None,
        *,
        tags: str = "py3-none-any",
    ) -> str:
        """Offer a package; returns its file's hash as a list states it."""
        page = self.folder / under / name
        path = make_wheel(page, name, version, requires, more=more, tags=tags)
        links = "".join(f'<a href="{file.name}">{file.name}</a>\n' for file in sorted(page.glob("*.whl")))
        (page / "index.html").write_text(
            f"<!DOCTYPE html><html><body>{links}</body></html>", encoding="utf-8"
        )
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@contextmanager
def serving(folder: Path) -> Iterator[Index]:
    """Serve a folder of indexes on the loopback until the end."""
    index = Index(folder)
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name in the base class
            index.asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield index
        server.shutdown()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "small-1.0-py3-none-any.whl"
    files = {
        "small-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n",
        "small-1.0.dist-info/WHEEL":
            "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        record = "small-1.0.dist-info/RECORD"
        wheel.writestr(record, "".join(f"{path},,\\n" for path in [*files, record]))
    return name
"""


@dataclass
class Project:
    """A project with this one's tools/ and its own locks/, an environment in it, and its index."""

    folder: Path
    index: Index
    environment: dict[str, str]

    def lock(
        self, lines: str, cpu: str = "torch==2.13.0\n    # for train\n", cuda: str | None = None
    ) -> None:
        """Write the lists."""
        for name, text in (("lock", lines), ("torch-cpu", cpu), ("torch-cuda", cuda or cpu)):
            (self.folder / "locks" / f"{name}.txt").write_text(text, encoding="utf-8")

    def install(self, *groups: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run tools/install.py; keywords change its environment."""
        return subprocess.run(
            [sys.executable, "tools/install.py", ".venv", *groups],
            cwd=self.folder, env=self.environment | changes, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip

    def installed(self) -> dict[str, str]:
        """Name to version of what is in the environment, pip and its like left out."""
        ask = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
        python = self.folder / ".venv" / "bin" / "python"
        out = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout
        found = dict(line.split() for line in out.splitlines())
        return {
            name: version for name, version in found.items() if name not in {"pip", "setuptools", "wheel"}
        }


def entry(name: str, version: str, digest: str, groups: str) -> str:
    """One entry of a list."""
    return f"{name}=={version} \\\n    --hash={digest}\n    # for {groups}\n"


def make_project(folder: Path, index: Index, empty: Path) -> Project:
    """The project; `empty` is a fresh environment, copied for it."""
    shutil.copytree(TOOLS, folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(empty, folder / ".venv", symlinks=True)
    (folder / "locks").mkdir()
    (folder / "backend.py").write_text(BACKEND, encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n', encoding="utf-8"
    )
    programs = (
        folder / "programs"
    )  # what this machine's PATH would add, a GPU's nvidia-smi for instance, is not there
    programs.mkdir()
    for name in ("git", "make", "python3"):
        (programs / name).symlink_to(shutil.which(name) or "/bin/true")
    environment = {
        "PATH": str(programs), "HOME": str(folder), "PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": "1",
        "PIP_INDEX_URL": f"{index.url}/simple", "TORCH_INDEX": f"{index.url}/whl",
    }  # fmt: skip
    return Project(folder, index, environment)
