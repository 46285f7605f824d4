"""Launch parameters: what the controller puts on a launch's standard input, once, over SSH.

One line of JSON, and behind it the 32 bytes of the one secret here: a protected leg's ticket, or the payload
key with which a raw leg opens what the run discloses. They stand apart from the text so that they can be
wiped: no parser makes a string of them. They never reach argv, the environment or a file; of the rest only
names do, such as the allocation's, by which a sweep finds a leg.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from glasshouse.attestation.ticket import TICKET_BYTES
from glasshouse.canonical import b64u, b64u_decode, canonical_json, parse_json
from glasshouse.runtime.blinding import SALT_BYTES
from glasshouse.runtime.ranks import MAX_RANKS
from glasshouse.runtime.session import Stretch, check_number
from glasshouse.sealing.layout import KEY
from glasshouse.sealing.memory import overwrite

MAX_PARAMS_BYTES = 64 << 10
SECRET_BYTES = {"protected": TICKET_BYTES, "raw": KEY}  # behind the parameters
MARKER_FILE, MARKER_BYTES = "marker", 32  # in the markers' package: what scans look for
JOB_FILE = "project.json"  # in a project's package: what to run (runtime/project.py)
WHEELS_FOLDER = ".glasshouse-wheels"  # in a project's tree: what it needs and the machine lacks
END_FILE = "end"  # in a leg's folder: its job is to end now, with a moment to save what it has
SAID = "glasshouse: "  # begins a line of ours in a job's log
NOTHING = "nothing comes back: "  # begins one on a job without outputs
LOST = "what it wrote is lost with the machine: "  # the same, where it wrote something elsewhere
NOT_CARRIED = f"{SAID}NOT BROUGHT BACK: "  # the same, of a file of its outputs that could not be carried
GRACE_SEC = 30.0  # that moment: from SIGTERM to SIGKILL
STRAYS_SEC = 30.0  # until what a job left running is gone: a GPU's memory is given back by then
# Beyond its moment, until its trainer says what became of it: its outputs are listed, the machine read again.
LATE_SEC = STRAYS_SEC + 60.0


@dataclass(frozen=True)
class LaunchParams:
    """One launch of one slot. `leg_dir` is where the launch leaves its files on the pod."""

    arm: str
    run: str
    leg: str
    launch: int
    leg_dir: str
    allocation: str  # the allocation's name: the scratch folder begins with it, so a sweep finds it
    public_allocation: str  # its digest, as results name it
    stretch: Stretch
    device: str
    deadline_sec: float
    job: bool = False  # a project's command, which ends by itself
    network_open: bool = False  # of a job
    refuse_execs: bool = False  # of a job: no program is started
    require_confined_reads: bool = False  # of a job
    job_sec: float = 0.0  # when it is asked to end, before the leg's deadline; 0: it is not
    ranks: int = 1  # processes that train together, one a GPU
    manifest_hash: str = ""
    package: str = ""  # where it lies on the pod, for both arms the same
    # A protected launch's ticket, a raw one's payload key: wiped by whoever is done with it.
    secret: bytearray = field(default_factory=bytearray, repr=False)
    salt: bytes = bytes(
        SALT_BYTES
    )  # of digests that stand for names and values (blinding.py); made for the run
    allow: list[str] = field(default_factory=list)  # which of them are published as they are
    # protected arm
    broker_public: bytes = b""
    broker_port: int = 0
    allocation_id: str = ""
    image_digest: str = ""
    markers: str = ""  # the small package beside it, and its manifest's hash
    markers_hash: str = ""
    anti_debug_profile: str = "standard"
    require_landlock: bool = True
    private: bool = False  # the events leave out what would confirm a guess at the payload
    # Of a private launch: seconds between checkpoints, and between records for whoever watches; 0.0: none.
    checkpoint_sec: float = 0.0
    checkpoint_ready: str = ""  # a file of the outputs, or a pattern: it marks a set of files as whole
    watch_sec: float = 0.0
    # raw arm
    raw_dir: str = ""  # the folder that the workload may write to

    @property
    def sealed_under(self) -> dict[str, str]:
        """The context under which what this launch leaves is sealed for the owner (sealing/outputs.py)."""
        return sealed_under(self.run, self.leg, self.launch, self.manifest_hash)

    @property
    def keeps(self) -> bool:
        """Whether a process beside the workload seals anything of it before its end (keeper.py)."""
        return bool(self.checkpoint_sec or self.watch_sec)

    @property
    def where(self) -> tuple[str, str, int]:
        """Run, leg and launch number, as tokens name them."""
        return self.run, self.leg, self.launch


def sealed_under(run: str, leg: str, launch: int, manifest_hash: str) -> dict[str, str]:
    """The context under which a launch seals what it leaves; a checkpoint or a record adds its number."""
    return {"run": run, "leg": leg, "launch": str(launch), "manifestHash": manifest_hash}


def write_launch(launch: LaunchParams) -> bytes:
    """Return what `read_launch` reads: the parameters as one line of JSON, and behind it the secret."""
    values: dict[str, Any] = {item.name: getattr(launch, item.name) for item in fields(launch)}
    del values["secret"]
    for name in _ENCODED:
        values[name] = b64u(values[name])
    values["stretch"] = asdict(launch.stretch)
    return b"".join((canonical_json(values), b"\n", launch.secret))


def read_launch(descriptor: int) -> LaunchParams:
    """Read the parameters from a descriptor, to its end; the only copy of the secret left is the launch's.

    KeyError, TypeError or ValueError where they are not of the form of `parse_launch`.
    """
    buffer = bytearray(MAX_PARAMS_BYTES + 1 + max(SECRET_BYTES.values()) + 1)
    size = 0
    with memoryview(buffer) as view:
        while size < len(buffer) and (count := os.readv(descriptor, [view[size:]])):
            size += count
    try:
        end = buffer.find(b"\n", 0, size)
        end = size if end < 0 else end
        return parse_launch(bytes(buffer[:end]), buffer[end + 1 : size])
    finally:
        overwrite(buffer)


def parse_launch(data: bytes, secret: bytearray) -> LaunchParams:
    """Make a launch of its parameters (JSON) and its secret: 32 bytes, a ticket or a payload key.

    KeyError, TypeError or ValueError where they are not of this form.

    Types and bounds are checked here, before anything starts: a launch that falls over later, over a
    number that is a string, would leave no result and keep the controller waiting.
    """
    value = parse_json(data, max_bytes=MAX_PARAMS_BYTES)
    if not isinstance(value, dict):
        raise TypeError("parameters are no object")
    value = {**value, "stretch": Stretch.from_json(value.get("stretch"))}
    check_number(value.get("deadline_sec"), "deadline_sec")
    for name in ("job_sec", "checkpoint_sec", "watch_sec"):
        check_number(value.get(name), name, needed=False)
    if "secret" in value:
        raise TypeError("the secret stands behind the parameters")
    for name in _ENCODED:
        if name in value:
            value[name] = b64u_decode(value[name])
    launch = LaunchParams(**value, secret=secret)
    if launch.arm not in ("raw", "protected"):
        raise ValueError("arm is neither raw nor protected")
    if len(secret) != SECRET_BYTES[launch.arm]:
        raise ValueError("a protected launch has a ticket, a raw one a payload key, and neither more")
    if type(launch.ranks) is not int or not 1 <= launch.ranks <= MAX_RANKS:
        raise ValueError("ranks is no small number")
    for item in fields(LaunchParams):
        found = getattr(launch, item.name)
        kind = _KINDS.get(str(item.type))
        if kind is not None and type(found) is not kind:
            raise TypeError(f"{item.name} is not of its type")
    if len(launch.salt) != SALT_BYTES or not _all_names(launch.allow):
        raise ValueError("no salt of a run, or no list of names")
    if not 1 <= launch.launch <= 1000 or not 0 <= launch.broker_port <= 65535:
        raise ValueError("launch number or port out of range")
    if launch.arm == "raw" and launch.private:
        raise ValueError("no raw launch opens a private payload")
    if launch.keeps and not launch.private:
        raise ValueError("checkpoints are of a private launch")
    # These become parts of paths.
    if not all(_NAME.match(name) for name in (launch.allocation, launch.leg)):
        raise ValueError("not a plain name")
    return launch


_ENCODED = ("broker_public", "salt")  # bytes, which stand in JSON as base64url
_KINDS = {"str": str, "int": int, "bool": bool, "bytes": bytes}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


def _all_names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(isinstance(item, str) for item in value)
