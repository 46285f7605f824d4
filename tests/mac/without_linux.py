"""Python without what only Linux has, for a process of the interpreter that kit.py makes.

`sys.platform` is darwin's, the names of linux_only.py are gone, the C library finds none of glibc's own
functions, and whoever opens or lists a path beneath /proc, /sys or /dev/shm is told that there is none. What
was asked for all the same, and by whom, is written to the file that MAC_TOUCHED names.

What this cannot show is how macOS *does* what both systems have.
"""

import ctypes  # as on Linux: it asks which macOS this is
import errno
import importlib
import os
import sys
import sysconfig
import types

from linux_only import GLIBC_ONLY, LINUX_ONLY, PATHS

_LOG = os.environ.get("MAC_TOUCHED", "")


def _touched(what: str) -> None:
    frame, place = sys._getframe(1), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if "/glasshouse/" in file and "/site-packages/" not in file:
            place = f"{file}:{frame.f_lineno}"
            break
        frame = frame.f_back
    descriptor = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{what} by {place}\n".encode())
    os.close(descriptor)


def _watch(event: str, arguments: tuple) -> None:
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        if any(path == place or path.startswith(f"{place}/") for place in PATHS):
            _touched(path)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    elif event == "ctypes.dlsym" and arguments[1] in GLIBC_ONLY:
        _touched(f"dlsym {arguments[1]}")
        raise AttributeError(f"dlsym(RTLD_DEFAULT, {arguments[1]}): symbol not found")


try:
    importlib.import_module("ctypes.macholib.dyld")
except ImportError:  # Debian leaves it out of its Python: nothing is what it would find here

    def _dyld_find(name: str) -> str:
        raise ValueError(f"dylib {name} could not be found")

    _dyld = types.ModuleType("ctypes.macholib.dyld")
    _dyld.dyld_find = _dyld_find
    sys.modules |= {"ctypes.macholib": types.ModuleType("ctypes.macholib"), _dyld.__name__: _dyld}

sysconfig.get_config_vars()  # read once, from a file with this system's name
sys.platform = "darwin"
for _module, _names in LINUX_ONLY.items():
    if _module != "selectors":  # it makes what select has
        _loaded = importlib.import_module(_module)
        for _name in _names:
            for _twin in (_loaded, sys.modules.get("posix" if _module == "os" else f"_{_module}")):
                if hasattr(_twin, _name):
                    delattr(_twin, _name)
if _LOG:
    sys.addaudithook(_watch)
del ctypes
