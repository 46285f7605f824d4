"""Namespaces of the trainer's own: a network of one loopback, a root of nothing but what it reads.

Sources: namespaces(7), user_namespaces(7), mount_namespaces(7), mount(2), mount_setattr(2), umount(2),
pivot_root(2), netdevice(7), proc_pid_mountinfo(5), include/uapi/linux/{sched,mount,sockios,if}.h;
the system call tables of x86-64 and arm64.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import re
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from glasshouse.runtime.linux import SHM

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 5, 1 << 12, 1 << 14, 1 << 18
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # MS_ and MOUNT_ATTR_ have the same
# What a mount says of itself, as flags of mount(2): a remount must name those that it is to keep.
_OPTIONS = {
    "ro": _RDONLY, "nosuid": _NOSUID, "nodev": _NODEV, "noexec": 1 << 3, "nosymfollow": 1 << 8,
    "noatime": 1 << 10, "nodiratime": 1 << 11, "relatime": 1 << 21,
}  # fmt: skip
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # Linux 5.12
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_MAX_LINKS = 40  # as the kernel's own path walk (MAXSYMLINKS)
_SKELETON = ".root"
_TMP = ".tmp"  # in the scratch folder: what the new root calls /tmp
_KERNEL = (Path("/proc"), Path("/sys"))
_MAX_ENTRIES = 10**7  # of visible folders, gone through for sockets
_STREAMS = ("fd", "stdin", "stdout", "stderr")  # links of /dev into /proc/self


def own_namespaces(flags: int) -> bool:
    """Put this process into new namespaces; where it may not, into a user namespace of its own first.

    A user namespace can be had without privilege where the machine allows it. Access to files stays as it
    was: the kernel goes by the user outside. Inside, that user may have no number: who is not dumpable does
    not own its /proc/self/uid_map, so an ordinary user who is hardened is seen as 65534 from then on.
    """
    if _libc.unshare(ctypes.c_int(flags)) == 0:
        return True
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(ctypes.c_int(CLONE_NEWUSER | flags)) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def loopback_up() -> bool:
    """Bring this network namespace's own loopback up; whether it is."""
    request = struct.pack("16sh22x", b"lo", _IFF_UP)  # struct ifreq
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
    except OSError:
        return False
    return True


