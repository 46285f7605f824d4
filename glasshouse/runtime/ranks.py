"""Several ranks of one leg on one machine: forked, never exec'd, fed by the memory they inherit.

The trainer is rank 0. It forks the others before the workload is built, so that each inherits the unsealed
package without a copy, the Landlock domain and DUMPABLE=0; a launcher that execs its ranks (torchrun) would
lose all three. What torchrun puts into the environment is there: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT; a workload joins by torch.distributed.init_process_group() as under torchrun. Every rank builds
the workload's session; rank 0's is the one that is read, and each of its units is a unit of the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime.channel import Channel, ChannelClosedError, Message, channel_pair
from glasshouse.runtime.linux import PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.peers import PeerDiedError, Peers
from glasshouse.runtime.results import Wiped
from glasshouse.runtime.session import Report, Session, Tensor, restorable
from glasshouse.runtime.warmup import Beginning
from glasshouse.runtime.wipe import wipe_tensors

MAX_RANKS = 16
BUILD_TIMEOUT_SEC = 600.0
END_TIMEOUT_SEC = 60.0
CACHE = ("none", "released", "kept")  # wipe.release_device_cache

Build = Callable[[], Session]
Begin = Callable[[Session], Beginning]


class RankedSession:
    """Rank 0's session, which takes the other ranks along at every unit."""

    def __init__(
        self, session: Session, others: list[tuple[Channel, int]], watch: _Watch, begin: Begin
    ) -> None:
        self._session: Any = session
        self._others = others
        self._watch = watch
        self._begin = begin

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._steps if name == "run_steps" else found

    def run_unit(self) -> None:
        """Do one unit on every rank."""
        self._tell("unit")
        self._session.run_unit()

    def _steps(self, count: int) -> None:
        self._tell("steps", {"count": count})
        self._session.run_steps(count)

    def restore(self, _tensors: dict[str, Tensor], _values: dict[str, Any]) -> None:
        """Refuse: put back into rank 0 alone it would part it from the others, who each have their own."""
        raise LegError("each rank puts back its own state", code=Code.RUNTIME_ERROR)

    @contextlib.contextmanager
    def warming(self) -> Iterator[None]:
        """Have every rank keep what it began with, and stand there again at the end.

        Raises LegError(Code.WARMUP_NOT_UNDONE); of another rank it is said through `report`, as all of its.
        """
        self._tell("keep")
        with self._begin(self._session) as begun:
            yield
            port = free_port()
            self._tell("undo", {"port": port})
            self._session = None  # `begun` holds the only reference: a second one may need its memory
            self._session = _undone(begun, port)
        for channel, _ in self._others:
            channel.expect("undone", BUILD_TIMEOUT_SEC)

    def _tell(self, kind: str, body: object = None) -> None:
        for channel, _ in self._others:
            channel.send(kind, body)

    def end_ranks(self) -> Wiped:
        """Have the other ranks overwrite what they hold and exit, and reap them; say what they reported.

        They must be gone before rank 0 wipes the package: until then they share its pages, and a page that
        is overwritten in one process stays as it was in the other.
        """
        self._watch.stop()
        total, cache = Wiped(), "none"
        for channel, pid in self._others:
            channel.send("end")
            said = channel.expect("wiped", END_TIMEOUT_SEC).body
            total = Wiped(
                total.count + int(said["count"]),
                total.bytes + int(said["bytes"]),
                total.read_back_zero and said["readBackZero"] is True,
            )
            # Of several answers the one that promises least.
            cache = max(cache, said["cache"], key=CACHE.index)
            channel.close()
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status) != 0:
                raise LegError("a rank did not end well", code=Code.RANK_FAILED)
        self._others = []
        return replace(total, cache=cache)


class _Watch(threading.Thread):
    """Reports a rank that died, from beside rank 0, which may wait for it in a collective without end."""

    def __init__(self, pids: list[int], report: Report) -> None:
        super().__init__(name="ranks", daemon=True)
        self._report = report
        self._peers = Peers()
        for pid in pids:
            self._peers.watch(f"process {pid}", pid)
        self._told, self._tell = os.pipe()
        self.start()

    def run(self) -> None:
        """Wait for a rank's death, or to be told to stop."""
        try:
            self._peers.wait(self._told, None)
        except PeerDiedError:
            with contextlib.suppress(ChannelClosedError):
                self._report("failed", {"code": Code.RANK_FAILED})

    def stop(self) -> None:
        """From now on ranks may end."""
        os.write(self._tell, b"x")
        self.join()


