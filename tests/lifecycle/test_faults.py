"""What the row and the user are told of a fault is that fault, not the step in which it was met."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.codes import Code
from glasshouse.errors import HostKeyMismatch, LegError, OutcomeUnknown, ProviderError, RemoteError
from glasshouse.lifecycle.leg import Notes
from glasshouse.lifecycle.live_run import StepFailed
from glasshouse.lifecycle.observe import check_gpu
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import upload
from glasshouse.lifecycle.slots import _failure
from glasshouse.providers import pod_server
from glasshouse.providers.pod_server import PodServer
from glasshouse.remote.pod import Pod
from tests.lifecycle.test_gpu import observed
from tests.lifecycle.test_reap import planned
from tests.providers.cloud_kit import NAME, rented
from tests.remote.conftest import embedded_endpoint, serving
from tests.specs import make_spec


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not allow mounts")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostKeyMismatch("wrong host key"), Code.HOST_KEY_MISMATCH),
        (OutcomeUnknown("the connection died"), Code.CONNECTION_LOST),
        (RemoteError("full", code=Code.POD_DISK_FULL), Code.POD_DISK_FULL),
        (RemoteError("no such file"), Code.POD_REFUSED),
        (LegError("cannot be reached", code=Code.POD_UNREACHABLE), Code.POD_UNREACHABLE),
    ],
)
def test_a_leg_ends_with_the_code_of_its_fault(error: LegError | RemoteError, code: Code) -> None:
    assert _failure(error, Notes()).code == code


def test_a_full_disk_is_told_as_one(pod: Pod, small_disk: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        pod.put(os.urandom(2 << 20), str(small_disk / "package"))
    assert caught.value.code == Code.POD_DISK_FULL
    script = f"head -c 2000000 /dev/zero > {small_disk}/file"
    with pytest.raises(RemoteError) as caught:
        pod.check(["sh", "-c", script], "writing")
    assert caught.value.code == Code.POD_DISK_FULL


def test_a_cut_connection_is_no_refusal_to_forward(pod: Pod) -> None:
    assert pod._link is not None
    pod._link.watchdog._sock.shutdown(socket.SHUT_WR)  # we cannot send any more; nobody has noticed yet
    with pytest.raises(OutcomeUnknown), pod.forward_remote(9):
        pass


def test_a_refusal_to_forward_is_one(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_server._Door, "server_requested", lambda *_: False)
    with pytest.raises(RemoteError) as caught, pod.forward_remote(9):
        pass
    assert caught.value.code == Code.FORWARD_REFUSED


def test_a_stranger_in_the_machines_place_is_told_as_one_in_an_upload_too(tmp_path: Path) -> None:
    live = planned(make_spec(), tmp_path / "runs")
    (tmp_path / "package").write_bytes(os.urandom(8_000_000))
    (tmp_path / "other").mkdir()
    with serving(tmp_path) as server:
        stranger = PodServer(server.home, tmp_path / "other")

        class Replacing(Screen):
            def progress(self, text: str, *, plain: bool = True) -> None:
                if not stranger.port:
                    server.stop()
                    stranger.start(10.0, server.port)

        try:
            with (
                Pod(embedded_endpoint(server)) as pod,
                pytest.raises(StepFailed) as caught,
                live.step(Code.UPLOAD_FAILED),
            ):
                upload(pod, tmp_path / "package", str(server.home / "package"), Replacing(quiet=True))
        finally:
            stranger.stop()
    assert caught.value.reason == Code.HOST_KEY_MISMATCH


def test_nobody_with_a_rented_machine_is_told_to_rent_one() -> None:
    with rented("runpod") as it, pytest.raises(LegError) as caught:
        check_gpu(it.spec, observed("NVIDIA H200"))
    assert "rents one" not in caught.value.remedy
    assert "try again" in caught.value.remedy


@pytest.mark.parametrize("fault", ["boot-exit", "boot-stuck"])
def test_the_first_cause_survives_that_no_other_machine_is_to_be_had(fault: str) -> None:
    with rented("runpod", boot_deadline_sec=0.8) as it:
        it.faults(fault)

        def progress(text: str) -> None:
            if text.endswith("created"):
                it.faults("create-capacity", times=99)

        with pytest.raises(ProviderError) as caught:
            it.provider.allocate(NAME, it.spec, progress)
    assert caught.value.code == (Code.BOOT_FAILED if fault == "boot-exit" else Code.BOOT_TIMEOUT)
    assert "no other was to be had" in caught.value.what
    assert "max_usd_per_hour" not in caught.value.remedy


def test_a_state_that_cannot_be_read_is_not_told_as_the_last_one_read() -> None:
    with rented("runpod", boot_deadline_sec=0.8) as it:
        it.faults("boot-stuck", times=9)
        it.faults("read-one-5xx", times=10_000)
        with pytest.raises(ProviderError) as caught:
            it.allocate()
    assert caught.value.code == Code.PROVIDER_UNAVAILABLE
    assert "could not be read" in caught.value.what
    assert "still" not in caught.value.what
