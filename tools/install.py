"""Install this project and what it needs, as locked in locks/, into a virtual environment.

    python3 tools/install.py ENVIRONMENT [GROUP...]   groups: the extras of pyproject.toml; `base` always
    TORCH=VERSION|FILE.whl|URL   another torch than the one that fits this machine
    TORCH_INDEX=URL              the folder of PyTorch's own indexes (cpu, cu126, ...); the Makefile gives it

Every file is held to a hash of locks/, torch's apart: of its builds, those whose hash is listed there are,
and for others pip has the index's own hash. Standard library only, and it starts under any Python 3, so that
it can say what is missing. Exit codes: 2 something is missing here, 3 the index failed us.
"""

import os
import shutil
import sys
from pathlib import Path

# Nothing in this file is newer than Python 3.6.
OLDEST = (3, 11, 2)


def main() -> int:
    """Check what must be here, then install; the lines that say why something failed are shown."""
    if sys.version_info < OLDEST:
        return _stop(
            "Python "
            + sys.version.split()[0]
            + " is too old (PYTHON="
            + sys.executable
            + "): give 3.11.2 or later,"
            " make PYTHON=python3.12"
        )
    missing = missing_programs()
    if missing:
        return _stop(missing)
    from installation import install

    wanted, index = os.environ.get("TORCH", ""), os.environ.get("TORCH_INDEX", "")
    return install(Path(sys.argv[1]), sys.argv[2:], wanted, index)


def missing_programs() -> str:
    """One line on what this machine lacks, with Debian's command; empty when nothing is missing."""
    packages, lacks = [], []
    # Asked of this process: one that is started with -c would look in the current folder first.
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        packages.append("python3-venv")
        lacks.append("venv with ensurepip for " + sys.executable)
    for program in ("git", "make"):
        if shutil.which(program) is None:
            packages.append(program)
            lacks.append(program)
    if not packages:
        return ""
    return "missing " + " and ".join(lacks) + ": on Debian, apt install " + " ".join(packages)


def _stop(line: str) -> int:
    sys.stderr.write("error: " + line + "\n")
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command begins again\n")
        sys.exit(130)
