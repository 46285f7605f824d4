"""`Endpoint`: all that is needed to open a pinned SSH session, as a provider hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HostKeySource = Literal["created", "pinned", "provider-log", "first-use"]


@dataclass(frozen=True)
class HostKey:
    """Which host keys a pod may show, and who vouches for them.

    `source` is created (we made the key), pinned (the operator's known_hosts), provider-log (a fingerprint
    read over TLS) or first-use (nobody vouched for it). `lines` are known_hosts lines; None means that nobody
    knows the key yet: the first handshake fetches it, and it is pinned from then on, at first use.
    """

    source: HostKeySource
    lines: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.lines is None and self.source != "first-use":
            raise ValueError("a host key that nobody knows is trusted on first use")


@dataclass(frozen=True)
class Endpoint:
    """Where a pod answers, with which key, and which host keys it may show.

    `python` is the pod's interpreter; `workdir` is the folder that holds pod folders, relative to the login's
    home unless absolute.
    """

    host: str
    port: int
    user: str
    key_path: Path
    host_key: HostKey
    python: str
    workdir: str

    @property
    def known_hosts_name(self) -> str:
        """The host as known_hosts spells it: bare on port 22, else `[host]:port`."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"
