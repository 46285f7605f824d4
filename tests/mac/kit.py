"""Run the program as it would run on a Mac, as far as that can be had on Linux."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# In mounts of its own: the real /proc goes where the played ps reads it, nothing is left of it in its place.
_HIDE = """
mount --rbind /proc "$1/proc" || exit 97
for place in /proc /sys /dev/shm; do mount -t tmpfs -o ro tmpfs "$place" || exit 97; done
shift; exec "$@"
"""


@functools.cache
def can_hide() -> bool:
    """Whether this machine lets us mount, so that /proc is gone for everybody in the process, C code too."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/proc"], capture_output=True, check=False
    )
    return done.returncode == 0


@dataclass(frozen=True)
class Mac:
    """One folder for the tools that a Mac has and Linux has not, and for what was touched all the same.

    Its Python has what ours has, and begins by taking away what only Linux has: in every process of it, also
    in one that is started isolated and looks at no PYTHONPATH.
    """

    place: Path

    def __post_init__(self) -> None:
        shutil.copytree(HERE / "bin", self._bin)
        if can_hide():
            (self._bin / "proc").mkdir()
        else:
            (self._bin / "proc").symlink_to("/proc")

        venv.create(self.place / "mac-python")
        (packages,) = (self.place / "mac-python").glob("lib/python*/site-packages")
        ours = sysconfig.get_path("purelib")
        found = f"import site, sys; site.addsitedir({ours!r}); sys.path.append({str(HERE)!r})"
        (packages / "mac.pth").write_text(f"{found}; import without_linux\n")

    @property
    def python(self) -> str:
        """The interpreter."""
        return str(self.place / "mac-python/bin/python")

    @property
    def _bin(self) -> Path:
        return self.place / "bin"

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What a process on the Mac has in its environment."""
        return {
            **given,
            "PATH": f"{self._bin}:{given.get('PATH', os.defpath)}",
            "MAC_TOUCHED": str(self.place / "touched"),
        }

    def command(self, *words: str) -> list[str]:
        """How to start `words` there."""
        if not can_hide():
            return list(words)
        return ["unshare", "--mount", "sh", "-c", _HIDE, "sh", str(self._bin), *words]

    def touched(self) -> list[str]:
        """Everything of Linux that was asked for in vain, and by which of our lines."""
        log = self.place / "touched"
        return log.read_text().splitlines() if log.exists() else []
