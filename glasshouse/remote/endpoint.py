"""`Endpoint`: all that is needed to open a pinned SSH session, as a provider hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HostKeySource = Literal["created", "pinned", "provider-log", "first-use"]


@dataclass(frozen=True)
class Endpoint:
    """Where a pod answers, with which key, and which host keys it may show.

    `known_hosts` holds known_hosts lines; None means that nobody knows the key yet: the first handshake
    fetches it, and it is pinned from then on. `host_key_source` says where trust in the key comes from:
    created (we made the key), pinned (the operator's known_hosts), provider-log (a fingerprint read over
    TLS), first-use (nobody vouched for it). `python` is the pod's interpreter; `workdir` is the folder that
    holds pod folders, relative to the login's home unless absolute.
    """

    host: str
    port: int
    user: str
    key_path: Path
    known_hosts: tuple[str, ...] | None
    host_key_source: HostKeySource
    python: str
    workdir: str

    @property
    def known_hosts_name(self) -> str:
        """The host as known_hosts spells it: bare on port 22, else `[host]:port`."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"
