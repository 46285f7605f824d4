"""Launch parameters: what the controller puts on a launch's standard input, once, over SSH.

They hold the one-use ticket and no other secret. Nothing of them ever reaches argv, the
environment or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glasshouse.canonical import b64u_decode, parse_json
from glasshouse.runtime.harness import Stretch

MAX_PARAMS_BYTES = 64 << 10


@dataclass(frozen=True)
class Launch:
    """One launch of one slot. `leg_dir` is where the launch leaves its files on the pod."""

    arm: str
    run: str
    leg: str
    launch: int
    leg_dir: str
    allocation: str  # the allocation's name: the scratch folder begins with it, so a sweep finds it
    public_allocation: str  # its digest, as results name it
    salt: bytes  # of the digests that both arms must agree on
    stretch: Stretch
    device: str
    deadline_sec: float
    # protected arm
    ticket: str = ""
    broker_public: bytes = b""
    broker_port: int = 0
    allocation_id: str = ""
    image_digest: str = ""
    manifest_hash: str = ""
    package: str = ""
    anti_debug_profile: str = "standard"
    require_landlock: bool = True
    # raw arm
    raw_dir: str = ""


def parse_launch(data: bytes) -> Launch:
    """Read the parameters; KeyError, TypeError or ValueError where they are not of this form."""
    value: dict[str, Any] = parse_json(data, max_bytes=MAX_PARAMS_BYTES)
    value = dict(value)
    value["stretch"] = Stretch.from_json(value["stretch"])
    for name in ("broker_public", "salt"):
        if name in value:
            value[name] = b64u_decode(value[name])
    launch = Launch(**value)
    if launch.arm not in ("raw", "protected"):
        raise ValueError("arm is neither raw nor protected")
    return launch
