"""A project whose launcher starts several processes: ours meet, train together and end together."""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.runtime import seccomp
from glasshouse.runtime.linux import PR_SET_NO_NEW_PRIVS, prctl
from tests.e2e.conftest import Program
from tests.e2e.test_project import files, opened, project, run, words

pytestmark = [pytest.mark.train, pytest.mark.slow]
ONE_THREAD = ("provider.threads=1",)

DDP = """
import ctypes, json, os, pathlib, socket
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(1)
model = DistributedDataParallel(torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(rank))  # each rank has rows of its own
for _ in range(20):
    optimizer.zero_grad()
    (model(rows) - rows.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
said = {name: value for name, value in os.environ.items() if name.startswith(
    ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_", "TORCHELASTIC_", "TORCH_NCCL_", "ACCELERATE_"))}
said |= {"launched": dist.is_torchelastic_launched(), "threads": torch.get_num_threads()}
(out / f"environment{rank}.json").write_text(json.dumps(said))
status = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
held = {name: status[name] for name in ("NoNewPrivs", "Seccomp", "CapEff")}
held |= {"dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), "network": socket.if_nameindex()}
held |= {"namespace": os.readlink("/proc/self/ns/net"), "program": os.readlink("/proc/self/exe")}
(out / f"held{rank}.json").write_text(json.dumps(held))
if rank == 0:
    torch.save(model.module.state_dict(), out / "model.pt")
print(f"rank {rank} of {dist.get_world_size()}", flush=True)
dist.destroy_process_group()
"""
# Of an agent that holds a store, of files and of names that it makes up: there is none here.
AGENTS = {
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_SIGNALS_TO_HANDLE",
}


