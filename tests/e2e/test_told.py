"""What a private job tells: two jobs that differ are told apart by nothing but times, ids, digests and speed.

This is the test of the table in site/threat-model.md: whatever stands in the public files of one run and not
in the other's has to be on the list below, and what lies sealed on the pod has one size.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.records.keys import parse_keyring
from glasshouse.records.verify import verify
from tests.e2e.conftest import Program

pytestmark = [pytest.mark.slow]

# What may differ, by the last name of a path. Identities and digests are as long as each other's.
TIMES = re.compile(
    r"(.*Sec|.*_sec|.*At(\[\])?|tMs|exp|iat|nbf|time|server_time|loadAvg1)\Z"
    r"|.*\.(fixed_cost_sec|wall_sec)\.[a-z-]+\Z"
)
SPEED = re.compile(
    r".*(perSec|PerSec|per_sec|cpuShare|cpu_share|throughput(Curve)?(\[\])*)\Z|.*\.telemetry\[\].*"
)
SAME_LENGTH = re.compile(
    r"(run|id|allocation(Id)?|allocation_id|container_id|aud|jkt|kid|nonce|eat_nonce|event_key|kem_key|serial"
    r"|.*[sS]ha256|.*Digest|.*_hash|prev|head|sig|ct|info|evidence-sha256|sealedSalt(\[\])?)\Z"
)
# How the machine was, and how often it was looked at.
MACHINE = re.compile(
    r".*events\.jsonl\.body(\.result\.warmupUnits|\.units|\.phase)|"  # done or reported by the clock
    r"bundle/release\.json\.detail|.*events\.jsonl\.body\.(unscannedRegions|elapsedSec)|.*heads\.jsonl\.seq"
    r"|.*\.disturbed(\[\])?|.*telemetry|.*events\.jsonl\.body\.number"
)
RECORD = re.compile(r"[0-9]{6}\.sealed")
OF_THE_MACHINE = {'"disturbed"', '"event-gap"'}

CUSTOM = """
import sys
sys.path.insert(0, {workloads!r})  # not what is looked at: how it behaves, and no torch
from clocked import Array, Clocked

class Mine(Clocked):
    unit = {unit!r}

    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        self.info = {info!r}
        self.more = [Array({floats}, seed) for seed in range({tensors})]
        print({printed!r})

    def trainable(self):
        return {{"weights": self.weights, **{{f"more{{at}}": one for at, one in enumerate(self.more)}}}}

    def buffers(self):
        return [self.weights, *self.more]

    def loss(self):
        return {loss}
"""
PROJECT = """
import pathlib, sys
out = pathlib.Path("out")
(out / {folder!r}).mkdir(parents=True)
for name, size in {written!r}.items():
    (out / {folder!r} / name).write_bytes(b"x" * size)
