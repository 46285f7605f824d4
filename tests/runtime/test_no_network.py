"""A private project under attack by its own code: whatever it tries, no server outside receives a byte."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from glasshouse.runtime import confine as module
from glasshouse.runtime import linux, seccomp
from glasshouse.runtime.confine import Confinement, close_inherited, ways_out
from tests.runtime.confined import (
    Mode,
    as_root,
    confined,
    every_mode,
    open_folder,
    scratch_of,
    with_namespaces,
)  # fmt: skip
from tests.runtime.test_linux import in_child, needs_landlock, refusal

pytestmark = [
    needs_landlock,
    as_root,
    pytest.mark.skipif(platform.machine() not in seccomp._MACHINES, reason="no filter for this machine"),
]
libc = ctypes.CDLL(None, use_errno=True)
COLUMN = 0 if platform.machine() == "x86_64" else 1
NOWHERE = "192.0.2.1"  # RFC 5737: no such machine


def call(name: str | int, *arguments: Any) -> int:
    """A system call by its name in the filter's tables, or by number; OSError as the kernel says."""
    number = name if isinstance(name, int) else (seccomp._REFUSED | seccomp._NUMBERS)[name][COLUMN]
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), str(name))
    return result


def own_address() -> str | None:
    """An address of this machine that is not loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, suppress(OSError):
        one.connect((NOWHERE, 9))  # sends nothing
        return str(one.getsockname()[0])
    return None


@dataclass
class Outside:
    """Servers of this process, what they are called, and what came in."""

    folder: Path
    servers: dict[str, socket.socket] = field(default_factory=dict)
    ports: dict[str, int] = field(
        default_factory=dict
    )  # read here: a confined child no longer has the sockets
    inherited: list[socket.socket] = field(default_factory=list)
    own: str | None = field(default_factory=own_address)
    sibling: int = 0
    secret: Any = None

    def received(self) -> list[str]:
        """Which servers were connected to or sent to."""
        found = []
        for name, server in self.servers.items():
            server.setblocking(False)
            with suppress(BlockingIOError):
                if server.type == socket.SOCK_STREAM and not name.startswith("connected"):
                    server.accept()[0].close()
                    found.append(name)
                elif server.recv(100):
                    found.append(name)
        return found


@contextmanager
def outside() -> Iterator[Outside]:
    with ExitStack() as stack:
        made = Outside(stack.enter_context(open_folder()))

        def serve(name: str, family: int, kind: int, address: Any) -> None:
            server = made.servers[name] = stack.enter_context(socket.socket(family, kind))
            server.bind(address)
            if family != socket.AF_UNIX:
                made.ports[name] = server.getsockname()[1]
            if kind == socket.SOCK_STREAM:
                server.listen(50)

        serve("tcp", socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0))
        serve("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
        serve("udp", socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0))
        serve("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0glasshouse-{os.getpid()}")
        serve("abstract-datagrams", socket.AF_UNIX, socket.SOCK_DGRAM, f"\0glasshouse-d-{os.getpid()}")
        (made.folder / "visible").mkdir()
        for place in ("", "visible/"):
            serve(f"{place}named", socket.AF_UNIX, socket.SOCK_STREAM, str(made.folder / f"{place}named"))
            serve(
                f"{place}datagrams", socket.AF_UNIX, socket.SOCK_DGRAM, str(made.folder / f"{place}datagrams")
            )
            for name in ("named", "datagrams"):
                (made.folder / place / name).chmod(0o777)
        for name, pair in (("connected", socket.socketpair()), ("connected tcp", _tcp_pair())):
            made.servers[name], mine = map(stack.enter_context, pair)
            made.inherited.append(mine)
        made.secret = ctypes.create_string_buffer(b"of the parent")
        made.sibling = os.fork()
        if made.sibling == 0:
            signal.pause()
            os._exit(0)
        try:
            yield made
        finally:
            os.kill(made.sibling, signal.SIGKILL)
            os.waitpid(made.sibling, 0)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return server.accept()[0], one


def sends(made: Outside, scratch: Path, number: int) -> dict[str, Callable[[], Any]]:
    """Every way to bring a byte to a server outside. `number`: a descriptor that led there."""
    parent = os.getppid()

    def tcp(address: str, name: str) -> None:
        with socket.create_connection((address, made.ports[name]), timeout=5) as one:
            one.sendall(b"x")

    def unix(address: str) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(address)

    def datagram(address: Any, family: int = socket.AF_UNIX) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", address)

    def from_pair(kind: int, address: str) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        with one, other:
            one.sendto(b"x", address)

    def reconnected(address: str) -> None:
        one, other = socket.socketpair()
        with one:
            other.close()
            one.connect(address)

    def link(to: Path) -> str:
        path = scratch / "way-out"
        path.unlink(missing_ok=True)
        path.symlink_to(to)
        return str(path)

    def program() -> None:
        code = f"echo x > /dev/tcp/127.0.0.1/{made.ports['tcp']}"
        if os.spawnv(os.P_WAIT, "/bin/bash", ["bash", "-c", f"{code} 2>/dev/null"]) != 0:
            raise OSError(errno.EACCES, "the program failed")

    def inherited() -> None:
        os.write(number, b"x")

    def reopened() -> None:
        with socket.socket(fileno=os.dup(number)) as one:
            one.sendall(b"x")

    own = made.own
    found: dict[str, Callable[[], Any]] = {
        "tcp": lambda: tcp("127.0.0.1", "tcp"),
        "tcp6": lambda: tcp("::1", "tcp6"),
        "udp": lambda: datagram(("127.0.0.1", made.ports["udp"]), socket.AF_INET),
        "abstract": lambda: unix(f"\0glasshouse-{parent}"),
        "abstract datagram": lambda: datagram(f"\0glasshouse-d-{parent}"),
        "abstract from a pair": lambda: from_pair(socket.SOCK_DGRAM, f"\0glasshouse-d-{parent}"),
        "program": program,
        "inherited": inherited,
        "inherited socket": reopened,
    }
    if own is not None:
        found["tcp, not loopback"] = lambda: tcp(own, "tcp")
        found["udp, not loopback"] = lambda: datagram((own, made.ports["udp"]), socket.AF_INET)
    for place in (made.folder, made.folder / "visible"):
        named, datagrams = place / "named", str(place / "datagrams")
        found |= {
            f"{place.name} named": lambda named=named: unix(str(named)),
            f"{place.name} link": lambda named=named: unix(link(named)),
            f"{place.name} own root": lambda named=named: unix(f"/proc/self/root{named}"),
            f"{place.name} parent's root": lambda named=named: unix(f"/proc/{parent}/root{named}"),
            f"{place.name} datagram": lambda datagrams=datagrams: datagram(datagrams),
            f"{place.name} from a pair": lambda datagrams=datagrams: from_pair(socket.SOCK_DGRAM, datagrams),
            f"{place.name} from a stream": lambda named=named: from_pair(socket.SOCK_SEQPACKET, str(named)),
            f"{place.name} reconnected": lambda named=named: reconnected(str(named)),
        }
    return found


def test_without_confinement_the_attacks_arrive(tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    with outside() as made:
        for one in made.inherited:
            number = one.fileno()
            found = in_child(lambda n=number: {k: refusal(a) for k, a in sends(made, tmp_path, n).items()})
        assert {name: error for name, error in found.items() if error and "stream" not in name} == {
            name: "EISCONN" for name in found if "reconnected" in name
        }
        assert set(made.received()) == set(made.servers)


@every_mode
@pytest.mark.parametrize("abi", [linux.landlock_abi(), 1, 0])
def test_no_server_outside_receives_anything(mode: Mode, abi: int) -> None:
    """Also with the first Landlock, and without any: neither is what keeps the network away."""

    def before() -> None:
        linux.landlock_abi = lambda: abi
        module.landlock_abi = lambda: abi

    with outside() as made, scratch_of(mode) as scratch:
        for inherited in made.inherited:
            number = inherited.fileno()

            def work(held: Confinement, number: int = number) -> Any:
                return {name: refusal(action) for name, action in sends(made, held.scratch, number).items()}

            found = confined(mode, scratch, work, folders=[made.folder / "visible"], before=before)
            assert made.received() == []
            # Sent, but not out: to the child's own loopback, to /dev/null, to the other end of the pair.
            quiet = {name for name in found if name == "inherited" or "stream" in name}
            quiet |= {"udp"} if mode.namespaces else set()
            assert {name for name, error in found.items() if not error} <= quiet, found


@every_mode
@pytest.mark.parametrize("abi", [linux.landlock_abi(), 1, 0])
def test_an_open_network_opens_no_server_of_this_machine_by_a_unix_socket(mode: Mode, abi: int) -> None:
    def before() -> None:
        linux.landlock_abi = lambda: abi
        module.landlock_abi = lambda: abi

    with outside() as made, scratch_of(mode) as scratch:
        number = made.inherited[0].fileno()

        def work(held: Confinement) -> Any:
            for action in sends(made, held.scratch, number).values():
                refusal(action)
            return (
                held.network,
                refusal(lambda: socket.socket(40, socket.SOCK_STREAM)),
                refusal(lambda: call("io_uring_setup", 4, ctypes.create_string_buffer(120))),
            )

        found = confined(
            mode, scratch, work, folders=[made.folder / "visible"], before=before, network_open=True
        )
        assert found == ["open", "EACCES", "EPERM"]
        assert set(made.received()) == {"tcp", "tcp6", "udp"}


@every_mode
def test_what_held_is_said_as_it_is(mode: Mode) -> None:
    def work(held: Confinement) -> Any:
        return held.network, held.sockets, held.reading, held.shm, ways_out(held.network)

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == [
            "namespace" if mode.namespaces else "seccomp",
            "mounts" if mode.namespaces and mode.pivot else "refused",
            "landlock",
            "private" if mode.namespaces else "none",
            [],
        ]


FAMILIES = {
    "packet": 17,
    "vsock": 40,
    "alg": 38,
    "bluetooth": 31,
    "tipc": 30,
    "rds": 21,
    "can": 29,
    "xdp": 44,
}


@every_mode
def test_other_families_raw_sockets_and_names(mode: Mode) -> None:
    def work(held: Confinement) -> Any:
        found = {}
        for name, family in FAMILIES.items():
            kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
            found[name] = sorted({refusal(lambda f=family, k=k: socket.socket(f, k)) for k in kinds})
        found["families"] = [
            family for family in range(46)
            if refusal(lambda family=family: socket.socket(family, socket.SOCK_STREAM)) != "EACCES"
        ]  # fmt: skip
        found["raw"] = [refusal(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))]
        found["uevents"] = [refusal(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15))]
        found["pair"] = [refusal(lambda: call("socketpair", socket.AF_TIPC, 1, 0, (ctypes.c_int * 2)()))]
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("example.com", 80)
        return found

    with scratch_of(mode) as scratch:
        found = confined(mode, scratch, work)
    assert set(found.pop("raw")) <= {"EPERM", "EACCES"}
    # AF_NETLINK has no streams, so it is said to be missing there: it may be made.
    families = [socket.AF_UNIX] if mode.namespaces and mode.pivot else []
    families += [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK] if mode.namespaces else []
    assert found.pop("families") == list(map(int, families))
    assert all(errors == ["EACCES"] for errors in found.values()), found


@every_mode
def test_nothing_goes_around_it(mode: Mode) -> None:
    with outside() as made, scratch_of(mode) as scratch:
        parent, sibling = os.getpid(), made.sibling
        address = ctypes.addressof(made.secret)

        def read_memory(pid: int) -> int:
            into = ctypes.create_string_buffer(8)
            local = linux._Vector(ctypes.addressof(into), 8)
            remote = linux._Vector(address, 8)
            return call("process_vm_readv", pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)

        def ring() -> None:
            for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
                if refusal(lambda name=name: call(name, 4, ctypes.create_string_buffer(120), 0)) != "EPERM":
                    return
            raise OSError(errno.EPERM, "each of them")

        def forked(flags: int) -> None:
            pid = call("clone", ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None)
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)

        tries: dict[str, Callable[[], Any]] = {
            "io_uring": ring,
            "ptrace of a sibling": lambda: call("ptrace", 0x4206, sibling, None, None),
            "ptrace of the parent": lambda: call("ptrace", 0x4206, parent, None, None),
            "memory of the parent": lambda: read_memory(parent),
            "memory of a sibling": lambda: read_memory(sibling),
            "descriptor of the parent": lambda: call("pidfd_getfd", os.pidfd_open(parent), 0, 0),
            "namespaces of the parent": lambda: call("setns", os.pidfd_open(parent), 0x40000000),
            "unshare user": lambda: call("unshare", 0x10000000),
            "unshare network": lambda: call("unshare", 0x40000000),
            "unshare time": lambda: call("unshare", 0x80),
            "clone user": lambda: forked(0x10000000),
            "clone user and network": lambda: forked(0x50000000),
            "clone3": lambda: call("clone3", ctypes.create_string_buffer(88), 88),
            "keys": lambda: call("add_key", b"user", b"name", b"value", 5, -3),
            "shared memory": lambda: call("shmget", 0, 4096, 0o600),
            "queue": lambda: call("msgget", 0, 0o600),
            "bpf": lambda: call("bpf", 0, ctypes.create_string_buffer(128), 128),
            "faults": lambda: call("userfaultfd", 1),
            "mount": lambda: call(165 if COLUMN == 0 else 40, b"/usr", b"/usr", None, 1 << 12, None),
            "signal": lambda: os.kill(parent, 0),
            "parent's descriptor": lambda: os.open(f"/proc/{parent}/fd/1", os.O_WRONLY),
            "parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
            "parent's network": lambda: os.open(f"/proc/{parent}/ns/net", os.O_RDONLY),
        }
        if COLUMN == 0:
            tries["x32"] = lambda: call(seccomp._X32_BIT + 41, socket.AF_INET, socket.SOCK_STREAM, 0)
        found = confined(mode, scratch, lambda _: {name: refusal(action) for name, action in tries.items()})
    assert found.pop("clone3") == "ENOSYS"  # so that the C library takes clone()
    assert found.pop("x32", "EPERM") == "EPERM"
    assert {name: error for name, error in found.items() if error not in ("EPERM", "EACCES")} == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a call of another architecture")
@every_mode
def test_calls_of_another_architecture_are_refused(mode: Mode) -> None:
    """int 0x80 with i386's socket(2), which has another number: the kernel may have it, or not."""
    code = bytes.fromhex("53b867010000bb02000000b90100000031d2cd805bc3")

    def work(_: Confinement) -> Any:
        child = os.fork()
        if child == 0:
            page = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            made = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            os._exit(0 if made >= 0 else 3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) in (3, -signal.SIGSEGV)


