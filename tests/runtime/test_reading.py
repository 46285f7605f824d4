"""A private project reads its own files, an interpreter and the system's programs, no more; and it trains."""

# ruff: noqa: PTH208 -- os.listdir opens at once

from __future__ import annotations

import errno
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime import confine as module
from glasshouse.runtime import linux
from glasshouse.runtime.confine import Confinement, readable_outside
from glasshouse.runtime.readable import interpreter_paths, readable_paths
from tests.runtime.confined import (
    MODES,
    Mode,
    as_root,
    confined,
    every_mode,
    open_folder,
    scratch_of,
    with_namespaces,
)
from tests.runtime.test_linux import in_child, needs_landlock, refusal

pytestmark = needs_landlock


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text(name)


def test_the_list_is_what_there_is_of_a_known_set(tmp_path: Path) -> None:
    tree(
        tmp_path, "usr/lib/libc.so", "opt/", "proc/", "dev/null", "etc/passwd", "etc/shadow",
        "etc/ssl/cert.pem", "etc/python3.11/sitecustomize.py", "etc/python3.11/secret", "root/.ssh/id",
        "home/somebody/", "var/log/", "venv/bin/python", "project/main.py",
    )  # fmt: skip
    (tmp_path / "lib").symlink_to("usr/lib")
    found = readable_paths([tmp_path / "project", tmp_path / "gone"], [tmp_path / "venv"], root=tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "dev/null", "etc/passwd", "etc/python3.11/sitecustomize.py", "etc/ssl", "lib", "opt", "proc",
        "project", "usr", "venv",
    ]  # fmt: skip


