"""provider=local: a real pod behind a real server, and proof that nothing of it stays."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glasshouse import paths, spec
from glasshouse.errors import ProviderError, RemoteError, UsageError
from glasshouse.providers.base import Provider
from glasshouse.providers.local import LocalProvider, pod_place
from glasshouse.remote import sweep_script
from glasshouse.remote.pod import Pod
from tests.specs import make_spec

CONFIG = spec.LocalProvider(kind="local")


def new_name() -> str:
    return f"gh-20260101-120000-abc234-{os.urandom(4).hex()}"


def silent(line: str) -> None:
    assert line


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def start_stubborn(pod: Pod, word: str) -> int:
    """Start a detached process on the pod that ignores SIGTERM and carries `word`; return its pid."""
    script = "trap '' TERM HUP; echo $$ > \"$HOME/pid\"; while :; do sleep 0.2; done"
    argv = ["sh", "-c", 'setsid sh -c "$1" "$2" </dev/null >/dev/null 2>&1 &', "sh", script, word]
    assert pod.run(argv).exit == 0
    deadline = time.monotonic() + 5
    while not (text := pod.run(["cat", "pid"]).stdout):
        assert time.monotonic() < deadline
    return int(text)


def test_a_pod_lives_and_leaves_nothing(glasshouse_home: Path) -> None:
    name = new_name()
    provider: Provider
    with LocalProvider(CONFIG) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        place = pod_place(name)
        assert place.is_relative_to(paths.state_dir())
        assert [oct(path.stat().st_mode)[-3:] for path in (place, place / "home", place / "keys")] == [
            "700"
        ] * 3
        assert allocation.endpoint.host_key.source == "created"
        assert allocation.endpoint.key_path.stat().st_mode & 0o077 == 0
        with Pod(allocation.endpoint) as pod:
            assert pod.run(["pwd"]).stdout.decode().strip() == str(place / "home")
            pod.put(b"data", f"{allocation.endpoint.workdir}/{name}/file")
        key = allocation.endpoint.key_path.read_bytes()
        proof = provider.release(name, allocation.id)
    assert (proof.proof, proof.active, proof.processes_left, proof.folder_removed) == ("zero", 0, 0, True)
    assert len(proof.checked_at) == 2
    assert proof.checked_at[0] < proof.checked_at[1]
    assert not place.exists()
    (glasshouse_home / "key").write_bytes(key)
    endpoint = dataclasses.replace(allocation.endpoint, key_path=glasshouse_home / "key")
    with pytest.raises(RemoteError, match="cannot reach"), Pod(endpoint):
        pass


def test_the_pod_sees_nothing_of_the_operators_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "a-secret-of-the-operator")
    name = new_name()
    with LocalProvider(CONFIG) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        with Pod(allocation.endpoint) as pod:
            lines = pod.run(["env"]).stdout.decode().splitlines()
        provider.release(name)
    names = {line.partition("=")[0] for line in lines}
    assert names <= {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "PWD", "OLDPWD", "_", "SHLVL"}


def test_the_pods_libraries_use_the_threads_that_were_asked_for() -> None:
    name = new_name()
    with LocalProvider(CONFIG.model_copy(update={"threads": 3})) as provider:
        with Pod(provider.allocate(name, make_spec(), silent).endpoint) as pod:
            assert b"OMP_NUM_THREADS=3" in pod.run(["env"]).stdout.splitlines()
        provider.release(name)


def test_release_kills_what_was_detached_even_if_it_ignores_sigterm() -> None:
    name = new_name()
    with LocalProvider(CONFIG) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        with Pod(allocation.endpoint) as pod:
            pid = start_stubborn(pod, name)
        assert alive(pid)
        proof = provider.release(name)
    assert proof.proof == "zero", proof.detail
    assert not alive(pid)


def test_release_finds_processes_by_folder_and_their_children_elsewhere() -> None:
    """One that does not carry the name, only lives in the pod's home, and its child, which does neither."""
    name = new_name()
    with LocalProvider(CONFIG) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        with Pod(allocation.endpoint) as pod:
            inner = "(cd / && exec sleep 301) & echo $! > child; wait"
            pod.run(["sh", "-c", 'setsid sh -c "$1" </dev/null >/dev/null 2>&1 &', "sh", inner])
            time.sleep(0.3)
            child = int(pod.fetch("child"))
        assert Path(f"/proc/{child}/cwd").readlink() == Path("/")
        assert provider.release(name).proof == "zero"
    assert not alive(child)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time between SIGTERM and SIGKILL, where the wait is not what is tested."""
    monkeypatch.setattr(sweep_script, "TERM_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
def test_release_leaves_other_allocations_alone() -> None:
    mine, other = new_name(), new_name()
    with LocalProvider(CONFIG) as provider:
        provider.allocate(mine, make_spec(), silent)
        theirs = provider.allocate(other, make_spec(), silent)
        with Pod(theirs.endpoint) as pod:
            pid = start_stubborn(pod, other)
            assert provider.release(mine).proof == "zero"
            assert alive(pid)
            assert pod.run(["echo", "fine"]).stdout == b"fine\n"
        assert provider.release(other).proof == "zero"
    assert not alive(pid)


CONTROLLER = """
import sys, time
from glasshouse import spec
from glasshouse.providers.local import LocalProvider
from glasshouse.remote import sweep_script
from glasshouse.remote.pod import Pod
name = input()
provider = LocalProvider(spec.LocalProvider(kind="local"))
allocation = provider.allocate(name, None, lambda line: None)
with Pod(allocation.endpoint) as pod:
    script = "trap '' TERM HUP; echo $$ > pid; while :; do sleep 0.2; done"
    pod.run(["sh", "-c", 'setsid sh -c "$1" "$2" </dev/null >/dev/null 2>&1 &', "sh", script, name])
    while not (text := pod.run(["cat", "pid"]).stdout):
        pass
    print(int(text), flush=True)
    time.sleep(60)
