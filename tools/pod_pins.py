"""Write conf/pod/pins.txt: what a rented machine is given beside its torch, each file held to a hash.

    .venv/bin/python tools/pod_pins.py           after `make lock`, in an environment with the extra `train`
    .venv/bin/python tools/pod_pins.py --check   exit 1 where the file is not what this would write

Versions and hashes are those of locks/lock.txt. Which packages go along follows from what the installed ones
say that they need, on Linux, for every Python that a pod may have; torch and what only torch needs stays the
image's own.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK, PINS = ROOT / "locks" / "lock.txt", ROOT / "conf" / "pod" / "pins.txt"
WANTED = {
    "runtime": ("cryptography", "pyjwt", "pynacl"),
    "lora": ("transformers", "peft", "safetensors", "accelerate"),
}
PODS = tuple(
    {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for python in ("3.11", "3.12", "3.13", "3.14")
)
HEAD = """\
# What a rented machine is given beside its torch: made by tools/pod_pins.py from locks/lock.txt, used by
# glasshouse/lifecycle/pod_python.py. Every file that pip fetches there is held to one of these hashes.
"""


def locked() -> dict[str, str]:
    """The lock's entries by name: the line of the version, and its hashes."""
    found: dict[str, str] = {}
    name = ""
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)==", line):
            name = str(canonicalize_name(match[1]))
            found[name] = line
        elif name and line.startswith("    --hash="):
            found[name] += f"\n{line}"
    return found


def needed(names: tuple[str, ...], lock: dict[str, str]) -> list[str]:
    """The names and all that they need and the lock has, in order."""
    seen: dict[str, None] = {}
    ahead = list(names)
    while ahead:
        name = str(canonicalize_name(ahead.pop()))
        if name in seen or name not in lock:
            continue
        seen[name] = None
        for text in metadata.requires(name) or ():
            asked = Requirement(text)
            if asked.marker is None or any(asked.marker.evaluate(pod) for pod in PODS):
                ahead.append(asked.name)
    return sorted(seen)


def text() -> str:
    """The file's text."""
    lock = locked()
    runtime = needed(WANTED["runtime"], lock)
    lora = [name for name in needed(WANTED["lora"], lock) if name not in runtime]
    parts = [HEAD]
    for group, names in (("runtime", runtime), ("lora", lora)):
        parts.append(f"# {group}\n" + "".join(f"{lock[name]}\n" for name in names))
    return "".join(parts)


def main() -> int:
    """Write the file, or say whether it is up to date."""
    made = text()
    if "--check" in sys.argv[1:]:
        same = PINS.exists() and PINS.read_text(encoding="utf-8") == made
        if not same:
            sys.stderr.write(f"{PINS.relative_to(ROOT)} is not of locks/lock.txt: run tools/pod_pins.py\n")
        return 0 if same else 1
    PINS.parent.mkdir(exist_ok=True)
    PINS.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