def test_what_an_interpreter_names_opens_no_home(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/root")
    wide = ["/", "/root", "/home", "/home/somebody", "/tmp", "/workspace", "/etc", "/var", "/dev/shm"]
    named = [*map(Path, wide), tmp_path / "link", tmp_path]
    assert readable_paths([], named, root=tmp_path / "none") == [tmp_path]


def test_what_is_hidden_is_left_out_of_what_holds_it(tmp_path: Path) -> None:
    tree(tmp_path, "opt/cuda/", "opt/pods/ours/venv/bin/python", "opt/pods/other/secret", "usr/")
    pods = tmp_path / "opt/pods"
    found = readable_paths([], [pods / "ours/venv"], [pods], root=tmp_path)
    assert found == [tmp_path / "opt/cuda", pods / "ours/venv", tmp_path / "usr"]
    assert readable_paths([], [tmp_path / "opt"], [pods / "other"], root=tmp_path / "none") == [
        tmp_path / "opt/cuda", pods / "ours",
    ]  # fmt: skip


def test_the_interpreter_is_all_of_it() -> None:
    found = interpreter_paths()
    for path in (
        sys.prefix,
        sys.base_prefix,
        sysconfig.get_path("stdlib"),
        os.__file__,
        errno.__spec__.origin,
    ):
        place = Path(str(path))
        assert not place.is_absolute() or any(place.is_relative_to(one) for one in found), path
    listed = readable_paths([], found)
    for path in (Path(sys.executable).resolve(), Path(os.__file__).resolve(), Path("/usr/bin/env").resolve()):
        assert any(path.is_relative_to(one.resolve()) for one in listed), path


@dataclass
class Around:
    """Somebody else's files, in the places where they would be."""

    folder: Path
    inherited: int

    def attempts(self, scratch: Path) -> dict[str, Callable[[], Any]]:
        """Every way to read one of them."""
        secret, parent = self.folder / "allocation" / "secret", os.getppid()

        def read(path: Path | str) -> None:
            with Path(path).open("rb") as stream:
                stream.read(1)

        def through_link(to: Path | str) -> None:
            link = scratch / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(to)
            read(link)

        def hard_link() -> None:
            os.link(secret, scratch / "hard")
            read(scratch / "hard")

        def moved() -> None:
            secret.rename(scratch / "moved")
            read(scratch / "moved")

        def from_inherited_folder() -> None:
            os.close(os.open("secret", os.O_RDONLY, dir_fd=self.inherited))

        def from_inherited_folder_by_proc() -> None:
            read(f"/proc/self/fd/{self.inherited}/secret")

        def from_parents_folder() -> None:
            read(f"/proc/{parent}/fd/{self.inherited}/secret")

        def execute() -> None:
            if os.spawnv(os.P_WAIT, str(self.folder / "program"), ["program"]) != 0:
                raise OSError(errno.EACCES, "did not start")

        def by_program() -> None:
            if os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", f"cat {secret} >/dev/null 2>&1"]) != 0:
                raise OSError(errno.EACCES, "did not read")

        return {
            "allocation": lambda: read(secret),
            "allocation's folder": lambda: os.listdir(secret.parent),
            "key": lambda: read(self.folder / "home/.ssh/id_ed25519"),
            "settings": lambda: os.listdir(self.folder / "home/.config"),
            "stranger's file": lambda: read(self.folder / "stranger"),
            "own root": lambda: read(f"/proc/self/root{secret}"),
            "own thread's root": lambda: read(f"/proc/thread-self/root{secret}"),
            "parent's root": lambda: read(f"/proc/{parent}/root{secret}"),
            "parent's folder": lambda: read(f"/proc/{parent}/cwd/pyproject.toml"),
            "up and away": lambda: read(f"{scratch}/../../..{secret}"),
            "link": lambda: through_link(secret),
            "link to a folder": lambda: os.listdir(through(scratch, secret.parent)),
            "link to a root": lambda: through_link(f"/proc/self/root{secret}"),
            "hard link": hard_link,
            "moved": moved,
            "inherited folder": from_inherited_folder,
            "inherited folder by /proc": from_inherited_folder_by_proc,
            "parent's descriptor": from_parents_folder,
            "inherited, opened before": lambda: _readable(self.inherited),
            "program": execute,
            "by a program": by_program,
            "root": lambda: os.listdir("/"),
            "etc": lambda: os.listdir("/etc"),
            "shadow": lambda: read("/etc/shadow"),
            "hostname": lambda: read("/etc/hostname"),
            "root's home": lambda: os.listdir("/root"),
            "home": lambda: os.listdir("/home"),
            "var": lambda: os.listdir("/var"),
            "tmp": lambda: os.listdir("/tmp"),
        }


def through(scratch: Path, to: Path) -> Path:
    link = scratch / "folder-link"
    link.unlink(missing_ok=True)
    link.symlink_to(to)
    return link


def _readable(descriptor: int) -> None:
    os.listdir(descriptor)


@pytest.fixture
def around() -> Iterator[Around]:
    with open_folder() as folder:
        tree(
            folder, "allocation/secret", "home/.ssh/id_ed25519", "home/.config/x", "stranger", "mine/main.py"
        )
        shutil.copy("/bin/true", folder / "program")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        descriptor = os.open(folder / "allocation", os.O_RDONLY)
        yield Around(folder, descriptor)
        os.close(descriptor)


def test_without_confinement_everything_is_read(around: Around, tmp_path: Path) -> None:
    """But for what this machine keeps closed, or does not have."""
    found = in_child(lambda: {n: refusal(a) for n, a in around.attempts(tmp_path).items() if n != "moved"})
    closed = {name for name, error in found.items() if error}
    assert closed <= {"up and away", "hostname", "shadow", "root's home", "link to a folder"}


@as_root
@every_mode
def test_nothing_of_anybody_else_is_read(mode: Mode, around: Around) -> None:
    own = around.folder / "mine"

    def work(held: Confinement) -> Any:
        found = around.attempts(held.scratch)
        fine = {
            "folder": (own / "main.py").read_text,
            "folder's list": lambda: os.listdir(own),
            "scratch": lambda: (held.scratch / "x").write_text("x"),
            "users": lambda: Path("/etc/passwd").read_text(),
            "itself": lambda: Path("/proc/self/status").read_bytes(),
            "processors": lambda: os.listdir("/sys/devices/system/cpu"),
            "zeros": lambda: os.open("/dev/zero", os.O_RDONLY),
            "random": lambda: os.open("/dev/urandom", os.O_RDONLY),
            "null": lambda: Path("/dev/null").write_text("x"),
            "program": lambda: _must(os.spawnv(os.P_WAIT, "/bin/true", ["true"])),
            "streams": lambda: _must(
                os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "echo x | cat /dev/stdin > /dev/null"])
            ),
        }
        written = {
            "folder": lambda: (own / "main.py").write_text("x"),
            "beside": lambda: (own / "new").write_text("x"),
            "system": lambda: Path("/usr/glasshouse-probe").write_text("x"),
            "etc": lambda: os.open("/etc/passwd", os.O_WRONLY),
            "root": lambda: Path("/glasshouse-probe").write_text("x"),
            "skeleton": lambda: (held.scratch / ".root/usr/glasshouse-probe").write_text("x"),
        }
        return [{name: refusal(a) for name, a in part.items()} for part in (found, fine, written)]

    with scratch_of(mode) as scratch:
        found, fine, written = confined(mode, scratch, work, folders=[own])
    assert set(found.values()) <= {"EACCES", "ENOENT", "EXDEV", "ENOTDIR"}, found
    assert set(fine.values()) == {""}, fine
    # The skeleton is a folder of the scratch folder: what is written there is seen nowhere else.
    assert written.pop("skeleton") == ("" if mode.namespaces else "ENOENT")
    assert set(written.values()) <= {"EACCES", "EXDEV", "EROFS"}, written
    assert (own / "main.py").read_text() == "mine/main.py"
    assert not list(Path("/usr").glob("glasshouse-probe*"))


