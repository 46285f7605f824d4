"""A private job leaves no plaintext of code, parameters, data or weights on the pod, outside memory.

Markers stand in each of them. While the leg runs, and after it, every file is searched that a process of the
pod could have written: the pod's home, /dev/shm, /tmp. The leg's own folder in /dev/shm is the one exception
while it lasts, as PROTOCOL says; the workload writes a marker there to show that the search would find it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse import config
from glasshouse.workloads.package import prepare
from tests.e2e.conftest import Program, processes_of
from tests.runtime.rig import TINY

pytestmark = [pytest.mark.train, pytest.mark.slow]

SOURCE = """
SOURCE_MARK = {source!r}
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        self.weights = HostTensor(bytes(files["secret.bin"]) * 16)
        print("printed", SOURCE_MARK, params["mark"], flush=True)
        with open(os.environ["TMPDIR"] + "/cache", "wb") as cache:
            cache.write(bytes(files["secret.bin"]))
        while not os.path.exists({found!r}):  # until the search has been here
            time.sleep(0.01)

    def run_unit(self):
        time.sleep(0.005)
        self.steps += 1
        if {fails} and self.steps == 100:
            raise RuntimeError("raised " + SOURCE_MARK + params_of(self))
        struct.pack_into("<f", self.weights.memory, 0, float(self.steps))

def params_of(session):
    return session.params["mark"]
"""


@dataclass(frozen=True)
class Job:
    """A workload of one's own with a marker in everything."""

    folder: Path
    source: str
    param: str
    data: bytes

    @classmethod
    def make(cls, folder: Path, *, fails: bool) -> Job:
        folder.mkdir()
        source, param, data = secrets.token_hex(32), secrets.token_hex(32), os.urandom(64)
        found = str(folder / "found")
        (folder / "job.py").write_text(TINY + SOURCE.format(source=source, fails=fails, found=found))
        (folder / "secret.bin").write_bytes(data)
        return cls(folder, source, param, data)

    @property
    def needles(self) -> dict[str, bytes]:
        return {"source": self.source.encode(), "parameter": self.param.encode(), "data": self.data}

    def words(self, duration: float) -> list[str]:
        return [
            "model=custom", f"model.entry={self.folder}/job.py:Workload",
            f"model.data=[{self.folder}/secret.bin]", f"+model.params.mark='{self.param}'",
            "order=protected-only", "payload=private", "measure=quick", "measure.warmup_sec=0.2",
            "measure.head_interval_sec=0.3", f"duration={duration}",
        ]  # fmt: skip

    def found_in(self, paths: Iterator[Path]) -> list[tuple[str, str]]:
        found = []
        for path in paths:
            try:
                text = path.read_bytes()
            except OSError:
                continue  # gone in the meantime, or not a file of ours
            found += [(name, str(path)) for name, needle in self.needles.items() if needle in text]
        return found


def _files(*roots: Path, newer: float = 0.0) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                try:
                    if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= newer:
                        yield path
                except OSError:
                    continue