"""


@pytest.mark.usefixtures("impatient")
def test_after_a_killed_controller_another_process_releases_by_name_alone() -> None:
    name = new_name()
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdin is not None
        assert controller.stdout is not None
        controller.stdin.write(f"{name}\n")
        controller.stdin.flush()
        pid = int(controller.stdout.readline())
        controller.send_signal(signal.SIGKILL)
        controller.wait(10)
    assert alive(pid)
    assert pod_place(name).exists()
    with LocalProvider(CONFIG) as provider:
        proof = provider.release(name)
    assert proof.proof == "zero", proof.detail
    assert not alive(pid)
    assert not pod_place(name).exists()


def test_leaving_without_release_keeps_the_pod_for_reap() -> None:
    name = new_name()
    with LocalProvider(CONFIG) as provider:
        provider.allocate(name, make_spec(), silent)
    assert pod_place(name).exists()
    with LocalProvider(CONFIG) as provider:
        assert provider.release(name).proof == "zero"
        assert provider.release(name).proof == "zero"  # and again: nothing there is zero, too
    assert not pod_place(name).exists()


def test_a_name_in_use_or_malformed_is_refused() -> None:
    name = new_name()
    with LocalProvider(CONFIG) as provider:
        provider.allocate(name, make_spec(), silent)
        with pytest.raises(ProviderError, match="cannot make the local pod's folder"):
            provider.allocate(name, make_spec(), silent)
        assert provider.release(name).proof == "zero"
        for bad in ("", "gh-", "../../etc", "gh-20260101/../../../x", "sh"):
            with pytest.raises(ProviderError, match="not an allocation name"):
                provider.allocate(bad, make_spec(), silent)
            with pytest.raises(ProviderError, match="not an allocation name"):
                provider.release(bad)


def test_a_missing_interpreter_is_a_usage_error() -> None:
    config = spec.LocalProvider(kind="local", python="/nowhere/python3")
    with LocalProvider(config) as provider, pytest.raises(UsageError, match=r"provider\.python"):
        provider.allocate(new_name(), make_spec(), silent)
