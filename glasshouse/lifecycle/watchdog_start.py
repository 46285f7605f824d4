"""How a watchdog begins: out of reach of whatever ends its controller, and of what lies around it.

Run by its path: `python -I watchdog_start.py RUN-FOLDER PACKAGE [PLACE ...]`, its controller behind stdin,
which is a socket. PACKAGE is the folder of this package as the controller has it; each PLACE is where the
controller finds other modules. So neither the working folder nor PYTHONPATH can put somebody else's module
before ours, or before one of the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_INSTALLED = ("site-packages", "dist-packages")


def leave_the_tree() -> None:
    """Go on in a process of which the controller is no ancestor.

    Launchers end a worker together with all that descends from it, found by parent, sessions or not (joblib's
    loky). This process is young enough to fork: it has one thread.
    """
    parent = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == parent:
        time.sleep(0.001)


def find_modules(package: str, places: Sequence[str]) -> None:
    """Take `glasshouse` from `package`, and what it imports from the standard library, then from `places`."""
    at = next((n for n, place in enumerate(sys.path) if place.endswith(_INSTALLED)), len(sys.path))
    standard, installed = sys.path[:at], sys.path[at:]
    sys.path[:] = dict.fromkeys([*standard, *places, *installed])
    spec = importlib.util.spec_from_file_location(
        "glasshouse", Path(package) / "__init__.py", submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["glasshouse"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["glasshouse"])


def main(argv: Sequence[str]) -> int:
    """Guard the run in the folder argv[0]. Whatever ends it badly leaves one line in watchdog.log."""
    leave_the_tree()
    find_modules(argv[1], argv[2:])
    from glasshouse.errors import GlasshouseError, unexpected  # noqa: PLC0415  only now it is known where from
    from glasshouse.lifecycle.reap import guard  # noqa: PLC0415
    from glasshouse.lifecycle.screen import Screen  # noqa: PLC0415

    try:
        guard(Path(argv[0]), Screen())
    except GlasshouseError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        return error.exit_code
    except Exception as error:  # noqa: BLE001  a person reads the log, and the controller sees the end
        sys.stderr.write(f"error: {unexpected(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