@with_namespaces
def test_its_own_loopback_works(mode: Mode) -> None:
    def work(_: Confinement) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as server:
            child = os.fork()
            if child == 0:
                with socket.create_connection(server.getsockname()) as one:
                    one.sendall(b"a gradient")
                os._exit(0)
            with server.accept()[0] as one:
                said = one.recv(100).decode()
            os.waitpid(child, 0)
        return said, [name for _, name in socket.if_nameindex()]

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == ["a gradient", ["lo"]]


@pytest.mark.train
@with_namespaces
def test_ranks_meet_over_gloo(mode: Mode) -> None:
    if mode.user is not None:
        pytest.skip("torch lies where this user cannot read")
    import torch.distributed as dist

    def rank(number: int, store: Path) -> float:
        import torch

        dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
        value = torch.tensor(float(number + 1))
        dist.all_reduce(value)
        dist.destroy_process_group()
        return float(value)

    def work(held: Confinement) -> Any:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = held.scratch / "store"
        child = os.fork()
        if child == 0:
            os._exit(int(rank(1, store)))
        return rank(0, store), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == [3.0, 3]


@every_mode
def test_streams_of_pairs_work_and_memory_of_its_own_is_read(mode: Mode) -> None:
    """What asyncio, multiprocessing's pipes and the search for residue are made of."""

    def work(_: Confinement) -> Any:
        one, other = socket.socketpair()
        one.sendall(b"said")
        secret = ctypes.create_string_buffer(b"own memory", 16)
        into = bytearray(16)
        return other.recv(9).decode(), linux.read_own_memory(ctypes.addressof(secret), memoryview(into))

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == ["said", 16]