def _mount(source: Path | str, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def mounts() -> list[tuple[Path, frozenset[str]]]:
    """The mounts that this process sees, and each one's own options."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words = line.split()
        place = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), words[4])
        found.append((Path(os.fsdecode(place)), frozenset(words[5].decode("ascii", "replace").split(","))))
    return found


def _restrict(target: Path, flags: int, *, beneath: bool = True) -> None:
    """Put flags on a mount, and on all those beneath it, besides those that they have."""
    attribute = struct.pack("=QQQQ", flags, 0, 0, 0)  # struct mount_attr
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if beneath else 0),
        attribute,
        ctypes.c_size_t(len(attribute)),
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.ENOSYS, errno.EPERM):  # EPERM: of a container's filter that knows no such call
        raise OSError(number, os.strerror(number), str(target))
    for place, options in mounts():
        if place == target or (beneath and place.is_relative_to(target)):
            kept = sum(_OPTIONS.get(option, 0) for option in options)
            _mount("none", place, _MS_REMOUNT | _MS_BIND | kept | flags)


def private_root(scratch: Path, visible: Iterable[Path], devices: Iterable[Path] = ()) -> bool:
    """Give this process and its children a root that holds `visible` and `devices` alone, and `scratch` as
    /dev/shm. Nothing there can be changed but `scratch`.

    Landlock asks for no right to change a file's owner, mode, times or attributes: here the mounts are
    read-only. A device opens for writing all the same. Of `devices` a folder (in /proc) leaves the mount that
    it lies on as it is.

    No named Unix socket of a server outside can be reached either, which Landlock does not see before Linux
    7.1: one lies beneath a visible folder, or nowhere. Those there now are covered: connecting is no writing
    to a mount. `scratch` stays where it was besides, unless that is in /dev/shm. The root itself is a folder
    in it. Symbolic links on the way to what is visible are made again.

    False where it is refused; nothing is then mounted. Needs one thread. OSError where it cannot be undone.
    """
    number = _SYS_PIVOT_ROOT.get(platform.machine())
    if number is None or not SHM.is_dir() or not own_namespaces(CLONE_NEWNS):
        return False
    root = scratch / _SKELETON
    try:
        _mount("none", Path("/"), _MS_REC | _MS_PRIVATE)
        root.mkdir(mode=0o755)
        _mount(root, root, _MS_BIND)
    except OSError:
        return False
    try:
        _build(root, scratch, visible, list(devices))
        os.chdir(root)
        # Both at one place: the old root lies on the new one, and is taken off (pivot_root(2), NOTES).
        if _libc.syscall(ctypes.c_long(number), b".", b".") != 0:
            raise OSError(ctypes.get_errno(), "pivot_root")
    except OSError:
        # What is mounted beneath the scratch folder could be written there. Never leave it.
        os.chdir("/")
        if _libc.umount2(os.fsencode(root), ctypes.c_int(_MNT_DETACH)) != 0:
            raise
        return False
    if _libc.umount2(b".", ctypes.c_int(_MNT_DETACH)) != 0:
        raise OSError(ctypes.get_errno(), "the old root stays")
    os.chdir("/")
    return True


def _build(root: Path, scratch: Path, visible: Iterable[Path], devices: list[Path]) -> None:
    places = {Path("/dev/shm"): scratch}  # noqa: S108 -- SHM, of the new root
    for path in sorted([*visible, *devices]):
        if not path.is_relative_to(scratch):
            place = _follow(root, path)
            if not any(place.is_relative_to(above) for above in places):
                places[place] = place
    if not scratch.is_relative_to(SHM):
        places[_follow(root, scratch)] = scratch
    changed = [path for path in devices if path.is_dir()]
    outside = [place for place, source in places.items() if source != scratch]
    sockets = _sockets_beneath(outside)
    sockets |= {path for path in _named_sockets() if any(path.is_relative_to(place) for place in outside)}
    # A folder before what lies in it, which is then there.
    for place in sorted(places):
        source, target = places[place], _in(root, place)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if source == scratch:
            _mount(source, target, _MS_BIND)  # without what is mounted in it: this root is
            continue
        _mount(source, target, _MS_BIND | _MS_REC)
        if not any(path.is_relative_to(place) for path in changed):
            _restrict(target, _RDONLY if source.is_char_device() else _RDONLY | _NODEV)
    for name in _STREAMS:
        link = Path("/dev", name)
        if link.is_symlink():
            _in(root, link).symlink_to(link.readlink())
    if not _in(root, Path("/tmp")).exists():  # noqa: S108 -- of the new root, where it lies in memory
        (scratch / _TMP).mkdir(mode=0o700, exist_ok=True)
        (root / "tmp").symlink_to(SHM / _TMP)
    for path in sockets:
        if not path.is_relative_to(scratch) and path.is_socket():
            _mount(Path(os.devnull), _in(root, path), _MS_BIND)
            _restrict(_in(root, path), _RDONLY | _NODEV)
    _restrict(root, _RDONLY, beneath=False)
    _restrict(root, _NOSUID)


def _in(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _follow(root: Path, path: Path) -> Path:
    """Return where `path` leads, and make the symbolic links on its way in `root`."""
    ahead, at = list(path.parts[1:]), Path("/")
    for _ in range(_MAX_LINKS):
        while ahead:
            here = at / ahead.pop(0)
            if here.is_symlink():
                break
            at = here
        else:
            return at
        leads = here.readlink()
        if not _in(root, here).is_symlink():
            _in(root, at).mkdir(parents=True, exist_ok=True)
            _in(root, here).symlink_to(leads)
        ahead = [*Path(os.path.normpath(at / leads)).parts[1:], *ahead]
        at = Path("/")
    raise OSError(f"{path}: too many symbolic links")


def _sockets_beneath(places: Iterable[Path]) -> set[Path]:
    """The sockets that lie at or beneath `places`, whoever made them and under whatever name.

    OSError where there is too much to go through. The kernel's own file systems hold none.
    """
    found, folders, left = set(), [], _MAX_ENTRIES
    for place in places:
        if place.is_socket():
            found.add(place)
        elif place.is_dir() and place not in _KERNEL:
            folders.append(str(place))
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                left -= 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                    path = Path(entry.path)
                    if path.is_socket():
                        found.add(path)
        if left < 0:
            raise OSError(errno.E2BIG, "too many files to look for sockets among")
    return found


def _named_sockets() -> list[Path]:
    """The named sockets of this network namespace that can be found under the names they were given.

    One may lie in a folder that this user can enter and not list (proc_pid_net(5)).
    """
    found = []
    for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7].startswith(b"/"):
            path = Path(os.fsdecode(words[7]))
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(path.stat().st_mode):
                    found.append(path.resolve())
    return found
