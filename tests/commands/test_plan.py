"""`glasshouse plan` and `--cfg job`: what would run, its bounds, and what a revision changes; offline."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from glasshouse.paths import Workspace
from tests.commands.kit import Call


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.usefixtures("offline")
def test_plan_json_bounds_hours_and_dollars(call: Call) -> None:
    code, out, err = call("plan", "-m", "--json", "gpu=h100,pro6000", "duration=1800")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [cell["overrides"] for cell in document["cells"]] == [
        ["gpu=h100", "duration=1800"],
        ["gpu=pro6000", "duration=1800"],
    ]
    for cell in document["cells"]:
        spec = cell["spec"]
        assert spec["provider"]["kind"] == "runpod"
        hourly = spec["gpu"]["max_usd_per_hour"]["runpod"]
        assert cell["maxUsd"] == pytest.approx(cell["hours"] * hourly)
        # Two arms of half an hour in 40 slots, a burn-in, and what each discards fit, and so does a boot.
        assert cell["scheduledHours"] == pytest.approx(41 * (90 + 5) / 3600)
        assert cell["hours"] > cell["scheduledHours"] + spec["provider"]["boot_deadline_sec"] / 3600
        lasts = spec["provider"]["boot_deadline_sec"] + spec["provider"]["doubt_sec"]
        assert lasts / 3600 * hourly < cell["besideUsd"] < cell["maxUsd"]
    for total in ("hours", "maxUsd"):
        assert document[total] == pytest.approx(sum(cell[total] for cell in document["cells"]))


@pytest.mark.usefixtures("offline")
def test_plan_draws_schedules_and_says_whether_the_cap_fits(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("plan", "-m", "gpu=a4000", "order=protected-first,abba", "duration=60")
    code, out, _ = call(*words)
    assert code == 0
    assert "cell 0 schedule: PR\n" in out
    blocks = re.search(r"cell 1 schedule: \[R\]((?: (?:RPPR|PRRP)){10})\n", out)
    assert blocks
    assert blocks[1].count("RPPR") == blocks[1].count("PRRP") == 5
    assert "no cap is set" in out
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "0.10")
    assert "cap 0.10 USD: it does not fit" in call(*words)[1]
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", "100")
    assert "cap 100.00 USD: it fits" in call(*words)[1]
    assert call(*words)[1].count("at most 2 of them at once (provider.max_doubts)") == 1
    assert "at most 1 of them" in call(*words, "provider.max_doubts=1")[1]
    assert "provider.max_doubts" not in call("plan", "provider=local", "duration=60")[1]


@pytest.fixture
def edited_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository whose working tree has other prices than its last commit, and a GPU more."""
    repository = tmp_path / "repository"
    shutil.copytree(Workspace.find().conf, repository / "conf")
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "before"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    gpu = repository / "conf" / "gpu"
    text = (gpu / "h100.yaml").read_text(encoding="utf-8")
    (gpu / "h100.yaml").write_text(text.replace("runpod: 3.50", "runpod: 7.00"), encoding="utf-8")
    (gpu / "b200.yaml").write_text(text.replace("name: h100", "name: b200"), encoding="utf-8")
    workspace = Workspace.of_source(repository)
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: workspace)
    return repository


@pytest.mark.usefixtures("edited_conf")
def test_plan_against_a_revision_shows_what_resolves_differently(call: Call) -> None:
    code, out, _ = call("plan", "-m", "gpu=h100,a4000", "duration=60", "--against", "HEAD")
    assert code == 0
    assert "### `gpu=a4000 duration=60`: no setting differs" in out
    assert "### `gpu=h100 duration=60`: 1 setting differs" in out
    assert "| `gpu.max_usd_per_hour.runpod` | `3.5` | `7.0` |" in out
    document = json.loads(call("plan", "--json", "gpu=h100", "--against", "HEAD")[1])
    (cell,) = document["cells"]
    assert cell["settings"] == [{"setting": "gpu.max_usd_per_hour.runpod", "before": 3.5, "after": 7.0}]
    assert cell["after"]["maxUsd"] == pytest.approx(2 * cell["before"]["maxUsd"])


@pytest.mark.usefixtures("edited_conf")
def test_plan_against_a_revision_without_the_choice_says_so(call: Call) -> None:
    code, out, _ = call("plan", "gpu=b200", "--against", "HEAD")
    assert code == 0
    assert "There the overrides do not resolve: `unknown gpu (gpu=b200)" in out
    assert "### `gpu=b200`: added" in out


def test_plan_against_a_revision_from_inside_conf(
    call: Call, edited_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(edited_conf / "conf")
    conf = Workspace.of_source(edited_conf, Path())
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: conf)
    code, out, err = call("plan", "gpu=h100", "--conf", ".", "--against", "HEAD")
    assert (code, err) == (0, "")
    assert "| `gpu.max_usd_per_hour.runpod` | `3.5` | `7.0` |" in out


def test_plan_against_a_revision_reads_ordinary_files_only(call: Call, edited_conf: Path) -> None:
    git = ["git", "-C", str(edited_conf), "-c", "user.name=t", "-c", "user.email=t@example"]
    (edited_conf / "conf" / "gpu" / "elsewhere.yaml").symlink_to("/etc/passwd")
    subprocess.run([*git, "add", "conf/gpu/elsewhere.yaml"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a link"], check=True)
    assert call("plan", "gpu=h100", "--against", "HEAD")[0] == 0
    subprocess.run([*git, "rm", "-q", "-r", "--cached", "conf"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "without"], check=True)
    code, _, err = call("plan", "gpu=h100", "--against", "HEAD")
    assert code == 2
    assert "against=HEAD" in err
    assert "it has no conf/" in err


def test_settings_print_as_they_resolve(call: Call) -> None:
    code, out, _ = call("--cfg", "job", "gpu=h100", "--json")
    assert code == 0
    assert json.loads(out)["provider"]["kind"] == "runpod"
    assert "max_usd_per_hour:" in call("--cfg", "job", "gpu=h100")[1]
