"""From a clean clone: a kit, a stay without a network, an archive, a row on the site; on the processor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Program

pytestmark = [pytest.mark.train, pytest.mark.soak, pytest.mark.timeout(600)]

# A network of its own, with a loopback alone: what a borrowed machine has.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def done(command: list[str], cwd: Path, environment: dict[str, str]) -> str:
    said = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    return said.stdout


@pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="no network namespace can be made here",
)
def test_a_stay_of_three_minutes_ends_as_a_row_on_the_site(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    done(["git", "clone", "--quiet", str(ROOT), str(clone)], tmp_path, {"PATH": "/usr/bin:/bin"})
    operator = Program(tmp_path / "operator", tmp_path / "runs", clone)
    here = {**operator.environment, "PYTHON": sys.executable}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    kit, archive = tmp_path / "kit", tmp_path / "gpu.tar.gz"
    carry = ["bash", "tools/gpu_carry.sh", "--python", version, "--budget", "3m", "--out", str(kit)]
    assert "wheels" in done(carry, clone, here)
    assert operator("keys", "--trust", "the operator", "--yes").returncode == 0

    # Away: the kit's own source and wheels, the interpreter's own torch, no network.
    away = tmp_path / "away"
    away.mkdir()
    shutil.unpack_archive(kit / "src.tar", away)
    there = {
        "PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": sys.executable,
        "GLASSHOUSE_JOURNEY": str(tmp_path / "stay"),
    }  # fmt: skip
    stay = [
        "bash",
        "tools/gpu_evidence.sh",
        "--budget",
        "3m",
        "--kit",
        str(kit),
        "--gpu",
        "cpu",
        "--model",
        "mlp",
    ]
    said = done([*ALONE, *stay, "--out", str(archive)], away, there)
    assert '"status": "verified"' in said
    assert "qwen2.5-0.5b: left out: no GPU" in said

    trust = ("--trust", "a borrowed machine", "--yes")
    published = operator("publish", "--from", str(archive), *trust, "--json")
    assert published.returncode == 0, published.stderr
    rows = json.loads(published.stdout)["rows"]
    assert rows
    for row in rows:
        assert operator("verify", f"site/research/artifacts/{row}.json").returncode == 0
    build = {**here, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(clone)}
    done([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], clone, build)
    assert (clone / "build/site/rows" / rows[0] / "index.html").is_file()