@every_mode
def test_no_capability_is_left(mode: Mode) -> None:
    """Root's own change others' files without opening them. Who makes a user namespace has all of them in it,
    and so would every program that it starts.
    """

    def work(_: Confinement) -> Any:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {
            name: int(value, 16)
            for name, _, value in (line.partition(":\t") for line in lines)
            if "Cap" in name
        }

    with scratch_of(mode) as scratch:
        found = confined(mode, scratch, work)
    assert found["CapEff"] == found["CapPrm"] == found["CapInh"] == found["CapAmb"] == 0
    own = mode.namespaces and (mode.user is not None or not mode.sys_admin)
    assert found["CapBnd"] == 0 or not (own or mode.user is None)


@every_mode
def test_it_stays_closed_to_others_and_dies_with_its_parent(mode: Mode) -> None:
    """A user namespace is a change of credentials: some changes reset both."""

    def before() -> None:
        linux.harden()
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)

    def work(_: Confinement) -> Any:
        dies = ctypes.c_int()
        libc.prctl(2, ctypes.byref(dies), 0, 0, 0)  # PR_GET_PDEATHSIG
        state = linux.hardening_state()
        return state.dumpable, state.no_new_privs, dies.value

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work, before=before) == [0, True, int(signal.SIGKILL)]


