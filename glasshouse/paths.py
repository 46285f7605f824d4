"""Where things are: what comes with the program (Workspace), and the folders for keys and state."""

from __future__ import annotations

import functools
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError

DISTRIBUTION = "glasshouse-train"  # what pip calls it; the import name and the command are `glasshouse`
PACKAGE = Path(__file__).resolve().parent
PACKAGE_DATA = PACKAGE / "_data"  # in a wheel: what stands at the top of the source tree (setup.py)


@dataclass(frozen=True)
class Workspace:
    """What the program reads that comes with it, and where it writes what belongs to no run.

    root: holds conf/, templates/, site/ and mkdocs.yml: the package's own data, else the source tree that the
    package was imported from. Nothing else counts: neither the current folder, nor a name beside the package
    that another package could own. conf: what Hydra composes. work: holds build/ with this machine's rows:
    the source tree, else the current folder. source: root is a source tree, where a publication lives.
    """

    root: Path
    conf: Path
    work: Path
    source: bool

    @classmethod
    def find(cls, conf: Path | None = None) -> Workspace:
        """Find the one that belongs to this program. conf: a folder to compose in place of its own."""
        source = _source_tree()
        if source is not None:
            return cls.of_source(source, conf)
        return cls(root=PACKAGE_DATA, conf=conf or PACKAGE_DATA / "conf", work=Path.cwd(), source=False)

    @classmethod
    def of_source(cls, root: Path, conf: Path | None = None) -> Workspace:
        """Take the source tree at `root`."""
        return cls(root=root, conf=conf or root / "conf", work=root, source=True)

    @property
    def keyring(self) -> Path:
        """The file of public keys that are trusted here besides this machine's own."""
        return self.root / "conf" / "trust" / "keyring.json"

    def publication(self, command: str) -> Path:
        """Return the source tree, where `command` writes. Raises UsageError when there is none."""
        if not self.source:
            raise UsageError(
                "an installed program holds no publication that could be changed",
                field="command",
                value=command,
                remedy=f"in a clone of the repository run python -m glasshouse {command} ...",
            )
        return self.root


@functools.cache
def _source_tree() -> Path | None:
    """The source tree around the package; None for an installed one, which has its data inside itself."""
    # First: other packages may put files beside an installed one, but none into it.
    if PACKAGE_DATA.is_dir():
        return None
    root = PACKAGE.parent
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        ours = project["name"] == DISTRIBUTION
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root if ours and (root / "conf" / "config.yaml").is_file() else None


def _base(variable: str, fallback: str) -> Path:
    home = os.environ.get("GLASSHOUSE_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get(variable) or Path.home() / fallback) / "glasshouse"


def _private(path: Path) -> Path:
    try:
        # Each folder on the way is made private: under a lax umask others could exchange what lies in it.
        for folder in [*reversed([item for item in path.parents if not item.exists()]), path]:
            folder.mkdir(exist_ok=True, mode=0o700)
        found = path.stat()
    except OSError as error:
        raise UsageError(
            f"cannot make the folder for keys and state: {error.strerror}",
            field="folder",
            value=path,
            remedy="set GLASSHOUSE_HOME to a folder that can be written",
        ) from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        whose = "belongs to another user" if found.st_uid != os.geteuid() else "can be written to by others"
        raise UsageError(
            f"the folder for keys and state {whose}",
            field="folder",
            value=path,
            remedy="look at what lies there, then chmod 700 and chown it, or set GLASSHOUSE_HOME to another",
        )
    return path


def keys_dir() -> Path:
    """The operator's keys, mode 0700."""
    return _private(_base("XDG_CONFIG_HOME", ".config") / "keys")


def state_dir() -> Path:
    """Journal, ledger, broker store and what was measured of this machine, mode 0700."""
    return _private(state_path())


def state_path() -> Path:
    """The same folder for who only looks: it may not be there."""
    return _base("XDG_STATE_HOME", ".local/state") / "state"
