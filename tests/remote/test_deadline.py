"""A pod with a deadline: whatever is going on then ends, however it waits, and nothing more is begun."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from glasshouse.errors import RemoteError, RentalOver
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod
from glasshouse.remote.receive_script import digest_of_upload

BIG = 64 << 20  # bytes: several windows, so that the sender has to wait for the far side
# A far side that takes a file a little at a time: at this pace BIG takes minutes.
TRICKLE = f"""#!/bin/sh
echo "0 {digest_of_upload().hexdigest()}"
while dd bs=32768 count=1 2>/dev/null | grep -qa ''; do sleep 0.1; done
"""


@pytest.fixture
def trickling(endpoint: Endpoint, tmp_path: Path) -> Endpoint:
    """The same host, with an interpreter that is slow to take what it is sent."""
    slow = tmp_path / "slow"
    slow.write_text(TRICKLE)
    slow.chmod(0o755)
    return dataclasses.replace(endpoint, python=str(slow))


def test_an_upload_that_goes_on_ends_at_the_deadline(trickling: Endpoint) -> None:
    seen: list[int] = []
    with (
        Pod(trickling, deadline=time.monotonic() + 1.5) as pod,
        pytest.raises(RentalOver, match=r"has passed \(code=rental-deadline\)"),
    ):
        pod.put(os.urandom(BIG), "file", progress=lambda done, _total: seen.append(done))
    assert max(seen, default=0) < BIG


def test_a_command_and_a_forwarded_port_end_there_and_nothing_is_begun_after(endpoint: Endpoint) -> None:
    pod = Pod(endpoint, deadline=time.monotonic() + 1.0)
    with pod:
        with pytest.raises(RentalOver), pod.forward_remote(9):
            pod.run(["sleep", "20"])
        for begin in (lambda: pod.run(["true"]), lambda: pod.put(b"x", "file"), pod.reconnect):
            with pytest.raises(RentalOver) as caught:
                begin()  # type: ignore[operator]
    with pytest.raises(RentalOver), pod:
        pytest.fail("it connected")
    assert isinstance(caught.value, RemoteError)
    assert caught.value.exit_code == 3


def test_a_fault_before_the_deadline_is_still_a_fault(endpoint: Endpoint) -> None:
    with Pod(endpoint, deadline=time.monotonic() + 600) as pod:
        cut = threading.Timer(0.2, pod.drop_transport)
        cut.start()
        with pytest.raises(RemoteError, match="died while a command ran"):
            pod.run(["sleep", "20"])
        cut.join()
        pod.reconnect()
        assert pod.run(["true"]).exit == 0
