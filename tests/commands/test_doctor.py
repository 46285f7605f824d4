"""`glasshouse doctor`."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from glasshouse.commands import doctor
from tests.commands.kit import CANARY, Call


def test_doctor_names_a_remedy_and_never_a_secret(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "12.50")
    code, out, err = call("doctor", "gpu=a4000", "--json")
    assert (code, err) == (0, "")
    assert CANARY not in out
    document = json.loads(out)
    found = {item["what"]: item for item in document["findings"]}
    assert found["runpod key"]["state"] == "ok"
    assert found["vastai key"]["state"] == "limited"
    assert found["cost cap"]["detail"] == "12.50 USD"
    assert all(item["remedy"] for item in document["findings"] if item["state"] != "ok")
    assert {"python", "landlock", "memfd_secret", "huge pages", "swap", "state store"} <= set(found)
    assert CANARY not in call("doctor", "gpu=a4000")[1]


def test_doctor_says_what_a_mac_lacks_and_asks_its_kernel_nothing_of_linux(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(doctor, "linux")  # the numbers of its calls are other calls on a Mac
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "12.50")
    for words, state, exit_code in ((["gpu=cpu"], "missing", 1), (["gpu=a4000"], "limited", 0)):
        code, out, _ = call("doctor", *words, "--json")
        found = {item["what"]: item for item in json.loads(out)["findings"]}
        assert (code, found["platform"]["state"]) == (exit_code, state)
        assert found["platform"]["detail"] == "darwin: provider=local needs Linux"
        assert "gpu=a4000 rents a machine" in found["platform"]["remedy"]
        assert not {"landlock", "memfd_secret", "huge pages", "swap"} & set(found)


def test_doctor_fails_where_the_run_could_not_start(call: Call, elsewhere: Path) -> None:
    code, out, _ = call("doctor", "gpu=a4000")
    assert code == 1
    assert "export RUNPOD_API_KEY" in out
    (elsewhere / "key").touch(mode=0o600)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    host = ["provider=ssh", "provider.host=127.0.0.1", "provider.user=me", "provider.key=key"]
    code, out, _ = call("doctor", *host, f"provider.port={port}")
    assert code == 1
    assert f"sshd at 127.0.0.1:{port}" in out
    assert "check host, port and firewall" in out
