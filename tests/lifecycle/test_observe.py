"""What the controller reads of the pod is what an honest runtime there claims; what changes, shows."""

from __future__ import annotations

import json
import site
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse import config
from glasshouse.lifecycle.observe import Observed, observe
from glasshouse.remote.pod import Pod
from glasshouse.runtime.archive import build_archive

# Names of claims, each as the runtime's archive finds it when it runs as a leg does.
CLAIMS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from glasshouse.runtime import machine
print(json.dumps({
    "boot_id": machine.boot_id(), "pid_namespace": machine.namespace("pid"),
    "container_id": machine.own_container_id(bytes(32)), "interpreter_sha256": machine.interpreter_sha256(),
    "python_version": sys.version.split()[0], "distributions_sha256": machine.distributions_sha256(),
}))
"""


@pytest.fixture
def python(tmp_path: Path) -> tuple[Path, Path]:
    """An interpreter with packages of its own beside those of this one: (executable, its site-packages)."""
    place = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=60)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text("\n".join(site.getsitepackages()))
    return place / "bin" / "python", packages


def _look(pod: Pod, archive: Path, python: Path) -> tuple[Observed, dict[str, str]]:
    """(what the controller sees, what the runtime would claim)."""
    seen = observe(pod, str(archive), str(python), bytes(32))
    said = subprocess.run([python, "-I", "-c", CLAIMS, archive], capture_output=True, check=True, timeout=60)
    return seen, json.loads(said.stdout)


def test_an_honest_runtime_claims_what_the_controller_saw(
    pod: Pod, python: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "runtime.zip"
    archive.write_bytes(build_archive()[0])
    executable, packages = python
    seen, claims = _look(pod, archive, executable)
    assert {name: getattr(seen, name) for name in claims} == claims

    # A package that appears, and one whose files change, change what both find, and to the same.
    added = packages / "added-1.0.dist-info"
    added.mkdir()
    (added / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    digests = [seen.distributions_sha256]
    for record in ("added.py,sha256=a,1\n", "added.py,sha256=b,1\n"):
        (added / "RECORD").write_text(record)
        later, claims = _look(pod, archive, executable)
        assert later.distributions_sha256 == claims["distributions_sha256"]
        digests.append(later.distributions_sha256)
    assert len(set(digests)) == 3


def test_the_strict_policy_demands_that_what_is_installed_was_listed() -> None:
    assert config.load(["policy=strict"]).policy.require_distributions
    assert not config.load(["policy=standard"]).policy.require_distributions