def test_two_ranks_by_torchrun_train_what_torchrun_trains_without_us(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": DDP})
    command = ["torchrun", "--nproc-per-node=2", "train.py"]
    plain = tmp_path / "plain"
    subprocess.run(["cp", "-r", str(mine), str(plain)], check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
    without = subprocess.Popen(
        launcher,
        cwd=plain,
        env={**program.environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    code, record, folder, err = run(program, mine, *command, settings=ONE_THREAD)
    assert without.wait(60) == 0
    assert code == 0, err
    assert record["status"] == "verified"
    back = files(opened(program, folder, tmp_path / "back"))
    assert back["model.pt"] == files(plain / "out")["model.pt"]
    for rank in range(2):
        ours = json.loads(back[f"environment{rank}.json"][0])
        theirs = json.loads((plain / f"out/environment{rank}.json").read_text())
        assert ours["launched"] is True
        assert {name: value for name, value in ours.items() if name not in AGENTS} == {
            name: value for name, value in theirs.items() if name not in AGENTS
        }
    # Each is held as one process would be, by the same network; none was started as a program.
    held = [json.loads(back[f"held{rank}.json"][0]) for rank in range(2)]
    assert held[0] == held[1]
    assert (held[0]["dumpable"], held[0]["NoNewPrivs"], held[0]["Seccomp"]) == (0, "1", "2")
    assert held[0]["network"] == [[1, "lo"]]
    assert held[0]["namespace"] != str(Path("/proc/self/ns/net").readlink())
    assert "starting 2 processes there" in err
    # Both counted alike, or the owner would be told.
    assert re.search(r"the command ended with 0 after \d+\.\d s; 20 optimizer steps\n", err)
    assert "different numbers" not in err
    assert record["figures"]["protected"]["steps"] == 20
    (log,) = (tmp_path / "back").glob("*trainer.log")
    assert {"rank 0 of 2", "rank 1 of 2"} <= set(log.read_text().splitlines())
    zeroized = _event(folder, "zeroized")
    assert (zeroized["runtimeState"], zeroized["residue"], zeroized["straysKilled"]) == (
        "ended",
        "scanned",
        0,
    )
    assert zeroized["tmpfsRemoved"]
    assert _event(folder, "trainer-hardened")["network"] == "namespace"
    assert program("verify", str(folder)).returncode == 0
    assert program.pods() == []


def _event(folder: Path, kind: str) -> dict:
    (chain,) = (folder / "bundle/legs").glob("*/events.jsonl")
    events = [json.loads(line) for line in chain.read_bytes().splitlines()]
    return next(event["body"] for event in events if event["type"] == kind)


UNEQUAL = """
import os, torch
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([parameter])
for _ in range(10 + int(os.environ["RANK"])):
    parameter.sum().backward()
    optimizer.step()
"""


def test_ranks_that_took_different_numbers_of_steps_are_named(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"train.py": UNEQUAL})
    code, record, _, err = run(
        program, mine, "torchrun", "--nproc-per-node=2", "train.py", settings=ONE_THREAD
    )
    assert (code, record["figures"]["protected"]["steps"]) == (0, 10), err
    assert (
        "the ranks counted different numbers of optimizer steps, and rank 0's is stated: "
        "10 on rank 0, 11 on rank 1\n"
    ) in err


WAITS = """
import os, sys, pathlib
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
(out / f"saved{dist.get_rank()}").write_text("saved")
dist.barrier()
if dist.get_rank() == 1:
    sys.exit(7)
dist.all_reduce(torch.ones(4))
"""


def test_one_that_fails_ends_those_that_wait_for_it_and_its_end_is_stated(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": WAITS})
    code, record, folder, err = run(
        program, mine, "torchrun", "--nproc_per_node", "2", "train.py", settings=ONE_THREAD
    )
    assert code == 1
    assert record["exclusion"]["codes"] == ["job-failed"]
    assert "the command ended with 7" in err
    assert "rank 1 of 2 failed first: it ended with 7" in err
    assert set(files(opened(program, folder, tmp_path / "back"))) == {"saved0", "saved1"}


# Without torch: what a rank is killed by, and what it gets to save, is no matter of what it trains with.
SAVES = """
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
def save(*_):
    (out / f"saved{rank}").write_text("on request")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(out / f"began{rank}").touch()
while not all((out / f"began{other}").exists() for other in range(3)):
    time.sleep(0.01)
if sys.argv[1:] == ["kill"] and rank == "2":
    os.kill(os.getpid(), signal.SIGKILL)
print("all began", flush=True)
time.sleep(300)
"""


def test_of_one_that_is_killed_the_others_save_and_the_signal_is_stated(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": SAVES})
    code, _, folder, err = run(
        program, mine, "torchrun", "--nproc-per-node=3", "train.py", "kill", settings=ONE_THREAD
    )
    assert code == 1
    assert "the command was killed by SIGKILL" in err
    assert "rank 2 of 3 failed first: it was killed by SIGKILL" in err
    back = set(files(opened(program, folder, tmp_path / "back")))
    assert back == {"began0", "began1", "began2", "saved0", "saved1"}


def test_ctrl_c_lets_each_save(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"train.py": SAVES})
    process = program.start(*words(mine, program), "torchrun", "--nproc-per-node=3", "train.py")
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    record = json.loads(out)["runs"][0]
    assert "interrupted" in record["exclusion"]["codes"], err
    assert "the command ended with 0" in err
    back = files(opened(program, Path(record["folder"]), tmp_path / "back"))
    assert {"saved0", "saved1", "saved2"} <= set(back)
    assert program.pods() == []


def refuse_namespaces() -> None:
    """As container engines do by default: unshare(2) is no call for whoever is inside."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    machine = seccomp._MACHINES[platform.machine()]
    call = seccomp._NUMBERS["unshare"][machine.column]
    made = [
        (seccomp._LOAD, 0, 0, seccomp._AT_NUMBER),
        (seccomp._EQUAL, 0, 1, call),
        seccomp._error(errno.EPERM),
        seccomp._allow(),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in made))
    whole = seccomp._Program(len(made), ctypes.addressof(packed))
    number = seccomp._NUMBERS["seccomp"][machine.column]
    if seccomp._libc.syscall(ctypes.c_long(number), ctypes.c_uint(1), ctypes.c_uint(0), ctypes.byref(whole)):
        raise OSError(ctypes.get_errno(), "seccomp")


def without_namespaces(program: Program, *more: str) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "glasshouse", *more],
        cwd=program.root,
        env=program.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=refuse_namespaces,  # noqa: PLW1509  one thread
    )
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


@pytest.mark.skipif(platform.machine() not in seccomp._MACHINES, reason="no filter for this machine")
def test_without_namespaces_several_are_refused_before_anything_is_uploaded(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": SAVES})
    code, out, err = without_namespaces(
        program, *words(mine, program), "torchrun", "--nproc-per-node=3", "train.py"
    )
    record = json.loads(out)["runs"][0]
    assert code == 1
    assert "ranks-cannot-meet" in record["exclusion"]["codes"]
    assert "the machine allows no network namespace (provider=local)" in err
    assert "start one process" in err
    assert "uploading" not in err
    assert "protected leg" not in err
    assert program.pods() == []


MEETS = """
import os, pathlib, socket, time
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
pathlib.Path("out").mkdir(exist_ok=True)
if os.environ["RANK"] == "0":
    connection = socket.create_server(place).accept()[0]
    pathlib.Path("out/heard").write_bytes(connection.recv(100))
else:
    for _ in range(1000):
        try:
            socket.create_connection(place).sendall(b"from rank 1")
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
"""


@pytest.mark.skipif(platform.machine() not in seccomp._MACHINES, reason="no filter for this machine")
def test_without_namespaces_those_whose_network_is_open_meet_on_the_machines_loopback(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": MEETS})
    command = [*words(mine, program, "model.network=open"), "torchrun", "--nproc-per-node=2", "train.py"]
    code, out, err = without_namespaces(program, *command)
    assert code == 0, err
    record = json.loads(out)["runs"][0]
    assert "network-open" in record["caveats"]
    back = files(opened(program, Path(record["folder"]), tmp_path / "back"))
    assert back == {"heard": (b"from rank 1", False)}


def test_more_than_one_machine_is_refused_before_anything_is_made(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"train.py": SAVES})
    done = program(*words(mine, program), "torchrun", "--nnodes=2", "--nproc-per-node=2", "train.py")
    assert done.returncode == 2
    assert "a run is on one machine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


SPAWN = """
import os, pathlib
import torch, torch.distributed as dist, torch.multiprocessing as mp

def work(rank, world):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29507")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    pathlib.Path("out").mkdir(exist_ok=True)
    (pathlib.Path("out") / f"total{rank}").write_text(str(total.item()))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, args=(2,), nprocs=2)
"""


@pytest.mark.soak  # three processes import torch, one after the other
def test_a_script_that_spawns_its_ranks_by_itself_meets_them_too(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"train.py": SPAWN})
    code, _, folder, err = run(program, mine, "python", "train.py", settings=ONE_THREAD)
    assert code == 0, err
    back = files(opened(program, folder, tmp_path / "back"))
    assert back == {"total0": (b"3.0", False), "total1": (b"3.0", False)}


ACCELERATED = """
import pathlib
import torch
from accelerate import Accelerator

accelerator = Accelerator()
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.randn(64, 8)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, rows.sum(1, keepdim=True)), 8)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for inputs, wanted in loader:
    optimizer.zero_grad()
    accelerator.backward((model(inputs) - wanted).square().mean())
    optimizer.step()
if accelerator.is_main_process:
    pathlib.Path("out").mkdir(exist_ok=True)
    weights = [parameter.detach() for parameter in accelerator.unwrap_model(model).parameters()]
    torch.save([accelerator.num_processes, accelerator.mixed_precision, *weights], "out/model.pt")
accelerator.end_training()
"""


@pytest.mark.soak  # accelerate is imported four times
def test_two_ranks_by_accelerate_launch(program: Program, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    mine = project(tmp_path / "mine", {"train.py": ACCELERATED})
    plain = tmp_path / "plain"
    subprocess.run(["cp", "-r", str(mine), str(plain)], check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"]
    environment = {**program.environment, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(launcher, cwd=plain, env=environment, check=True, capture_output=True)
    code, _, folder, err = run(
        program, mine, "accelerate", "launch", "--num_processes", "2", "train.py", settings=ONE_THREAD
    )
    assert code == 0, err
    assert files(opened(program, folder, tmp_path / "back")) == files(plain / "out")
