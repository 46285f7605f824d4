"""Forked children under a private project's confinement, in every form that a machine may allow."""

from __future__ import annotations

import codecs
import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse.runtime import linux, namespaces
from glasshouse.runtime.confine import Confinement, confine
from tests.runtime.test_linux import answering_child

USER = 12345  # an ordinary one, of nobody else
CAP_SYS_ADMIN = 21
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


@dataclass(frozen=True)
class Mode:
    """Who the child is, and whether it may make namespaces."""

    user: int | None = None
    sys_admin: bool = True
    namespaces: bool = True
    pivot: bool = True  # whether another root can be made there


MODES = {
    "root": Mode(),
    "root without CAP_SYS_ADMIN": Mode(sys_admin=False),
    "user": Mode(user=USER),
    "root, no other root": Mode(pivot=False),
    "user, no other root": Mode(user=USER, pivot=False),
    "root, filter only": Mode(namespaces=False),
    "root without CAP_SYS_ADMIN, filter only": Mode(sys_admin=False, namespaces=False),
    "user, filter only": Mode(user=USER, namespaces=False),
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
_NAMESPACED = {name: mode for name, mode in MODES.items() if mode.namespaces}
with_namespaces = pytest.mark.parametrize("mode", _NAMESPACED.values(), ids=_NAMESPACED)


@contextmanager
def scratch_of(mode: Mode) -> Iterator[Path]:
    """A scratch folder in /dev/shm, as a leg's, owned by the mode's user."""
    folder = Path(tempfile.mkdtemp(prefix="glasshouse-test-", dir=linux.SHM))
    try:
        if mode.user is not None:
            os.chown(folder, mode.user, mode.user)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter and change: pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="glasshouse-test-"))
    try:
        folder.chmod(0o777)
        yield folder
    finally:
        shutil.rmtree(folder)


def become(mode: Mode) -> None:
    """Be who the mode says, with what it may; for a forked child."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not mode.sys_admin:
        linux.drop_capabilities(frozenset({CAP_SYS_ADMIN}))
    if not mode.pivot:
        namespaces._SYS_PIVOT_ROOT[platform.machine()] = 1000  # no such call: it is refused at the very end
    if mode.user is not None:
        os.setgroups([])
        os.setgid(mode.user)
        os.setuid(mode.user)


def prepare() -> None:
    """Load what an ordinary user could not load from an interpreter in root's home."""
    sysconfig.get_paths()
    for encoding in ("ascii", "idna"):
        codecs.lookup(encoding)


def confined(
    mode: Mode,
    scratch: Path,
    work: Callable[[Confinement], Any],
    *,
    folders: Iterable[Path] = (),
    keep: Iterable[int] = (),
    hidden: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    before: Callable[[], None] = lambda: None,
    network_open: bool = False,
) -> Any:
    """Run `work` in a child that was confined as the trainer is; return what it returned."""
    prepare()

    def child(answer: int) -> Any:
        become(mode)
        before()
        linux.harden()
        opened = [*linux.gpu_devices(), *devices]
        held = confine(
            scratch, folders, opened, [answer, *keep], hidden,
            namespaces=mode.namespaces, network_open=network_open,
        )  # fmt: skip
        linux.drop_capabilities()
        return work(held)

    return answering_child(child)