def build(make: Build, count: int, report: Report, begin: Begin) -> RankedSession:
    """Fork `count` - 1 ranks, have each build its session with `make`, return rank 0's with them behind it.

    begin: keeps what a session began with while it warms up.

    A rank that fails says so through `report`, past rank 0, which may be waiting for it in a collective.
    Raises LegError(Code.RANK_FAILED) when one does not build.
    """
    _environment(count)
    others: list[tuple[Channel, int]] = []
    for rank in range(1, count):
        ours, theirs = channel_pair()
        pid = os.fork()
        if pid == 0:
            for channel, _ in others:
                channel.close()
            ours.close()
            _rank(rank, theirs, report, make=make, begin=begin)
        theirs.close()
        others.append((ours, pid))
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0"
    watch = _Watch([pid for _, pid in others], report)
    session = make()
    for channel, _ in others:
        channel.expect("built", BUILD_TIMEOUT_SEC)
    return RankedSession(session, others, watch, begin)


def _environment(count: int) -> None:
    world = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), **world)
    ours = defaults(shm_private=False)
    os.environ.setdefault("OMP_NUM_THREADS", ours.pop("OMP_NUM_THREADS"))
    os.environ.update(ours)


def free_port() -> int:
    """A free port of the loopback, for ranks to meet at. Raises LegError: ranks-cannot-meet."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise LegError("no socket can be made for ranks to meet", code=Code.RANKS_CANNOT_MEET) from error


def defaults(*, shm_private: bool) -> dict[str, str]:
    """Variables of ranks that meet on one machine. shm_private: /dev/shm is the scratch folder."""
    found = {
        "OMP_NUM_THREADS": "1",  # as torchrun does: ranks that each take every core only wait for each other
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    # NCCL would make files in /dev/shm, beside the one folder that may be written; without them it copies
    # between GPUs directly, or over loopback where they cannot.
    return found if shm_private else {**found, "NCCL_SHM_DISABLE": "1"}


def of_rank(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells each of several processes on one machine who it is, and where they meet."""
    return {**dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), str(rank)), "MASTER_PORT": str(port)}


def _rank(rank: int, channel: Channel, report: Report, *, make: Build, begin: Begin) -> None:
    """Run one forked rank to its exit; never returns."""
    code = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        session = make()
        channel.send("built")
        while (asked := channel.receive()).kind != "end":
            if asked.kind == "keep":
                with begin(session) as begun:
                    while (asked := channel.receive()).kind != "undo":
                        _work(begun.session, asked)
                    del session
                    session = _undone(begun, asked.body["port"])
                channel.send("undone")
            else:
                _work(session, asked)
        channel.send("wiped", _wipe(session))
        code = 0
    except ChannelClosedError:
        pass
    except BaseException as error:  # noqa: BLE001 -- a forked role must never unwind into its parent's frames
        traceback.print_exc()
        with contextlib.suppress(ChannelClosedError):
            report("failed", {"code": error.code if isinstance(error, LegError) else Code.WORKLOAD_ERROR})
    finally:
        os._exit(code)


def _undone(begun: Beginning, port: int) -> Session:
    """Undo this rank's warm-up. Where that needs a second session, the ranks meet anew, at another port."""
    torch = sys.modules.get("torch")  # never imported here: a workload may do without
    if begun.session is not None and not restorable(begun.session) and torch is not None:
        os.environ["MASTER_PORT"] = str(port)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return begun.undone()


def _work(session: Any, asked: Message) -> None:
    if asked.kind == "unit":
        session.run_unit()
    elif asked.kind == "steps":
        session.run_steps(asked.body["count"])
    else:
        raise LegError(f"a rank was told to {asked.kind}", code=Code.RUNTIME_ERROR)


def _wipe(session: Session) -> Wiped:
    found = wipe_tensors([*session.trainable().values(), *session.buffers()])
    host, device = found.host, found.device
    zero = host.read_back_zero and device.read_back_zero
    return Wiped(host.count + device.count, host.bytes + device.bytes, zero, device.cache)


# --- for workloads, which hand in the torch that only they import ----------------------------------


def join(torch: Any, device: Any) -> tuple[int, int]:
    """Join the leg's process group, if it has one: (rank, world size), (0, 1) for a leg of one process.

    `device` is the torch.device that this rank trains on; on GPUs each rank has its own.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return int(os.environ["RANK"]), world


def average(torch: Any, tensors: list[Any]) -> None:
    """Replace each tensor by its mean over all ranks, in place, in one all-reduce."""
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()
