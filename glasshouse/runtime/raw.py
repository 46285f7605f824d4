"""The raw leg: the same workload in the clear, with no lifecycle around it.

A minder process, detached, forks the trainer and outlives it. The trainer opens the run's sealed package, the
same bytes that protected legs open, with the key that the controller gives it: nothing else goes up for a raw
leg. That is before anything is measured, and timed apart. The markers that a residue search looks for stand
in another package, which no raw leg is told of. What the workload writes lies in a folder of its own, which
the minder removes at the leg's end, however that came: the next protected slot starts on a clean disk.

No grant is unwrapped here, and no private payload gets this far: a launch of one is refused (params.py), and
the controller has no key for it (lifecycle/packer.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from glasshouse.canonical import b64u_decode, canonical_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, SealError
from glasshouse.remote.sweep_script import remove
from glasshouse.runtime import harness
from glasshouse.runtime.channel import Channel, ChannelClosedError, channel_pair, failure_code
from glasshouse.runtime.leg import write_result
from glasshouse.runtime.linux import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.peers import Peers
from glasshouse.runtime.ranks import RankedSession
from glasshouse.runtime.results import RawEnd
from glasshouse.runtime.strays import kill_strays
from glasshouse.sealing.container import open_package
from glasshouse.sealing.memory import overwrite


def mind(launch: LaunchParams, folder: Path, guard: int) -> None:
    """Run one raw launch; result.json is in `folder` when it returns, what the workload wrote is gone.

    `guard`: pid of the parent, whose death ends the leg, like the trainer's.
    """
    signal.signal(signal.SIGTERM, _terminated)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    raw = Path(launch.raw_dir)
    result: dict[str, Any] | None = None
    timings: dict[str, float] = {}
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
        overwrite(launch.secret)  # the trainer has its copy
        channel.peers = Peers()
        channel.peers.watch("guard", guard)
        channel.peers.watch("trainer", trainer)
        if os.getppid() != guard:  # it died before it was watched
            raise ChannelClosedError("guard")
        result, code = _follow(channel, deadline, folder, timings), None
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
        overwrite(launch.secret)  # where the leg ended before it could be used
        removed = remove(raw)
        status = "failed" if code else "complete"
        write_result(folder, RawEnd("raw", status, code, result, raw_files_removed=removed, timings=timings))


def _terminated(_signal: int, _frame: object) -> None:
    raise LegError("the leg was told to end", code=Code.TERMINATED)


def _follow(channel: Channel, deadline: float, folder: Path, timings: dict[str, float]) -> dict[str, Any]:
    result: dict[str, Any] | None = None
    with (folder / "progress.jsonl").open("ab", buffering=0) as progress:
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise LegError("the leg's deadline passed", code=Code.LEG_DEADLINE)
            kind, body, _ = channel.receive(remaining)
            if kind == "unsealed":
                timings["unsealSec"] = float(body["unsealSec"])
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
        raw.mkdir(mode=0o700, parents=True)
        os.environ["TMPDIR"] = str(raw)
        os.chdir(raw)
        sys.dont_write_bytecode = True
        began = time.monotonic()
        package = open_package(launch.package, payload_key=launch.secret, manifest_hash=launch.manifest_hash)
        unseal_sec = time.monotonic() - began
        overwrite(launch.secret)
        channel.send("unsealed", {"unsealSec": round(unseal_sec, 6)})
        session, result = harness.run(
            harness.Workload(package.files, package.tensors, str(package.extra["builder"]), package.region),
            stretch=launch.stretch,
            device=launch.device,
            allocation=launch.public_allocation,
            # As the protected arm's: the manifest's, authenticated with it.
            salt=b64u_decode(str(package.extra["matchSalt"])),
            report=channel.send,
            ranks=launch.ranks,
            blind=launch.salt,
            allow=launch.allow,
        )
        channel.send("trained", {"result": result})
        if isinstance(session, RankedSession):
            session.end_ranks()
        os.chdir("/")
        remove(raw)
        channel.send("done")
        code = 0
    except LegError as error:
        traceback.print_exc()
        _failed(channel, error.code)
    except SealError as error:
        _failed(channel, error.code or Code.UNSEAL_FAILED)
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
