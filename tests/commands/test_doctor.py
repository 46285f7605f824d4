"""`glasshouse doctor`."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from glasshouse.commands import doctor
from glasshouse.providers.fakes.runpod import serve_runpod
from glasshouse.providers.fakes.vastai import serve_vastai
from glasshouse.providers.journal import Journal, KeyMark
from tests.commands.kit import CANARY, Call
from tests.providers.cloud_kit import KINDS, NAME, VARIABLE


def test_doctor_names_a_remedy_and_never_a_secret(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "12.50")
    with serve_runpod(key=CANARY) as server:
        monkeypatch.setenv("GLASSHOUSE_RUNPOD_URL", server.base_url)
        code, out, err = call("doctor", "gpu=a4000", "--json")
        assert CANARY not in call("doctor", "gpu=a4000")[1]
    assert (code, err) == (0, "")
    assert CANARY not in out
    document = json.loads(out)
    found = {item["what"]: item for item in document["findings"]}
    assert found["runpod key"]["state"] == "ok"
    assert found["vastai key"]["state"] == "limited"
    assert found["cost cap"]["detail"] == "12.50 USD"
    assert all(item["remedy"] for item in document["findings"] if item["state"] != "ok")
    assert {"python", "landlock", "memfd_secret", "huge pages", "swap", "state store"} <= set(found)


@pytest.mark.parametrize("kind", KINDS)
def test_doctor_tries_a_key_and_says_what_it_tried(
    kind: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = serve_runpod if kind == "runpod" else serve_vastai
    variable, label = VARIABLE[kind], {"runpod": "RunPod", "vastai": "Vast.ai"}[kind]
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "12.50")

    def found(*words: str) -> tuple[int, dict[str, str]]:
        code, out, _ = call("doctor", "--json", *words)
        (finding,) = [item for item in json.loads(out)["findings"] if item["what"] == f"{kind} key"]
        return code, finding

    monkeypatch.setattr(doctor, "KEY_SEC", 0.5)
    needed = [f"provider={kind}", "gpu=a4000"]
    with serve(key=CANARY) as server:
        monkeypatch.setenv(f"GLASSHOUSE_{kind.upper()}_URL", server.base_url)
        assert found(*needed)[1]["detail"] == "not set"
        monkeypatch.setenv(variable, "abc")
        code, finding = found(*needed)
        assert (code, finding["state"]) == (1, "missing")
        assert "cannot be used: not an API key" in finding["detail"]
        monkeypatch.setenv(variable, "another-key-than-this")
        code, finding = found(*needed)
        assert (code, finding["state"]) == (1, "missing")
        assert "refused" in finding["detail"]
        assert f"set {variable}" in finding["remedy"]
        assert found()[1]["state"] == "limited"  # a run on this machine needs none
        monkeypatch.setenv(variable, CANARY)
        code, finding = found(*needed)
        assert finding["state"] == "ok"
        assert finding["detail"] == f"set, and {label} took it for reading the list of machines"
    code, finding = found(*needed)
    assert finding["state"] == "limited"  # nobody is there: that says nothing of the key
    assert "not tried" in finding["detail"]


def test_doctor_names_an_allocation_that_the_key_in_use_did_not_rent(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal() as journal:
        journal.intend("run", NAME, "runpod", {}, KeyMark("00", "11"))
        with journal._transaction() as connection:
            connection.exec_driver_sql("UPDATE allocations SET controller = 'nowhere:0:0:0'")
    for key, words in ((None, "no key is set"), (CANARY, "another key")):
        if key:
            monkeypatch.setenv("RUNPOD_API_KEY", key)
        findings = json.loads(call("doctor", "--json")[1])["findings"]
        (finding,) = [item for item in findings if item["what"] == "rented at runpod"]
        assert finding["state"] == "limited"
        assert NAME in finding["detail"]
        assert words in finding["detail"]
        assert "RUNPOD_API_KEY" in finding["remedy"]


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


def test_doctor_says_what_becomes_of_a_projects_requirements(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "mine"
    project.mkdir()
    (project / "main.py").write_text("import packaging, nowhere_to_be_had\n")
    (project / "requirements.txt").write_text("packaging>=20\nnot-there-yet\n")
    words = ["doctor", "--json", "model=project", f"model.folder={project}", "model.command=[python,main.py]"]

    def found(*more: str) -> dict[str, dict[str, str]]:
        document = json.loads(call(*words, *more)[1])
        assert all(item["remedy"] for item in document["findings"] if item["state"] != "ok")
        return {item["what"]: item for item in document["findings"]}

    here = found()
    assert here["requirements"]["state"] == "ok"
    there = (
        "the machine has packaging (its interpreter says so); to be sent with what they need: not-there-yet"
    )
    assert here["requirements"]["detail"] == f"requirements.txt: {there}"
    assert here["imports"]["detail"] == "imported, and neither there nor asked for: nowhere_to_be_had"
    rented = found("gpu=a4000", "model.max_hours=1")
    assert "what the machine has is not known" in rented["requirements"]["detail"]
    assert rented["requirements"]["state"] == rented["imports"]["state"] == "limited"
    assert "requirements" in found("model.requirements=none")
    monkeypatch.setattr(doctor, "missing_pip", lambda: True)
    assert found()["requirements"]["remedy"] == "python -m ensurepip"
    (project / "requirements.txt").write_text("-e .\n")
    assert found()["project"]["state"] == "missing"


def test_doctor_takes_the_command_behind_two_dashes(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text("print(1)\n")
    words = ["doctor", "--json", "model=project", f"model.folder={tmp_path / 'mine'}"]
    _, out, err = call(*words, "--", "python", "main.py", "--json")
    assert err == ""
    found = {item["what"]: item["state"] for item in json.loads(out)["findings"]}
    assert found["requirements"] == "ok"
    assert "project" not in found
    assert "give it behind --" in call(*words)[2]