def test_closed_descriptors_keep_their_numbers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.fileno()

        def work() -> Any:
            kept = os.dup(number)
            closed = close_inherited([kept, *_answers()])
            server.close()  # must not close what somebody else opened since
            fresh = os.open("/dev/zero", os.O_RDONLY)
            return closed > 0, str(Path(f"/proc/self/fd/{kept}").readlink())[:7], os.read(fresh, 1).hex()

        assert in_child(work) == [True, "socket:", "00"]


def _answers() -> list[int]:
    """Every pipe that is open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith("pipe:"):
                found.append(int(path.name))
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("own_network", [True, False])
@pytest.mark.parametrize("unix_sockets", [True, False])
def test_the_filter_of_each_machine_decides_as_written(
    machine: str, own_network: bool, unix_sockets: bool
) -> None:
    """The program run by a small interpreter of such programs, also for the machine that this is not."""
    column = ["x86_64", "aarch64"].index(machine)
    architecture = seccomp._MACHINES[machine].architecture
    made = seccomp.program(machine, own_network=own_network, unix_sockets=unix_sockets, pid=77)

    def answer(name: str | int, *arguments: int, architecture: int = architecture) -> str:
        number = name if isinstance(name, int) else (seccomp._REFUSED | seccomp._NUMBERS)[name][column]
        result = interpret(made, struct.pack("=IIQ6Q", number, architecture, 0, *[*arguments, *[0] * 6][:6]))
        return "" if result == seccomp._ALLOW else errno.errorcode[result - seccomp._ERRNO]

    assert all(answer(name) == "EPERM" for name in seccomp._REFUSED)
    assert answer(0) == answer(1000) == ""
    assert answer("socket", 2, 1, architecture=0x40000003) == "EPERM"  # i386
    if machine == "x86_64":
        assert answer(0x40000000) == answer(0x40000000 + 41, 1, 1) == "EPERM"
    assert answer("clone3") == "ENOSYS"
    assert (answer("clone", 0x01200011), answer("clone", 0x003D0F00)) == ("", "")  # fork(3), a thread
    assert {answer(c, 1 << bit) for c in ("clone", "unshare") for bit in (17, 25, 26, 27, 28, 29, 30)} == {
        "EPERM"
    }
    assert answer("unshare", 0x400) == ""  # CLONE_FILES
    assert (answer("process_vm_readv", 77), answer("process_vm_readv", 78)) == ("", "EPERM")
    allowed = {family for family in range(46) if not answer("socket", family, 1)}
    assert allowed == ({1} if unix_sockets else set()) | ({2, 10, 16} if own_network else set())
    assert {answer("socket", 16, 3, protocol) for protocol in range(1, 23)} == {"EACCES"}
    assert answer("socket", (1 << 32) + 40, 1) == "EACCES"  # the kernel looks at 32 bits
    assert {answer(name) for name in ("connect", "bind", "listen")} == {
        "" if own_network or unix_sockets else "EACCES"
    }
    limits = [(0, 1, 8), (7, 1, 0), (7, 1, 8), (7, 1, 1 << 32), (1 << 32, 1, 8)]
    assert [answer("prlimit64", *one) for one in limits] == ["", "", "EPERM", "EPERM", ""]
    for name, which in (("setpriority", 0), ("ioprio_set", 1)):
        assert [answer(name, kind, 0) for kind in range(4)] == [
            "" if kind == which else "EPERM" for kind in range(4)
        ]
        assert answer(name, which, 7) == "EPERM"
    for name in seccomp._OWN_SCHEDULE:
        assert (answer(name, 0), answer(name, 7)) == ("", "EPERM")
    for name, index in seccomp._MODE_OF.items():
        assert [answer(name, *[9] * index, mode) for mode in (0o1777, 0o4755, 0o2755)] == [
            "", "EPERM", "EPERM",
        ]  # fmt: skip
    assert answer("ioctl", 3, 0x5413) == ""  # TIOCGWINSZ
    assert {answer("ioctl", 3, request) for request in seccomp._FILE_IOCTLS} == {"EPERM"}
    kinds = {kind for kind in range(11) if not answer("socketpair", 1, kind | 0o2004000)}
    assert kinds == (set(range(11)) if unix_sockets else {1, 5})
    assert answer("socketpair", 30, 1) == "EACCES"


def interpret(instructions: list[Any], data: bytes) -> int:
    at, held = 0, 0
    while True:
        code, yes, no, value = instructions[at]
        at += 1
        if code == 0x20:
            held = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:
            held &= value
        elif code == 0x06:
            return int(value)
        else:
            at += yes if {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code] else no