print({printed!r})
"""


@dataclass(frozen=True)
class Ended:
    """What the world could see of one run."""

    facts: dict[str, set[str]]  # path in the public files, positions in lists left out -> values there
    sizes: dict[str, int]  # of what lay sealed on the pod
    public: bytes
    elsewhere: bytes  # of the journal, the ledger and every command line but the operator's own


def flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every leaf of JSON data, also in signed tokens and envelopes."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from flat(item, f"{path}[]")
        if not value:
            yield path, "[]"
    else:
        inner = opened(value) if isinstance(value, str) else []
        for item in inner:
            yield from flat(item, f"{path}>")
        if not inner:
            yield path, json.dumps(value)


def opened(text: str) -> list[Any]:
    """The JSON objects that a token's or an envelope's text holds."""
    found = []
    for part in text.split("."):
        data = part.replace("+", "-").replace("/", "_")
        with contextlib.suppress(ValueError):
            inner = json.loads(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))
            if isinstance(inner, dict):
                found.append(inner)
    return found


def run(program: Program, *words: str) -> Ended:
    process = program.start("run", "--json", "--out", str(program.runs), *words)
    sizes: dict[str, int] = {}
    lines, own = set[bytes](), b""
    pods = program.home / "state" / "pods"
    while process.poll() is None:
        with contextlib.suppress(OSError):  # gone while it was looked at
            for path in pods.rglob("*.sealed"):
                sizes[path.name] = max(sizes.get(path.name, 0), path.stat().st_size)
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(program.home).encode() in (entry / "environ").read_bytes():
                    line = (entry / "cmdline").read_bytes()
                    lines.add(line)
                    own = line if line and int(entry.name) == process.pid else own
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 0, err
    record = json.loads(out)["runs"][0]
    folder = Path(record["folder"])
    keyring = parse_keyring((program.home / "keys" / "keyring.json").read_bytes(), local=True)
    found = verify(folder / "bundle", keyring)
    assert found.ok, [check for check in found.checks if not check.ok]
    facts: dict[str, set[str]] = {}
    files = {path.relative_to(folder): path.read_bytes() for path in (folder / "bundle").rglob("*.json*")}
    files[Path("artifact.json")] = artifact_from_verified(found.require()).model_dump_json().encode()
    for name, data in files.items():
        for line in data.splitlines():
            for path, value in flat(json.loads(line), str(name)):
                facts.setdefault(path, set()).add(value)
    lines.discard(own)  # what the operator typed, also where a child was looked at before its exec
    assert lines
    state = [path.read_bytes() for path in (program.home / "state").rglob("*") if path.is_file()]
    return Ended(facts, sizes, b"\n".join(files.values()), b"\n".join([*state, *lines]))


def told_apart(one: Ended, other: Ended) -> dict[str, set[str]]:
    """Where the public files of two runs differ in what is on no list, and what one of them alone says."""
    found = {}
    for path in sorted(one.facts.keys() | other.facts.keys()):
        mine, theirs = one.facts.get(path, set()), other.facts.get(path, set())
        name = re.split(r"[.>]", path)[-1]
        if TIMES.fullmatch(name) or TIMES.fullmatch(path) or SPEED.fullmatch(path) or MACHINE.fullmatch(path):
            continue
        if SAME_LENGTH.fullmatch(name) and {len(value) for value in mine} == {len(value) for value in theirs}:
            continue
        alone = mine ^ theirs
        if name == "caveats[]":
            alone -= OF_THE_MACHINE
        if alone:
            found[path] = alone
    return found


def check(one: Ended, other: Ended, needles: list[str]) -> None:
    assert len(one.facts) > 200  # everything was looked into, tokens and envelopes too
    assert told_apart(one, other) == {}
    sizes = [dict(ended.sizes) for ended in (one, other)]
    # Records for whoever watches: how many there are, their cadence says, and all have one size.
    records = {each.pop(name) for each in sizes for name in list(each) if RECORD.fullmatch(name)}
    assert len(records) == 1
    assert set(sizes[0]) == {"package.sealed", "markers.sealed", "outputs.sealed", "log.sealed"}
    assert sizes[0] == sizes[1]
    for ended in (one, other):
        assert [word for word in needles if word.encode() in ended.public + ended.elsewhere] == []


def custom(program: Program, folder: Path, *, data: int, **given: Any) -> Ended:
    """Run a workload of one's own as a private job, for 30 steps."""
    folder.mkdir()
    (folder / given["file"]).write_text(
        CUSTOM.format(workloads=str(program.root / "tests/e2e/workloads"), **given)
    )
    (folder / "rows.bin").write_bytes(b"r" * data)
    return run(
        program, "model=custom", f"model.entry={folder}/{given['file']}:Mine", "+model.params.unit_ms=10",
        f"model.data=[{folder}/rows.bin]", f"+model.params.word={given['printed'][:8]}", "duration=null",
        "steps=30", "measure=quick", "measure.warmup_sec=0.2", "measure.head_interval_sec=0.3",
    )  # fmt: skip


