"""The fake providers themselves: the command, the inspection API, billing, pods that end with them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from glasshouse.providers.fakes.faults import KINDS, FaultPlan
from glasshouse.providers.fakes.runpod import serve_runpod

from .cloud_kit import NAME, over_ssh, rented

MODULE = [sys.executable, "-m", "glasshouse.providers.fakes"]


def test_every_answer_says_that_it_is_fake() -> None:
    with serve_runpod() as server:
        for path in ("/v2/pods", "/nowhere", "/_fake/state"):
            assert httpx.get(server.origin + path).headers["x-glasshouse-fake"] == "1"


def test_state_and_faults_over_http() -> None:
    with rented("runpod") as it:
        origin = it.server.origin
        planned = httpx.post(f"{origin}/_fake/faults", json={"kind": "create-capacity", "times": 1})
        assert planned.json() == {"ok": True}
        assert httpx.post(f"{origin}/_fake/faults", json={"kind": "no-such"}).status_code == 400
        assert httpx.post(f"{origin}/_fake/exit", json={"id": "none"}).status_code == 400
        with pytest.raises(Exception, match="refused every"):
            it.allocate()
        state = httpx.get(f"{origin}/_fake/state").json()
        assert state["faults"] == {"create-capacity": 1}
        assert state["simulated"] is True


def test_billing_runs_from_create_to_destroy() -> None:
    with rented("runpod") as it:
        allocation = it.allocate()
        time.sleep(0.3)
        it.provider.release(NAME, allocation.id)
        first = it.state()
        time.sleep(0.2)
        assert it.state()["billingSec"] == first["billingSec"] > 0.3
        assert first["usd"] == pytest.approx(first["billingSec"] * 0.25 / 3600, abs=1e-6)


def test_processes_on_a_pod_end_with_it() -> None:
    with rented("vastai") as it:
        allocation = it.allocate()
        pid = int(over_ssh(allocation, "setsid env -i sleep 300 >/dev/null 2>&1 & echo $!"))
        os.kill(pid, 0)
        it.provider.release(NAME, allocation.id)
        end = time.monotonic() + 5
        while time.monotonic() < end and os.path.exists(f"/proc/{pid}"):  # noqa: PTH110  a process, not a file
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="no such fault"):
        FaultPlan().add("boot-eror")
    with pytest.raises(ValueError, match="no such fault"):
        FaultPlan(kinds=["x"])
    assert all(text for text in KINDS.values())


def test_random_faults_repeat_with_their_seed() -> None:
    def strikes(seed: int) -> list[bool]:
        plan = FaultPlan(seed=seed, rate=0.5, kinds=["read-5xx"])
        return [plan.take("read-5xx") for _ in range(64)]

    assert strikes(1) == strikes(1) != strikes(2)


def test_the_command_gives_its_child_both_providers_and_its_exit_code() -> None:
    child = (
        "import os, urllib.request as u\n"
        "both = ('RUNPOD', 'RUNPOD_API_KEY', '/pods'), ('VASTAI', 'VAST_API_KEY', '/v1/instances/')\n"
        "for url, key, path in both:\n"
        "    request = u.Request(os.environ[f'GLASSHOUSE_{url}_URL'] + path)\n"
        "    request.add_header('Authorization', 'Bearer ' + os.environ[key])\n"
        "    assert u.urlopen(request).status == 200\n"
        "assert float(os.environ['GLASSHOUSE_MAX_USD']) > 0\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run(
        [*MODULE, "--", sys.executable, "-c", child], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "0 made, 0 left" in done.stderr


def test_without_a_command_it_prints_what_to_export_and_ends_on_interrupt() -> None:
    process = subprocess.Popen([*MODULE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        assert "SIMULATED" in lines[0]
        values = dict(re.findall(r"export (\w+)=(\S+)", "".join(lines)))
        answer = httpx.get(
            values["GLASSHOUSE_RUNPOD_URL"] + "/pods",
            headers={"Authorization": f"Bearer {values['RUNPOD_API_KEY']}"},
        )
        assert answer.json() == {"pods": []}
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        process.stdout.close()
    assert json.dumps(values)


def test_a_destroyed_contract_puts_its_offer_back() -> None:
    with rented("vastai") as it:
        for number in range(3):
            allocation = it.allocate(f"{NAME}{number}")
            assert allocation.usd_per_hour == pytest.approx(0.12)
            assert it.provider.release(f"{NAME}{number}", None).proof == "zero"
