"""Libraries that are there believe what they are told about the network."""

from __future__ import annotations

import subprocess
import sys

import pytest

from glasshouse.runtime.offline import offline_environment


def told(code: str) -> str:
    environment = offline_environment(loopback=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.strip()


def test_pip_asks_no_index() -> None:
    pytest.importorskip("pip")
    found = told("from pip._internal.commands import create_command as c;"
                 "print(c('install').parser.get_default_values().no_index)")  # fmt: skip
    assert found == "1"  # without: False


@pytest.mark.train
def test_the_hub_is_offline() -> None:
    pytest.importorskip("huggingface_hub")
    assert told("from huggingface_hub import constants as c; print(c.HF_HUB_OFFLINE)") == "True"
    found = told("from huggingface_hub import hf_hub_download as get\n"
                 "try: get('no/such', 'file')\n"
                 "except Exception as error: print(type(error).__name__)")  # fmt: skip
    assert found in {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}


def test_trackers_that_need_a_socket_are_off_without_loopback() -> None:
    with_it, without = (offline_environment(loopback=loopback) for loopback in (True, False))
    assert (with_it["WANDB_MODE"], without["WANDB_MODE"]) == ("offline", "disabled")
    assert set(with_it) == set(without)