def _pod_side(program: Program, job: Job, began: float) -> Iterator[Path]:
    yield from _files(program.home / "state" / "pods")
    yield from _files(Path("/dev/shm"))
    for place in (Path("/tmp"), Path("/var/tmp"), Path.home() / ".cache"):
        for path in _files(place, newer=began):
            # What the operator's side holds is the operator's: the job itself, the keys, the run folder.
            if not path.is_relative_to(job.folder) and not path.is_relative_to(program.runs):
                yield path


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "prints and raises"])
def test_no_plaintext_outside_memory_and_the_scratch_folder(
    program: Program, tmp_path: Path, fails: bool
) -> None:
    job = Job.make(tmp_path / "job", fails=fails)
    began = time.time() - 1
    process = program.start("run", "--json", "--out", str(program.runs), *job.words(2.5))
    in_scratch, elsewhere, words = set(), set(), set()
    while process.poll() is None:
        names = [path.name for path in (program.home / "state" / "pods").glob("gh-*")]
        for name, path in job.found_in(_pod_side(program, job, began)):
            scratch = any(re.match(rf"/dev/shm/{allocation}-s000-1-", path) for allocation in names)
            (in_scratch if scratch else elsewhere).add((name, path))
        if in_scratch:
            (job.folder / "found").touch()
        for allocation in names:
            for pid in processes_of(f"{allocation}/runtime-"):
                for file in ("cmdline", "environ"):
                    try:
                        words.update(Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0"))
                    except OSError:
                        continue
        # What is there for less than this is test_watch.py's; each look reads every file of the pod.
        time.sleep(0.5)
    out, err = process.communicate()
    record = json.loads(out)["runs"][0]
    assert process.returncode == (1 if fails else 0), err
    assert elsewhere == set()
    assert {name for name, _ in in_scratch} == {"data"}  # the search finds what is there to be found
    assert job.found_in(_pod_side(program, job, began)) == []

    # No key, ticket or marker was ever in an argument or in the environment.
    assert words
    for word in words:
        assert not any(needle in word for needle in job.needles.values())
        assert re.search(rb"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])", word) is None, word

    # Nor does what may be published hold any of it.
    folder = Path(record["folder"])
    assert job.found_in(_files(folder / "bundle")) == []

    # What the workload printed, its owner can read, and nobody else.
    opened = tmp_path / "opened"
    done = program("open", str(folder), "--to", str(opened), "--json")
    assert done.returncode == 0, done.stderr
    log = next(opened.glob("*trainer.log")).read_text()
    assert f"printed {job.source} {job.param}" in log
    assert (f"raised {job.source}{job.param}" in log) == fails
    assert ("workload-error" in json.dumps(record)) == fails
    if not fails:
        (weights,) = opened.glob("*.safetensors")
        assert job.data[4:] in weights.read_bytes()


def _sealed_on_pod(program: Program, allocation: str) -> list[Path]:
    pods = program.home / "state" / "pods"
    return list((pods / allocation).glob("**/checkpoints/*"))


PROJECT = """
import os, pathlib, sys, time
SOURCE_MARK = {source!r}
data = pathlib.Path("secret.bin").read_bytes()
print("printed", SOURCE_MARK, sys.argv[1], flush=True)
pathlib.Path(os.environ["TMPDIR"], "cache").write_bytes(data)
os.mkdir("out")
pathlib.Path("out", "copy.bin").write_bytes(data)
while not os.path.exists("found"):  # until the search has been here
    time.sleep(0.01)
if {fails}:
    raise RuntimeError("raised " + SOURCE_MARK + sys.argv[1])
"""


@pytest.mark.parametrize(
    "fails",
    [pytest.param(False, id="ends well"), pytest.param(True, id="prints and raises", marks=pytest.mark.soak)],
)
def test_no_plaintext_of_a_project_outside_memory_and_the_scratch_folder(
    program: Program, tmp_path: Path, fails: bool
) -> None:
    job = Job.make(tmp_path / "job", fails=fails)
    (job.folder / "job.py").write_text(PROJECT.format(source=job.source, fails=fails))
    began = time.time() - 1
    process = program.start(
        "run", "--json", "--out", str(program.runs), "model=project", f"model.folder={job.folder}",
        "model.outputs=out", "model.checkpoint_min=0.02", "measure.head_interval_sec=0.3",
        "--", "python", "job.py", job.param,
    )  # fmt: skip
    in_scratch, elsewhere, words = set(), set(), set()
    points: set[str] = set()
    while process.poll() is None:
        names = [path.name for path in (program.home / "state" / "pods").glob("gh-*")]
        for name, path in job.found_in(_pod_side(program, job, began)):
            scratch = next(
                (place for one in names if (place := re.match(rf"/dev/shm/{one}-s000-1-[0-9a-f]+", path))),
                None,
            )
            (elsewhere if scratch is None else in_scratch).add((name, path))
            points |= {each.name for one in names for each in _sealed_on_pod(program, one)}
            if scratch is not None and path.endswith("/cache") and points:
                Path(scratch[0], "project", "found").touch()
        for allocation in names:
            for pid in processes_of(f"{allocation}/runtime-"):
                for file in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        words.update(Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0"))
        time.sleep(0.5)
    out, err = process.communicate()
    record = json.loads(out)["runs"][0]
    assert process.returncode == (1 if fails else 0), err
    assert elsewhere == set()
    assert {name for name, _ in in_scratch} == {"source", "data"}  # where the project's own files lie
    assert points <= {"000001.sealed", "000001.sealed.partial", "fetching-1"}
    assert job.found_in(_pod_side(program, job, began)) == []
    assert words
    assert not any(needle in word for needle in job.needles.values() for word in words)
    folder = Path(record["folder"])
    assert job.found_in(_files(folder / "bundle")) == []
    opened = tmp_path / "opened"
    assert program("open", str(folder), "--to", str(opened), "--json").returncode == 0
    log = next(opened.glob("*trainer.log")).read_text()
    assert f"printed {job.source} {job.param}" in log
    assert (f"raised {job.source}{job.param}" in log) == fails
    assert (opened / "s000-1" / "copy.bin").read_bytes() == job.data
    # What was sealed while it went on is nobody's to read but its owner's, and lies at home.
    assert job.found_in(_files(folder / "checkpoints")) == []
    done = program("open", str(folder), "--checkpoint", "1", "--to", str(opened), "--json")
    assert done.returncode == 0, done.stderr
    assert (opened / "s000-1-checkpoint-1" / "copy.bin").read_bytes() == job.data


MODEL = {
    "inputs": 12007, "hidden": 23, "layers": 1, "classes": 10009, "batch": 7, "batches_per_epoch": 1,
    "learning_rate": 0.001237, "data_seed": 987654321,
}  # fmt: skip


def _numbers(value: Any) -> Iterator[float]:
    """Every number anywhere in JSON data, also in the claims of signed tokens and payloads of envelopes."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, str):
        for part in value.split("."):
            text = part.replace("+", "-").replace("/", "_")
            with contextlib.suppress(ValueError):
                yield from _numbers(json.loads(base64.urlsafe_b64decode(text + "==")))


def test_what_is_published_of_a_private_built_in_job_confirms_no_guess(
    program: Program, tmp_path: Path
) -> None:
    """Neither sizes nor settings of the model, nor a digest that someone who guesses them could compute."""
    settings = [f"model.{name}={value}" for name, value in MODEL.items()]
    job = ["order=protected-only", "payload=private", "steps=5", "duration=null"]
    code, record, folder, err = program.run(*job, *settings)
    assert code == 0, err
    assert record["status"] == "verified"
    assert "-private-mlp-" in record["id"]
    assert program("verify", str(folder)).returncode == 0

    # The owner has it all.
    opened = tmp_path / "opened"
    assert program("open", str(folder), "--to", str(opened)).returncode == 0
    (weights,) = opened.glob("*.safetensors")
    whole = json.loads(next(opened.glob("*events.json")).read_bytes())
    result = whole["trained"]["result"]
    assert result["outputSha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    parameters = 12007 * 23 + 23 + 23 * 10009 + 10009
    assert result["unitInfo"]["trainableParams"] == parameters

    bundle = [path.read_text() for path in _files(folder / "bundle")]
    payload = prepare(config.load([*settings, "gpu=cpu"]))
    guesses = [hashlib.sha256(data).hexdigest() for data in payload.files.values()]
    guesses += [hashlib.sha256(view).hexdigest() for _, view in payload]
    guesses += [result["outputSha256"]]
    assert not any(guess in text for guess in guesses for text in bundle)
    sizes = {12007, 10009, 0.001237, 987654321, parameters, 4 * parameters, result["outputBytes"]}
    sizes |= {whole["unsealed"]["bytes"], whole["sealed-outputs"]["bytes"]}
    sizes |= {part["bytes"] for part in whole["zeroized"]["buffers"].values() if part["bytes"]}
    found = set(_numbers([json.loads(line) for text in bundle for line in text.splitlines()]))
    assert 5 in found  # the search finds what is there: the steps
    assert sizes & found == set()