def _must(code: int) -> None:
    if code != 0:
        raise OSError(errno.EACCES, "did not start")


@as_root
def test_a_hidden_folder_beside_what_is_read_is_not(around: Around) -> None:
    """As a pod's folder beneath /opt would be."""
    mode = MODES["root"]

    def work(_: Confinement) -> Any:
        return [refusal((around.folder / name).read_text) for name in ("allocation/secret", "stranger")]

    with scratch_of(mode) as scratch, pytest.MonkeyPatch.context() as patch:
        paths = [around.folder, *interpreter_paths()]
        patch.setattr(module, "interpreter_paths", lambda: paths)
        assert confined(mode, scratch, work, hidden=[around.folder / "allocation"])[0] in ("EACCES", "ENOENT")
        assert confined(mode, scratch, work, hidden=[around.folder / "allocation"])[1] == ""
        assert confined(mode, scratch, work) == ["", ""]


def test_the_self_check_sees_a_ruleset_that_does_not_hold(tmp_path: Path) -> None:
    def work() -> Any:
        before = readable_outside([])
        linux.restrict_access([tmp_path], [Path("/")], [])
        all_of_it = readable_outside([])
        linux.restrict_access([tmp_path], [Path("/usr")], [])
        return Path("/") in before, Path("/") in all_of_it, list(map(str, readable_outside([])))

    assert in_child(work) == [True, True, []]


def test_several_threads_are_refused(tmp_path: Path) -> None:
    """Namespaces and Landlock would hold for one of them alone."""
    import threading

    def work() -> Any:
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        try:
            module.confine(tmp_path, [], [], [])
        except LegError as error:
            return error.what
        finally:
            end.set()

    assert in_child(work) == "a process with several threads cannot be confined"


@as_root
@with_namespaces
def test_without_landlock_another_root_hides_the_same(mode: Mode, around: Around) -> None:
    """Its folders can be listed: they are the way to what is there. Writing is not confined, as is said."""
    if not mode.pivot:
        pytest.skip("nothing would hold")

    def before() -> None:
        linux._SYS_LANDLOCK_CREATE_RULESET = 1000

    def work(held: Confinement) -> Any:
        found = {name: refusal(action) for name, action in around.attempts(held.scratch).items()}
        return held.reading, held.writing, [name for name, error in found.items() if not error]

    with scratch_of(mode) as scratch:
        reading, writing, read = confined(
            mode, scratch, work, folders=[around.folder / "mine"], before=before
        )
    assert (reading, writing) == ("mounts", "none")
    assert set(read) <= {"root", "etc", "root's home", "home", "var", "tmp"}


