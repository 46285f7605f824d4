"""A workload that means harm, or runs wild: what it reaches, what of it is seen, and how its leg ends."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

import pytest

from glasshouse.runtime.leg import LOG_HEAD_BYTES, LOG_TAIL_BYTES
from tests.runtime.rig import alive, rig

PROBE = """
import json, signal, socket
class Workload(Tiny):
    def __init__(self, params, files, device):
        super().__init__(params, files, device)
        parent = os.getppid()
        tries = {
            "write": lambda: open(params["outside"], "w"),
            "append": lambda: open(params["victim"], "a"),
            "truncate": lambda: os.truncate(params["victim"], 0),
            "remove": lambda: os.unlink(params["victim"]),
            "rename": lambda: os.rename(params["victim"], params["victim"] + "2"),
            "link": lambda: os.link(params["victim"], os.environ["TMPDIR"] + "/link"),
            "shm": lambda: open("/dev/shm/" + params["name"], "w"),
            "tmp": lambda: open("/tmp/" + params["name"], "w"),
            "parent-memory": lambda: open(f"/proc/{parent}/mem", "rb"),
            "parent-memory-write": lambda: open(f"/proc/{parent}/mem", "r+b"),
            "parent-environ": lambda: open(f"/proc/{parent}/environ", "rb").read(1),
            "parent-descriptors": lambda: os.readlink(f"/proc/{parent}/fd/1"),
            "kill": lambda: os.kill(parent, 0),
            "stranger": lambda: os.kill(params["stranger"], 0),
            "ptrace": lambda: ptrace(parent),
            "abstract": lambda: socket.socket(socket.AF_UNIX).connect("\\0" + params["name"]),
            "setuid-0-core": lambda: resource_core(),
            "scratch": lambda: open(os.environ["TMPDIR"] + "/mine", "w").write("x"),
            "null": lambda: open("/dev/null", "w").write("x"),
            "fork": lambda: os.waitpid(child(), 0),
        }
        for name, action in tries.items():
            try:
                action()
                print("did", name)
            except OSError as error:
                print("refused", name, error.errno)

def ptrace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def resource_core():
    import resource
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        raise OSError(1, "no core")

def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.kill(pid, 0)
    return pid
"""


def test_the_workload_changes_and_reaches_nothing_outside_its_folder() -> None:
    with rig() as probe_home:
        base = probe_home.base
        victim = base / "victim"
        victim.write_text("untouched")
        victim.chmod(0o666)
        name = f"glasshouse-probe-{secrets.token_hex(4)}"
        params = {
            "outside": str(base / "new"),
            "victim": str(victim),
            "name": name,
            "stranger": os.getpid(),
        }
        with (
            rig(PROBE, params=params) as made,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            listener.bind(f"\0{name}")
            listener.listen()
            leg = made.launch()
            result = leg.wait()
            assert result["status"] == "complete", result
            said = bytes(made.open(leg, "log.sealed").files["trainer.log"]).decode()
            leg_shm = leg.event("trainer-hardened")["shm"]
        outcomes = {line.split()[1]: line.split()[0] for line in said.splitlines()}
        allowed = {name for name, outcome in outcomes.items() if outcome == "did"}
        # Where it may mount, /dev/shm is the scratch folder too, and nobody else's.
        assert allowed - {"shm"} == {"scratch", "null", "fork"}, said
        assert ("shm" in allowed) == (leg_shm == "private")
        assert not Path("/dev/shm", name).exists()
        assert len(outcomes) == 20
        assert victim.read_text() == "untouched"
        assert not (base / "new").exists()


def test_a_workload_that_hangs_meets_the_deadline() -> None:
    with rig("class Workload(Tiny):\n    def run_unit(self): time.sleep(600)\n") as made:
        leg = made.launch(deadline_sec=4)
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", "leg-deadline")
        assert leg.processes() == []
        assert made.scratch() == []


FLOOD = """
class Workload(Tiny):
    def run_unit(self):
        super().run_unit()
        for number in range(20000):
            print("progress", number, "x" * 200)
        print("y" * (8 << 20), flush=True)
        print("the end", flush=True)
"""


def test_a_flood_of_output_is_bounded_and_stops_nothing() -> None:
    with rig(FLOOD) as made:
        leg = made.launch(stretch={"warmup_sec": 0, "measured_sec": None, "steps": 5, "delay_pct": 0})
        result = leg.wait()
        assert result["status"] == "complete", result
        assert len(leg.events()) < 30
        log = bytes(made.open(leg, "log.sealed").files["trainer.log"])
        head, gap, tail = log[:LOG_HEAD_BYTES], log[LOG_HEAD_BYTES:-LOG_TAIL_BYTES], log[-LOG_TAIL_BYTES:]
        assert head.startswith(b"progress 0 x")
        assert tail.endswith(b"y\nthe end\n")
        assert re.fullmatch(rb"\n\[[0-9]{8,} bytes of the log were left out here\]\n", gap)
        assert leg.log == ""


LARGE = """
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.weights = HostTensor(os.urandom(48 << 20))
"""


def test_large_outputs_pass_whole() -> None:
    with rig(LARGE) as made:
        leg = made.launch()
        assert leg.wait()["status"] == "complete"
        assert made.open(leg, "outputs.sealed").tensors["weights"][0].nbytes == 48 << 20


CODES = {
    # what the workload does -> the code, and nothing else, that is seen in plain
    "raise ValueError(SECRET)": "workload-error",
    "raise SystemExit(SECRET)": "workload-error",
    "raise KeyboardInterrupt(SECRET)": "workload-error",
    "from glasshouse.errors import LegError; raise LegError('x', code=SECRET)": "runtime-error",
    "self.loss = lambda: float('nan')": "non-finite-loss",
    "self.trainable = lambda: {}": "workload-error",
    "self.buffers = lambda: [3]": "workload-error",
    "os.close(1); os.close(2); os.kill(os.getpid(), 11)": "process-died",
}


@pytest.mark.parametrize("value", ["SECRET + 'y' * (5 << 20)", "object()", "2 ** 70", "[SECRET]"])
def test_what_a_workload_says_of_itself_is_a_digest_whatever_it_is(value: str) -> None:
    secret = f"secret-{secrets.token_hex(16)}"
    source = f"""
SECRET = {secret!r}
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.info = {{SECRET: {value}}}
"""
    with rig(source) as made:
        leg = made.launch()
        assert leg.wait()["status"] == "complete"
        for path in made.base.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("statement", CODES)
def test_only_codes_are_seen_in_plain(statement: str) -> None:
    secret = f"secret-{secrets.token_hex(16)}"
    source = f"""
SECRET = {secret!r}
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        print(SECRET, flush=True)
        {statement}
"""
    with rig(source) as made:
        leg = made.launch()
        result = leg.wait()
        assert (result["status"], result["code"]) == ("failed", CODES[statement])
        assert leg.log == ""
        for path in made.base.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
        assert secret in bytes(made.open(leg, "log.sealed").files["trainer.log"]).decode()
        assert not alive(leg.pid)