def test_two_workloads_of_one_s_own_are_not_told_apart(program: Program, tmp_path: Path) -> None:
    words = [secrets.token_hex(4) for _ in range(4)]
    one = custom(
        program, tmp_path / words[0], data=10_000, file=f"{words[0]}.py", unit="patients", info={"rows": 7},
        floats=900, tensors=0, printed=words[1], loss="0.25",
    )  # fmt: skip
    other = custom(
        program, tmp_path / words[2], data=10_345, file=f"of_{words[2]}.py", unit="visits",
        info={"rows": 9, "more": 1}, floats=1000, tensors=3, printed=words[3] * 40, loss="0.75 / self.done",
    )  # fmt: skip
    check(one, other, [*words, "patients", "visits", "rows.bin"])
    events = "bundle/legs/s000-protected/events.jsonl.body.result"
    assert one.facts[f"{events}.finalLoss"] == {"null"}
    assert one.facts[f"{events}.lossFinite"] == {"true"}


def project(program: Program, folder: Path, *, word: str, **given: Any) -> Ended:
    """Run a project whose folder, file, argument and output are named after a word."""
    folder.mkdir()
    (folder / f"{word}.py").write_text(PROJECT.format(folder=word, **given))
    for at in range(len(word) - 8):
        (folder / f"{word}{at}.txt").write_text(word)
    return run(
        program, "measure.head_interval_sec=0.3", "model=project", f"model.folder={folder}",
        "model.outputs=out", "--", "python", f"{word}.py", f"--word={word}",
    )  # fmt: skip


def test_two_projects_are_not_told_apart_and_their_command_stands_nowhere(
    program: Program, tmp_path: Path
) -> None:
    words = [secrets.token_hex(4), secrets.token_hex(6)]
    one = project(program, tmp_path / words[0], word=words[0], written={"a": 1000}, printed="x")
    several = {"a": 1000, "b": 888, "a longer name": 0}
    other = project(program, tmp_path / words[1], word=words[1], written=several, printed="y" * 900)
    check(one, other, words)


TRAINS = """
import torch
model = torch.nn.Linear({size}, {size})
optimizer = torch.optim.{kind}(model.parameters(), lr=0.1)
for _ in range(12):
    model(torch.ones(2, {size})).sum().backward()
    optimizer.step()
"""


@pytest.mark.train
@pytest.mark.soak  # twice torch's import; the two above stay
def test_two_projects_that_train_otherwise_are_told_apart_by_nothing_but_their_steps(
    program: Program, tmp_path: Path
) -> None:
    found = []
    for size, kind in ((4, "SGD"), (50, "AdamW")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "main.py").write_text(TRAINS.format(size=size, kind=kind))
        settings = ["measure.head_interval_sec=0.3", "model=project", f"model.folder={folder}"]
        found.append(run(program, *settings, "--", "python", "main.py"))
    events = "bundle/legs/s000-protected/events.jsonl"
    # By the clock it may be reported once more that a job goes on.
    assert set(told_apart(found[0], found[1])) <= {f"{events}.seq"}
    assert found[0].facts[f"{events}.body.result.steps"] == {"12"}
    digests = [ended.facts[f"{events}.body.result.weights.lastDigest"] for ended in found]
    assert digests[0] != digests[1]
    assert not [ended for ended in found if b"AdamW" in ended.public + ended.elsewhere]


@pytest.mark.train
@pytest.mark.soak  # half a minute, most of it torch's import; the two above stay
def test_two_built_in_models_are_not_told_apart(program: Program) -> None:
    job = [
        "order=protected-only", "payload=private", "steps=5", "duration=null", "provider.threads=1",
        "measure=quick", "measure.warmup_sec=0.2", "measure.head_interval_sec=0.3", "model.batch=64",
    ]  # fmt: skip
    one = run(program, *job, "model.inputs=33", "model.hidden=64")
    other = run(program, *job, "model.inputs=32", "model.hidden=65", "model.learning_rate=0.0123456789")
    check(one, other, ["0.0123456789"])