@as_root
@every_mode
def test_a_scratch_folder_may_lie_on_a_disk(mode: Mode) -> None:
    """As it does where /dev/shm is no tmpfs: it stays at its place, and is the private /dev/shm besides."""

    def work(held: Confinement) -> Any:
        (held.scratch / "kept").write_text("x")
        return (
            str(held.scratch),
            held.shm,
            refusal(lambda: (held.scratch.parent / "no").write_text("x")) != "",
        )

    with open_folder() as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        if mode.user is not None:
            os.chown(scratch, mode.user, mode.user)
        said = confined(mode, scratch, work, hidden=[folder])
        assert said == [str(scratch), "private" if mode.namespaces else "none", True]
        assert (scratch / "kept").read_text() == "x"


@as_root
@every_mode
def test_no_mount_is_left_where_it_could_be_written(mode: Mode) -> None:
    """What is mounted beneath the scratch folder may be changed through it, whatever it is."""

    def work(held: Confinement) -> Any:
        mounts = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [str(one) for one in mounts if one != held.scratch and one.is_relative_to(held.scratch)]

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == []


@as_root
@every_mode
def test_threads_can_be_named_as_cuda_does(mode: Mode) -> None:
    """linux.gpu_devices() says OWN_THREADS where there is a GPU; its inode must be the child's own."""

    def work(_: Confinement) -> Any:
        comm = Path(f"/proc/self/task/{os.getpid()}/comm")
        return refusal(lambda: comm.write_text("cuda-like")), comm.read_text().strip()

    with scratch_of(mode) as scratch:
        found = confined(mode, scratch, work, devices=[linux.OWN_THREADS])
    assert found == ["", "cuda-like"]


TRAINABLE = {name: mode for name, mode in MODES.items() if mode.user is None}


@pytest.mark.train
@as_root
@pytest.mark.parametrize("mode", TRAINABLE.values(), ids=TRAINABLE)
def test_torch_is_imported_and_trains(mode: Mode) -> None:
    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, _train) > 0


def _train(held: Confinement) -> float:
    import torch

    os.environ["TMPDIR"] = str(held.scratch)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model(torch.ones(8, 4)).square().mean() + 1
    loss.backward()
    optimizer.step()
    torch.save(model.state_dict(), held.scratch / "model.pt")
    assert set(torch.load(held.scratch / "model.pt")) == {"weight", "bias"}
    return float(loss.detach())


@pytest.mark.train
@as_root
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["root", "root without CAP_SYS_ADMIN"])
def test_workers_load_data(name: str) -> None:
    """They need /dev/shm, and sockets with names in the scratch folder: both are there with namespaces."""

    def work(held: Confinement) -> Any:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        os.environ["TMPDIR"] = str(held.scratch)
        data = TensorDataset(torch.arange(64.0).view(32, 2))
        loader = DataLoader(data, batch_size=4, num_workers=2)
        return sum(float(rows.sum()) for (rows,) in loader)

    with scratch_of(MODES[name]) as scratch:
        assert confined(MODES[name], scratch, work) == sum(range(64))


@pytest.mark.train
@pytest.mark.soak
@as_root
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("mode", TRAINABLE.values(), ids=TRAINABLE)
def test_torch_compiles(mode: Mode) -> None:
    def work(held: Confinement) -> Any:
        for variable in ("TMPDIR", "HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
            os.environ[variable] = str(held.scratch)
        warnings.simplefilter("ignore")  # torch's own
        import torch

        made = torch.compile(lambda x: (x * 2 + 1).relu().sum())
        return float(made(torch.ones(16)))

    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == 48.0
