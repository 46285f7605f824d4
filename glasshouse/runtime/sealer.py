"""The sealer: a child of the trainer that encrypts outputs to the owner before they leave.

It is forked so that the content key never lives in the process that runs the owner's code. What
it inherits are host copies of the outputs; it touches no device and no torch function after fork.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.linux import PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.session import Tensor
from glasshouse.sealing.container import TensorSpec
from glasshouse.sealing.outputs import SealedOutputs, seal_outputs, seal_prepared
from glasshouse.sealing.packing import PreparedPackage, Sink, prepare
from glasshouse.sealing.tree import CANNOT_READ, INDEX_NAME, PIECE_BYTES, list_folder, read_tree
from glasshouse.sealing.tree_index import Skipped, as_path, shown

MAX_TREE_BYTES = 63 << 30  # sealed and padded, it is less than the 64 GiB that the controller fetches
MAX_REPORT_BYTES = 1 << 16
BEAT_SEC = 2.0
_BEAT = b"."  # begins no JSON
TREE_TRIES = 3  # how often a folder is looked at anew because something changed it while it was read


def seal_in_child(
    descriptor: int,
    tensors: Mapping[str, Tensor],
    *,
    owner_public: bytes,
    context: Mapping[str, str],
    padded: bool = False,
) -> SealedOutputs:
    """Seal `tensors` to the owner's public key, written to `descriptor`; return digests and size.

    padded: as `seal_package`. Runs in a forked child; raises LegError(Code.SEALING_FAILED) when that does not
    end well.
    """
    views = []
    keep = []
    for name, tensor in tensors.items():
        view, host = harness.tensor_bytes(tensor)
        keep.append((tensor, host))
        views.append((TensorSpec(name, harness.dtype_name(host), tuple(host.shape)), view))

    def seal(out: Sink, _beat: Callable[[], None]) -> SealedOutputs:
        return seal_outputs(
            out, owner_public=owner_public, context=context, files={}, tensors=iter(views), padded=padded
        )

    try:
        return _in_child(descriptor, seal)
    finally:
        for tensor, host in keep:
            harness.wipe_copy(tensor, host)


def seal_tree_in_child(
    descriptor: int,
    folder: Path,
    *,
    owner_public: bytes,
    context: Mapping[str, str],
    extra: Mapping[str, bytes],
    only: Callable[[str], bool] | None = None,
    max_bytes: int = MAX_TREE_BYTES,
    padded: bool = False,
    goes_on: Callable[[], None] | None = None,
) -> SealedOutputs:
    """Seal what lies under `folder` as `seal_tree` does, in a forked child, written to `descriptor`.

    `goes_on` is called here now and then while it does, and only then: at most every BEAT_SEC.
    Raises LegError(Code.SEALING_FAILED) when it does not end well. Whoever may still write there had better
    be killed before.
    """

    def seal(out: Sink, beat: Callable[[], None]) -> SealedOutputs:
        return seal_tree(
            out,
            folder,
            owner_public=owner_public,
            context=context,
            extra=extra,
            only=only,
            max_bytes=max_bytes,
            padded=padded,
            beat=beat,
        )

    return _in_child(descriptor, seal, goes_on)


def seal_tree(
    out: Sink,
    folder: Path,
    *,
    owner_public: bytes,
    context: Mapping[str, str],
    extra: Mapping[str, bytes],
    only: Callable[[str], bool] | None = None,
    piece_bytes: int = PIECE_BYTES,
    max_bytes: int = MAX_TREE_BYTES,
    padded: bool = False,
    threads: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> SealedOutputs:
    """Seal what lies under `folder` to the owner's public key; one odd file spoils nothing.

    What cannot be carried is left out, and the index says why. Where something changed while it was read for
    the manifest, everything is looked at anew, up to TREE_TRIES times; the index names what changed. What
    changes even then, between the manifest and the encryption, makes the digest of its piece another, and
    opening tells which files that concerns.

    Args:
        out: as `seal_outputs`.
        folder: it need not be there: then the tree is empty, and says so.
        owner_public: as `seal_outputs`.
        context: as `seal_outputs`.
        extra: small files beside the tree, such as a log, under plain names other than INDEX_NAME.
        only: says of a relative path whether it is to be taken; None takes everything.
        piece_bytes: as `read_tree`.
        max_bytes: as `read_tree`: a file that is too large is left out, and not everything with it.
        padded: as `seal_package`.
        threads: as `seal_package`.
        beat: called for each piece that was read.

    Raises:
        SealError: as `seal_outputs`, for what is wrong with `extra`, the key or the context.
        OSError: of `out`.
    """
    changed: dict[str, str] = {}
    seen: dict[str, str] = {}
    for turn in range(1, TREE_TRIES + 1):
        given_up = {name for name, reason in seen.items() if reason.startswith(CANNOT_READ)}
        package, seen = _prepared(
            folder,
            extra,
            only,
            piece_bytes=piece_bytes,
            max_bytes=max_bytes,
            changed=changed,
            given_up=given_up if turn == TREE_TRIES else (),
            padded=padded,
            threads=threads,
            beat=beat,
        )
        if not seen:
            break
        changed |= seen
    return seal_prepared(out, package, owner_public=owner_public, context=context)


def _prepared(
    folder: Path,
    extra: Mapping[str, bytes],
    only: Callable[[str], bool] | None,
    *,
    piece_bytes: int,
    max_bytes: int,
    changed: Mapping[str, str],
    given_up: Collection[str],
    padded: bool,
    threads: int | None,
    beat: Callable[[], None],
) -> tuple[PreparedPackage, dict[str, str]]:
    """Look at a folder and read it once; return also what changed meanwhile, and how."""
    skipped = list[Skipped]()
    files = dict[str, tuple[str, Path]]()
    for name, path in list_folder(folder, lambda name, reason: skipped.append(Skipped(name, reason))):
        if only is None or only(name):
            files[shown(as_path(name))] = (name, path)
    for name, reason in changed.items():
        if name in given_up:
            files.pop(name, None)
        if name not in files:
            skipped.append(Skipped(name, reason))
    seen: dict[str, str] = {}
    tree = read_tree(
        files.values(),
        on_odd=lambda _name, _reason: None,
        on_change=seen.__setitem__,
        skipped=skipped,
        changed=changed,
        piece_bytes=piece_bytes,
        max_bytes=max_bytes,
    )
    tensors = _Beating(tree.tensors, beat)
    package = prepare(
        files={**extra, INDEX_NAME: tree.index}, tensors=tensors, extra={}, threads=threads, padded=padded
    )
    return package, dict(seen)


class _Beating:
    """What is gone through, once or more; `beat` is called for each piece of it."""

    def __init__(self, pieces: Iterable[tuple[TensorSpec, memoryview]], beat: Callable[[], None]) -> None:
        self._pieces = pieces
        self._beat = beat

    def __iter__(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        for piece in self._pieces:
            self._beat()
            yield piece


class _Beats:
    """Writes one byte to a pipe, at most every BEAT_SEC."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= BEAT_SEC:
            self._last = now
            os.write(self._descriptor, _BEAT)


def _in_child(
    descriptor: int,
    seal: Callable[[Sink, Callable[[], None]], SealedOutputs],
    goes_on: Callable[[], None] | None = None,
) -> SealedOutputs:
    """Call `seal` in a forked child with `descriptor` to write to, which is closed here, and what it calls
    while it goes on.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(read_end)
            with os.fdopen(descriptor, "wb", closefd=False) as out:
                report = seal(out, _Beats(write_end))
            os.write(write_end, json.dumps(asdict(report)).encode())
            code = 0
        except BaseException:  # noqa: BLE001 -- a forked child must never unwind into its parent's frames
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    os.close(descriptor)
    data = b""
    with os.fdopen(read_end, "rb", buffering=0) as stream:
        while len(data) < MAX_REPORT_BYTES and (part := stream.read(MAX_REPORT_BYTES)):
            if goes_on is not None and part.startswith(_BEAT):
                goes_on()
            data += part.lstrip(_BEAT)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise LegError("the sealer did not end well", code=Code.SEALING_FAILED)
    try:
        return SealedOutputs(**json.loads(data))
    except (TypeError, ValueError) as error:
        raise LegError("the sealer reported nothing", code=Code.SEALING_FAILED) from error
