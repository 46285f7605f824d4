"""Ask a database of known vulnerabilities about every version in locks/ and conf/pod/pins.txt.

    python3 tools/audit.py      PIP_AUDIT=PROGRAM: another pip-audit than one in an environment of its own

Exit codes: 0 each was asked about and none is known, 1 some are, 3 nobody was asked: no database, or no
pip-audit, can be reached from here, which says nothing about the versions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = (*sorted((ROOT / "locks").glob("*.txt")), ROOT / "conf" / "pod" / "pins.txt")
SERVICES = ("osv", "pypi")  # either will do; what one cannot be asked, the other may


def program(place: Path) -> str | None:
    """A pip-audit, installed by itself where none is given; None where there is none to be had."""
    if given := os.environ.get("PIP_AUDIT"):
        return given
    venv.create(place, with_pip=True)
    pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "pip-audit"]
    return str(place / "bin/pip-audit") if subprocess.run(command, check=False).returncode == 0 else None


def asked(audit: str, requirements: Path, out: Path) -> list[dict[str, object]] | None:
    """What is known of each version in a list; None where no database answered."""
    for service in SERVICES:
        out.unlink(missing_ok=True)
        options = ["--disable-pip", "--no-deps", "--require-hashes", "--progress-spinner", "off"]
        options += ["--timeout", "20"]
        command = [audit, *options, "-s", service, "-f", "json", "-o", str(out), "-r", str(requirements)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            found = json.loads(out.read_text(encoding="utf-8"))["dependencies"]
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
            continue
        # Versions that the service did not know of were not asked about.
        if done.returncode in (0, 1) and found and not all("skip_reason" in item for item in found):
            return list(found)
    return None


def main() -> int:
    """Ask about all lists; one line for each, and one for each vulnerability."""
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        audit = program(Path(folder) / "audit")
        if audit is None:
            return _unasked("pip-audit cannot be installed")
        for requirements in LISTS:
            found = asked(audit, requirements, Path(folder) / "found.json")
            name = requirements.relative_to(ROOT)
            if found is None:
                return _unasked(f"no vulnerability database answered about {name}")
            skipped = [str(item["name"]) for item in found if "skip_reason" in item]
            known = [item for item in found if item.get("vulns")]
            asked_about = len(found) - len(skipped)
            sys.stdout.write(f"{name}: {asked_about} asked about, {len(known)} with known faults\n")
            if skipped:
                sys.stdout.write(f"  not asked about: {', '.join(skipped)}\n")
            for item in known:
                ids = ", ".join(str(fault["id"]) for fault in item["vulns"])  # type: ignore[attr-defined]
                sys.stdout.write(f"  {item['name']} {item['version']}: {ids}\n")
                code = 1
    return code


def _unasked(why: str) -> int:
    sys.stderr.write(f"not audited: {why}. That says nothing about the versions; try where a network is.\n")
    return 3


if __name__ == "__main__":
    sys.exit(main())
