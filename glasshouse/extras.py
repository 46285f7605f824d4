"""The optional parts of the installation: what each is for, and one line where one is missing.

The base install verifies, plans and shows. What an extra brings is imported only by commands that need it.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from glasshouse.errors import UsageError
from glasshouse.paths import DISTRIBUTION, Workspace

# What the base install brings.
BASE = frozenset({"hydra", "omegaconf", "pydantic", "cryptography", "jwt", "httpx", "packaging"})
# By extra: module -> what people call it. pyproject.toml says which versions.
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "run": {
        "fabric": "Fabric",
        "paramiko": "Paramiko",
        "asyncssh": "AsyncSSH",
        "nacl": "PyNaCl",
        "sqlalchemy": "SQLAlchemy",
        "numpy": "NumPy",
        "rich": "Rich",
        "cryptography.hazmat.primitives.hpke": "cryptography 50",
        "cryptography.hazmat.primitives.asymmetric.mlkem": "cryptography 50",
    },
    "site": {"mkdocs": "MkDocs", "material": "Material for MkDocs", "jinja2": "Jinja"},
    "train": {
        "torch": "PyTorch",
        "transformers": "Transformers",
        "peft": "PEFT",
        "safetensors": "safetensors",
        "numpy": "NumPy",
    },
    "postgres": {"psycopg": "psycopg"},
}


def missing(extra: str, *, only: tuple[str, ...] = ()) -> list[str]:
    """Return what of an extra is not installed, as people call it. only: these of its modules.

    They are looked for and not imported: some take seconds.
    """
    modules = {module: name for module, name in EXTRAS[extra].items() if not only or module in only}
    return list(dict.fromkeys(name for module, name in modules.items() if not _is_there(module)))


def require(extra: str, what: str = "this command", *, only: tuple[str, ...] = ()) -> None:
    """Raise UsageError when `what` lacks something of an extra."""
    if names := missing(extra, only=only):
        raise UsageError(
            f"{what} needs {_joined(names)}",
            field="extra",
            value=extra,
            remedy=f"install {'it' if len(names) == 1 else 'them'} with {install_line(extra)}",
        )


def lacking(error: ModuleNotFoundError) -> UsageError | None:
    """The same for an import that has failed; None where the module belongs to no extra."""
    module = error.name or ""
    for extra, modules in EXTRAS.items():
        for name in modules:
            if module == name or module.partition(".")[0] == name:
                return UsageError(
                    f"this needs {modules[name]}",
                    field="extra",
                    value=extra,
                    remedy=f"install it with {install_line(extra)}",
                )
    if module in BASE:
        return UsageError(
            "Glasshouse is not installed for this Python",
            field="python",
            value=sys.executable,
            remedy=f"use the one that has it (after make: .venv/bin/python), or {install_line('')}",
        )
    return None


def install_line(extra: str) -> str:
    """A command to copy that adds the extra to this installation, from where this came (PEP 610)."""
    chosen = f"[{extra}]" if extra else ""
    wanted = f"{DISTRIBUTION}{chosen}"
    workspace = Workspace.find()
    if workspace.source:
        return f"pip install -e {shlex.quote(f'{workspace.root}{chosen}')}"
    origin = _origin()
    url, repository = origin.get("url"), origin.get("vcs_info")
    if not isinstance(url, str):
        return f"pip install {shlex.quote(wanted)}"
    if isinstance(repository, dict):
        url = f"{repository.get('vcs')}+{url}@{repository.get('commit_id')}"
    return f"pip install {shlex.quote(f'{wanted} @ {url}')}"


def _origin() -> dict[str, Any]:
    """What pip noted of where this installation came from; {} where it came by name from an index."""
    from importlib import metadata  # noqa: PLC0415  15 ms that only an error needs

    try:
        noted = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of a package on the way to it
        return False


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
