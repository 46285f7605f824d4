"""Which files a private project may read: its own, the interpreter's, the system's programs, few others."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# Programs, libraries and what packages bring; not all are there, and some are links into others.
SYSTEM = ("usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Of /etc by name, since much else there is secret or says whose machine this is.
ETC = (
    "passwd", "group",  # getpwuid(3): torch's caches are named after the user
    "nsswitch.conf", "hosts", "host.conf", "gai.conf", "protocols", "services",  # names of loopback
    "localtime", "timezone", "locale.alias", "mime.types", "os-release",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload",  # ld.so(8)
    "ssl", "ca-certificates", "pki/tls/certs", "pki/ca-trust/extracted",  # certificates that everybody trusts
    "alternatives",  # what /usr/bin/cc leads through
    "fonts",  # matplotlib
    "OpenCL", "nccl.conf",  # of a GPU's libraries
)  # fmt: skip
# Debian's interpreter imports this at its start, through a link in /usr.
ETC_PATTERNS = ("python3*/sitecustomize.py",)
# What the kernel says. CUDA reads /proc/driver/nvidia, /proc/devices, /proc/self/maps, /proc/modules and
# /sys/bus/pci, /sys/devices/system/{cpu,node}; a driver without privilege asks /proc/sys/vm. Other processes'
# memory, environment and descriptors there are the kernel's to refuse (Landlock, DUMPABLE), command
# lines are not.
KERNEL = ("proc", "sys")
# Opened for reading; the GPU's nodes come from linux.gpu_devices(), /dev/shm is the scratch folder.
DEVICES = ("dev/null", "dev/zero", "dev/full", "dev/random", "dev/urandom")
# Not needed by CUDA as far as we know, and out of reach: /run/nvidia-persistenced/socket (nvidia-smi -pm),
# /tmp/nvidia-mps (MPS, whose clients share a GPU with others), /dev/infiniband (leads out).

# Never as a whole, whatever names them: they hold what is somebody else's.
_WIDE = {
    Path(name)
    for name in (
        "/", "/boot", "/data", "/dev", "/dev/shm", "/etc", "/home", "/media", "/mnt", "/proc", "/root",  # noqa: S108
        "/run", "/srv", "/sys", "/tmp", "/var", "/var/lib", "/var/tmp", "/workspace",  # noqa: S108
    )
}  # fmt: skip


def interpreter_paths() -> list[Path]:
    """Where this interpreter, its packages and shared libraries lie: absolute, existing, as they are named.

    A folder of libraries counts if one of it is loaded, or LD_LIBRARY_PATH names it.
    """
    named = {
        sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix,
        str(Path(sys.executable).parent), str(Path(sys.executable).resolve().parent),
        *sys.path, *sysconfig.get_paths().values(), *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    }  # fmt: skip
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and ".so" in words[5]:
            named.add(os.path.dirname(words[5]))  # noqa: PTH120 -- may be no path at all
    return sorted(path for path in map(Path, named) if path.is_absolute() and _there(path))


def readable_paths(
    folders: Iterable[Path],
    interpreter: Iterable[Path],
    hidden: Iterable[Path] = (),
    *,
    root: Path = Path("/"),
) -> list[Path]:
    """Return what may be read, sorted: folders (with all beneath them) and files, each there.

    `folders` are the project's own. Of `interpreter`, what would open more than an interpreter (a home, /tmp,
    /workspace) is left out. No path holds one of `hidden`: where a folder would, what lies in it
    beside that is named instead, as it is now. A path beneath a hidden one is kept: an
    environment may lie in the folder of the allocation it was made for. `root`: where /usr and others are.
    """
    system = [root / name for name in (*SYSTEM, *KERNEL, *DEVICES)]
    system += [root / "etc" / name for name in ETC]
    system += [path for pattern in ETC_PATTERNS for path in sorted((root / "etc").glob(pattern))]
    closed = [path.resolve() for path in hidden]
    found: set[Path] = set()
    for path in system:
        found.update(_beside(path, closed))
    for path in interpreter:
        if not _is_wide(path):
            found.update(_beside(path, closed))
    found.update(existing(folders))
    return sorted(found)


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those that are there, for this user."""
    return [path for path in paths if _there(path)]


def _there(path: Path) -> bool:
    """Whether this user can get at it; Path.exists raises where a folder above is closed to it."""
    return os.path.exists(path)  # noqa: PTH110


def _is_wide(path: Path) -> bool:
    real = path.resolve()
    return any(one in _WIDE or one.parent == Path("/home") for one in (path, real))


def _beside(path: Path, hidden: list[Path]) -> list[Path]:
    """`path`, or the parts of it that hold nothing hidden."""
    real = path.resolve()
    if not _there(real) or real in hidden:
        return []
    if not any(one.is_relative_to(real) for one in hidden):
        return [path]
    return [part for entry in sorted(path.iterdir()) for part in _beside(entry, hidden)]
