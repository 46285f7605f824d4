"""`glasshouse doctor`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

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
