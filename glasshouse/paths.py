"""Where keys and state live: GLASSHOUSE_HOME, else the XDG folders."""

from __future__ import annotations

import os
from pathlib import Path

from glasshouse.errors import UsageError


def _base(variable: str, fallback: str) -> Path:
    home = os.environ.get("GLASSHOUSE_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get(variable) or Path.home() / fallback) / "glasshouse"


def _private(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder for keys and state: {error.strerror}",
            field="folder",
            value=path,
            remedy="set GLASSHOUSE_HOME to a folder that can be written",
        ) from error
    return path


def keys_dir() -> Path:
    """The operator's keys, mode 0700."""
    return _private(_base("XDG_CONFIG_HOME", ".config") / "keys")


def state_dir() -> Path:
    """Journal, ledger and broker store, mode 0700."""
    return _private(_base("XDG_STATE_HOME", ".local/state") / "state")
