"""`glasshouse plan` and `--cfg job`: what would run, its bounds, and what a revision changes; offline."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from glasshouse.lifecycle import bench_figures
from glasshouse.measurement.expected_cost import FORMAT, Figures, Measured
from glasshouse.paths import Workspace
from tests.commands.kit import ROOT, Call


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


def measured(*seals: tuple[int, float]) -> Figures:
    """Figures of this machine: bytes of payload, and seconds of sealing; each launch takes 2 s."""
    sizes = [
        Measured(payload_bytes=size, launches=3, steps={"sealSec": seal, "uploadSec": 0.5, "zeroizeSec": 2.0})
        for size, seal in seals
    ]
    return Figures(format=FORMAT, measured_at=1.5e9, sizes=tuple(sizes))


@pytest.mark.usefixtures("offline")
def test_plan_says_what_the_lifecycle_is_expected_to_cost(call: Call) -> None:
    words = ("plan", "provider=local", "order=abba", "duration=60", "measure.blocks=8")
    (size,) = {cell["fixedCost"]["payloadBytes"] for cell in json.loads(call(*words, "--json")[1])["cells"]}
    assert size > 1_000_000
    bench_figures.write(measured((size // 2, 1.0), (3 * size // 2, 3.0)))
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert (
        "\nfixed cost expected: 2.0 s a launch, and 2.5 s once for sealing, uploading and fetching: "
        f"34.5 s for 16 launches, {size / 1e6:.1f} MB of payload "
        f"(from {size / 2e6:.1f} to {size * 1.5e-6:.1f} MB measured on this machine)"
    ) in out
    (cell,) = json.loads(call(*words, "--json")[1])["cells"]
    found = cell["fixedCost"]
    assert (found["launches"], found["extrapolated"]) == (16, False)
    assert (found["launchSec"], found["onceSec"]) == (2.0, 2.5)
    assert found["runSec"] == pytest.approx(found["onceSec"] + 16 * found["launchSec"], abs=0.01)
    assert found["measuredBytes"] == [size // 2, 3 * size // 2]
    assert found["note"] in out

    bench_figures.write(measured((1000, 1.0), (2000, 1.0)))
    assert "MB of payload (extrapolated from 0.0 to 0.0 MB" in call(*words)[1]
    assert "a link to the pod and its processors are not in it" not in call(*words)[1]
    assert (
        "a link to the pod and its processors are not in it"
        in call(*words, "provider=runpod", "gpu=a4000")[1]
    )


@pytest.mark.usefixtures("offline")
def test_cells_that_cost_differently_are_told_apart(call: Call) -> None:
    bench_figures.write(measured((1000, 1.0), (10**9, 1.0)))
    out = call("plan", "-m", "provider=local", "duration=60", "order=raw-first,protected-only")[1]
    assert "\nfixed cost expected: 2.0 s a launch" in out
    out = call("plan", "-m", "provider=local", "duration=60", "order=raw-first,abba", "control=none,aa")[1]
    assert "\ncell 0 fixed cost expected: 2.0 s a launch, and 1.5 s once" in out
    assert "3.5 s for 1 launch, " in out
    assert "fixed cost: none, since no launch is protected" in out


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "what", ["absent", "garbage", "another version", "too long", "a fifo", "a folder", "no home"]
)
def test_without_figures_that_can_be_read_the_cost_is_not_known(
    call: Call, what: str, glasshouse_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = glasshouse_home / "state" / bench_figures.NAME
    good = measured((1000, 1.0), (10**9, 1.0)).model_dump_json()
    place.parent.mkdir(parents=True)
    if what == "a fifo":
        os.mkfifo(place)
    elif what == "a folder":
        place.mkdir()
    elif what == "no home":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "file"))
    elif what != "absent":
        spoiled = {
            "garbage": "{",
            "another version": good.replace("/v1", "/v2"),
            "too long": good + " " * (64 << 10),
        }
        place.write_text(spoiled[what])
    code, out, err = call("plan", "provider=local", "duration=60")
    assert (code, err) == (0, "")
    assert "\nfixed cost expected: not known: run bench/lifecycle.py once\n" in out
    (cell,) = json.loads(call("plan", "--json", "provider=local", "duration=60")[1])["cells"]
    assert cell["fixedCost"]["runSec"] is None
    assert cell["fixedCost"]["note"] == "fixed cost expected: not known: run bench/lifecycle.py once"


def test_a_plan_makes_no_folder(call: Call, glasshouse_home: Path) -> None:
    assert call("plan", "provider=local", "duration=60")[0] == 0
    assert list(glasshouse_home.iterdir()) == []


def test_what_the_bench_reports_is_what_a_plan_reads(glasshouse_home: Path) -> None:
    found = importlib.util.spec_from_file_location("bench_lifecycle", ROOT / "bench" / "lifecycle.py")
    assert found is not None
    assert found.loader is not None
    bench = importlib.util.module_from_spec(found)
    found.loader.exec_module(bench)
    steps = {
        step: {"median": 0.5, "lowest": 0.1, "highest": 2.0} for step in ("sealSec", "fetchSec", "totalSec")
    }
    report = {
        "large": {"legs": 3, "payloadBytes": 9000, "steps": steps},
        "small": {"legs": 5, "payloadBytes": 1000, "steps": steps},
    }
    kept = bench_figures.write(bench.figures(report, 1.5e9))
    assert kept == glasshouse_home / "state" / bench_figures.NAME
    assert kept.stat().st_mode & 0o777 == 0o600
    read = bench_figures.read()
    assert read is not None
    assert [(each.payload_bytes, each.launches) for each in read.sizes] == [(1000, 5), (9000, 3)]
    assert read.sizes[0].steps == {"sealSec": 0.5, "fetchSec": 0.5}


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


@pytest.mark.usefixtures("offline")
def test_plan_says_what_a_project_needs_and_what_is_not_known(call: Call, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import packaging, nowhere_to_be_had\n", encoding="utf-8")
    (tmp_path / "requirements.txt").write_text("packaging>=20\nnot-there-yet\n", encoding="utf-8")
    words = ["plan", "model=project", f"model.folder={tmp_path}", "model.command=[python,main.py]"]
    code, out, _ = call(*words)
    assert code == 0
    assert (
        "the machine has packaging (its interpreter says so); to be sent with what they need: not-there"
        in out
    )
    assert "imported, and neither there nor asked for: nowhere_to_be_had\n" in out
    rented = ["gpu=a4000", "model.max_hours=1"]
    _, out, _ = call(*words, *rented)
    assert "requirements.txt asks for not-there-yet, packaging; what the machine has is not known" in out
    (cell,) = json.loads(call(*words, *rented, "--json")[1])["cells"]
    assert cell["needs"] == {
        "source": "requirements.txt", "known": False, "provided": None,
        "toSend": ["not-there-yet", "packaging"], "lacking": ["nowhere_to_be_had"],
    }  # fmt: skip
    assert json.loads(call("plan", "--json")[1])["cells"][0]["needs"] is None


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        (("python", "zz.py"), "", "the file is not in the project (command=zz.py)"),
        (("bash", "x.sh"), "", "such a command is not possible for now (command=bash)"),
        (("python", "main.py"), "a b", "not a requirement: a b (dependencies=requirements.txt line 1)"),
        (
            ("python", "main.py"),
            f"cryptography<{metadata.version('cryptography')}",
            f"requirements.txt line 1: the machine has cryptography {metadata.version('cryptography')}, and",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused_ahead(
    call: Call, tmp_path: Path, command: tuple[str, ...], text: str, said: str
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "main.py").touch()
    (tmp_path / "p" / "requirements.txt").write_text(f"{text}\n", encoding="utf-8")
    given = ["model=project", f"model.folder={tmp_path / 'p'}", f"model.command=[{','.join(command)}]"]
    code, out, err = call("plan", *given)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    code, out, _ = call("doctor", *given)
    assert code == 1
    assert said in out


@pytest.mark.usefixtures("offline")
def test_a_folder_that_is_not_there_has_no_plan(call: Call, tmp_path: Path) -> None:
    code, out, err = call(
        "plan", "model=project", f"model.folder={tmp_path / 'nope'}", "--", "python", "x.py"
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: no such folder (model.folder=")


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


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("provider", ["runpod", "vastai", "local"])
def test_plan_says_what_memory_a_project_needs_and_what_only_the_machine_tells(
    call: Call, tmp_path: Path, provider: str
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "main.py").write_text("print(1)\n")
    (tmp_path / "project" / "large.bin").write_bytes(bytes(3_000_000))
    where = ["provider=local"] if provider == "local" else ["gpu=a4000", f"provider={provider}"]
    given = [f"model.folder={tmp_path / 'project'}", "model.max_hours=1", *where]
    code, out, err = call("plan", "model=project", *given, "--", "python", "main.py")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("shared memory needed: at least 3.0 MB")]
    assert line.endswith("found out there, before anything is uploaded")
    assert (f"{provider}'s create call has no field" in line) == (provider != "local")
    assert "comes back: outputs/ (model.outputs), and nothing that it writes elsewhere\n" in out
    (tmp_path / "project" / "large.bin").unlink()
    out = call("plan", "model=project", *given, "model.outputs=a/b", "--", "python", "main.py")[1]
    assert "shared memory needed: at least 9 bytes, and" in out
    assert "comes back: a/b/ (model.outputs)" in out
    assert "checkpoints: every 10 min (model.checkpoint_min), a/b as it is then; two are kept" in out
    out = call("plan", "model=project", *given, "model.checkpoint_min=0", "--", "python", "main.py")[1]
    assert "checkpoints" not in out
    code, out, _ = call("plan", "provider=local")
    assert "checkpoints" not in out
    assert "shared memory" not in out
    assert "comes back" not in out
