"""The raw leg: the same workload in the clear, with no lifecycle around it.

A minder process, detached, forks the trainer and outlives it. The trainer reads the raw folder
into memory; the minder then removes the folder at once, so that a leg that is killed while it
trains leaves no plaintext behind, and the next protected slot starts on a clean disk.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.channel import Channel, ChannelClosedError, channel_pair, failure_code
from glasshouse.runtime.leg import write_result
from glasshouse.runtime.linux import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.peers import Peers
from glasshouse.runtime.ranks import RankedSession
from glasshouse.runtime.results import RawEnd
from glasshouse.runtime.strays import kill_strays
from glasshouse.sealing.container import TensorSpec

INDEX_FILE = "index.json"
WEIGHTS_FILE = "weights.bin"


def mind(launch: LaunchParams, folder: Path, guard: int) -> None:
    """Run one raw launch; result.json is in `folder` when it returns, the raw folder is gone.

    `guard`: pid of the parent, whose death ends the leg, like the trainer's.
    """
    signal.signal(signal.SIGTERM, _terminated)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    raw = Path(launch.raw_dir)
    result: dict[str, Any] | None = None
    code: str | None = Code.RUNTIME_ERROR
    deadline = time.monotonic() + launch.deadline_sec
    try:
        channel, other = channel_pair()
        minder = os.getpid()
        trainer = os.fork()
        if trainer == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            channel.close()
            _trainer(other, launch, raw, minder)
        other.close()
        channel.peers = Peers()
        channel.peers.watch("guard", guard)
        channel.peers.watch("trainer", trainer)
        if os.getppid() != guard:  # it died before it was watched
            raise ChannelClosedError("guard")
        result, code = _follow(channel, deadline, folder, raw), None
    except LegError as error:
        late = error.code == Code.RUNTIME_TIMEOUT and time.monotonic() >= deadline
        code = Code.LEG_DEADLINE if late else error.code
    except ChannelClosedError:
        code = Code.PROCESS_DIED
    except OSError as error:
        code = Code.RUNTIME_OS_ERROR
        print(f"os error {error.errno}", file=sys.stderr)  # noqa: T201 -- the plain log carries codes only
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(LegError):
            kill_strays()
        scratch = raw.parent / f"{raw.name}-scratch"
        for place in (raw, scratch):
            shutil.rmtree(place, ignore_errors=True)
        removed = not raw.exists() and not scratch.exists()
        status = "failed" if code else "complete"
        write_result(folder, RawEnd("raw", status, code, result, raw_files_removed=removed))


def _terminated(_signal: int, _frame: object) -> None:
    raise LegError("the leg was told to end", code=Code.TERMINATED)


def _follow(channel: Channel, deadline: float, folder: Path, raw: Path) -> dict[str, Any]:
    result: dict[str, Any] | None = None
    with (folder / "progress.jsonl").open("ab", buffering=0) as progress:
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise LegError("the leg's deadline passed", code=Code.LEG_DEADLINE)
            kind, body, _ = channel.receive(remaining)
            if kind == "loaded":
                shutil.rmtree(raw, ignore_errors=True)
                channel.send("go")
            elif kind == "progress":
                progress.write(canonical_json(body) + b"\n")
            elif kind == "trained":
                result = body["result"]
            elif kind == "done" and result is not None:
                return result
            elif kind == "failed":
                raise LegError("the trainer failed", code=failure_code(body))
            else:
                raise LegError("the trainer said something unknown", code=Code.RUNTIME_ERROR)


def _trainer(channel: Channel, launch: LaunchParams, raw: Path, minder: int) -> None:
    code = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != minder:  # it died before the line above
            os._exit(code)
        files, tensors = load_raw(raw)
        scratch = raw.parent / f"{raw.name}-scratch"
        scratch.mkdir(mode=0o700)
        os.environ["TMPDIR"] = str(scratch)
        os.chdir(scratch)
        sys.dont_write_bytecode = True
        channel.send("loaded")
        channel.expect("go")
        index = parse_json(files.pop(INDEX_FILE))
        session, result = harness.run(
            harness.Workload(files, tensors, index["builder"]),
            stretch=launch.stretch,
            device=launch.device,
            allocation=launch.public_allocation,
            salt=launch.salt,
            report=channel.send,
            ranks=launch.ranks,
        )
        channel.send("trained", {"result": result})
        if isinstance(session, RankedSession):
            session.end_ranks()
        os.chdir("/")
        shutil.rmtree(scratch, ignore_errors=True)
        channel.send("done")
        code = 0
    except LegError as error:
        traceback.print_exc()
        _failed(channel, error.code)
    except ChannelClosedError:
        pass
    except BaseException:  # noqa: BLE001 -- a forked role must never unwind into its parent's frames
        traceback.print_exc()
        _failed(channel, Code.WORKLOAD_ERROR)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _failed(channel: Channel, code: Code) -> None:
    with contextlib.suppress(ChannelClosedError):
        channel.send("failed", {"code": code})


def load_raw(raw: Path) -> tuple[dict[str, bytes], dict[str, tuple[TensorSpec, memoryview]]]:
    """Read a raw folder into memory: files as bytes, tensors as views of one anonymous mapping."""
    files = {path.name: path.read_bytes() for path in sorted(raw.iterdir()) if path.name != WEIGHTS_FILE}
    index = json.loads(files[INDEX_FILE])
    size = (raw / WEIGHTS_FILE).stat().st_size
    region = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(region)
    with (raw / WEIGHTS_FILE).open("rb") as stream:
        have = 0
        while have < size:
            count = stream.readinto(view[have:size])
            if not count:
                raise LegError("the raw weights are cut short", code=Code.RAW_FILES_INCOMPLETE)
            have += count
    tensors = {}
    for item in index["tensors"]:
        spec = TensorSpec(item["name"], item["dtype"], tuple(item["shape"]))
        tensors[spec.name] = (spec, view[item["offset"] : item["offset"] + item["nbytes"]])
    return files, tensors
