"""An operator with a Mac, played on Linux: what only Linux has is taken away from the controller alone.

The machines on which legs run are outside of that: they are Linux. tests/mac/ says what is taken away; how
macOS does what both systems have cannot be shown here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from glasshouse.providers.pod_server import USER
from tests.e2e.conftest import PACED, ROOT, kill_with_watchdog, processes_of, wait_until
from tests.e2e.test_cloud import SHORT, Rents, renting
from tests.mac.kit import Mac
from tests.remote.conftest import serving

pytestmark = [pytest.mark.train, pytest.mark.slow]

SHORT_HERE = [*PACED, "duration=0.5"]
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "runs", "node_modules", "__pycache__", "*.egg-info")


@dataclass(frozen=True)
class Laptop(Rents):
    """The program in a checkout on a Mac, with the fake RunPod in its environment."""

    mac: Mac = field(default=None)  # type: ignore[assignment]

    @property
    def environment(self) -> dict[str, str]:
        return self.mac.environment(super().environment | {"NO_MKDOCS_2_WARNING": "1"})

    def start(self, *words: str, module: str = "glasshouse") -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.mac.command(self.mac.python, "-m", module, *words),
            cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def does(self, *words: str, module: str = "glasshouse") -> str:
        """Run a command that must succeed; its standard output."""

        process = self.start(*words, module=module)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (words, out, err)
        return out

    def rents_a_machine(self) -> tuple[subprocess.Popen[str], Path]:
        """Start a run whose machine never comes up; the controller, and the run's folder."""
        self.fault("boot-stuck", 9)
        process = self.start("run", "--out", str(self.runs), *SHORT, "provider=runpod")
        wait_until(lambda: self.state()["created"] == 1, 60, "a machine")
        (folder,) = self.runs.glob("2*")
        return process, folder


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT, root, ignore=LEFT_BEHIND)
    with renting("runpod", tmp_path) as rents:
        yield Laptop(rents.home, rents.runs, root=root, kind="runpod", server=rents.server, mac=Mac(tmp_path))


@pytest.mark.timeout(600)  # beside other tests; alone it takes one minute
def test_a_mac_rents_a_sweep_and_does_what_comes_after(laptop: Laptop, tmp_path: Path) -> None:
    found = json.loads(laptop.does("doctor", "gpu=a4000", "--json"))
    platform, *_ = found["findings"]
    assert (platform["what"], platform["state"]) == ("platform", "limited")
    assert platform["detail"] == "darwin: provider=local needs Linux"
    # Fixed work: beside other tests a unit of a busy moment takes a stretch of a second out of any tolerance.
    cells = ["-m", "gpu=h100,pro6000", *PACED, "duration=null", "steps=400"]
    planned = json.loads(laptop.does("plan", "--json", *cells))
    records = json.loads(laptop.does("run", "--json", "--out", str(laptop.runs), *cells))["runs"]
    assert [record["status"] for record in records] == ["verified", "verified"]
    assert 0 < sum(record["figures"]["costUsd"] for record in records) < planned["maxUsd"]
    laptop.settled()

    folders = [record["folder"] for record in records]
    laptop.does("verify", *folders)
    laptop.does("open", folders[0], "--out", str(tmp_path / "weights"))
    laptop.does("publish", "--local", *folders)
    laptop.does("pages", "--out", str(tmp_path / "pages"))
    for record in records:
        assert list((tmp_path / "pages").rglob(f"*{record['id']}*")), "a row without a page"
    for words in (["show", folders[0]], ["runs", "--out", str(laptop.runs)], ["ledger"]):
        laptop.does(*words)
    assert json.loads(laptop.does("reap", "--json")) == {"ok": True, "allocations": [], "strays": []}
    assert laptop.mac.touched() == []


@pytest.mark.soak  # a minute and a half; the sweep above is published from there too
def test_a_mac_publishes_what_ran_on_a_machine_of_ones_own(laptop: Laptop, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(server.known_hosts_line() + "\n")
        where = {
            "host": "127.0.0.1", "port": server.port, "user": USER, "key": server.key_path,
            "known_hosts": known_hosts, "python": sys.executable,
        }  # fmt: skip
        words = ["provider=ssh", *(f"provider.{name}={value}" for name, value in where.items())]
        laptop.does("doctor", *words)
        ran = json.loads(laptop.does("run", "--json", "--out", str(laptop.runs), *SHORT_HERE, *words))
    (record,) = ran["runs"]
    laptop.does("keys", "--trust", "a lab", "--yes")
    laptop.does("publish", record["folder"])
    published = laptop.root / "site/research/artifacts" / f"{record['id']}.json"
    laptop.does("verify", str(published))
    laptop.does("build", "--strict", "--quiet", module="mkdocs")
    assert (laptop.root / "build/site/index.html").is_file()
    laptop.does("tamper")
    laptop.does("unpublish", record["id"], "--reason", "it was a test", "--yes")
    assert laptop.mac.touched() == []


def test_a_mac_knows_whether_a_controller_lives_and_finishes_what_a_dead_one_left(laptop: Laptop) -> None:
    process, folder = laptop.rents_a_machine()
    (entry,) = json.loads(laptop.does("reap", "--json"))["allocations"]
    assert (entry["state"], laptop.state()["active"]) == ("live", 1)
    kill_with_watchdog(process, folder)
    (entry,) = json.loads(laptop.does("reap", "--json"))["allocations"]
    assert (entry["state"], entry["proof"]) == ("reaped", "zero")
    laptop.settled()
    assert laptop.mac.touched() == []


def test_the_watchdog_of_a_killed_controller_finishes_its_run_on_a_mac(laptop: Laptop) -> None:
    process, folder = laptop.rents_a_machine()
    process.kill()
    process.communicate()
    wait_until((folder / "bundle/record.json").exists, 60, "the record")
    wait_until(lambda: not processes_of(str(folder)), 30, "the end of the watchdog")
    laptop.settled()
    assert laptop.mac.touched() == []


def test_what_needs_linux_says_so_before_anything_is_made(laptop: Laptop) -> None:
    for words in (["run"], ["-m", "repeat=0,1"]):
        refused = laptop(*words, *SHORT_HERE, "--out", str(laptop.runs))
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: provider=local needs Linux (platform=darwin): gpu=a4000 ")
        assert refused.stderr.count("\n") == 1
    assert not laptop.runs.exists()
    assert laptop("doctor").returncode == 1
    process = laptop.start("--", "true", module="glasshouse.providers.fakes")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert err.startswith("error: a simulated machine needs Linux (platform=darwin): ")
    assert laptop.mac.touched() == []
