"""`provider=ssh`: a machine that somebody already has. Nothing is rented; release removes what we put there.

The pod folder is `<workdir>/<allocation name>`, workdir relative to the login's home unless absolute.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Self

from glasshouse import spec
from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.errors import RemoteError, UsageError
from glasshouse.providers.base import (
    UNWATCHED,
    Afford,
    Allocation,
    Endpoint,
    HostKey,
    Progress,
    ReleaseProof,
    Waits,
    none_beside,
    unrented,
)
from glasshouse.providers.proofs import proof_from_sweep, unknown
from glasshouse.remote import sweep_script
from glasshouse.remote.connection import load_key, pinned_lines
from glasshouse.remote.pod import Pod, Timeouts

_PROBE = "import sys; print(sys.platform, *sys.version_info[:2])"


class SshProvider:
    """Provider over one given host."""

    kind = "ssh"
    simulated = False

    def __init__(self, config: spec.SshProvider, timeouts: Timeouts | None = None) -> None:
        self._config = config
        self._timeouts = timeouts or Timeouts()
        self._pinned: tuple[str, ...] | None = None  # a first-use key, once met
        self._reached: bool | None = None  # by this object's allocate; None: another process may have

    def check(self, spec: spec.RunSpec) -> None:  # noqa: ARG002  the same for every run
        """Read the key and known_hosts. Raises UsageError; whether the host answers is not asked here."""
        self._endpoint()

    def known_ids(self, name: str) -> tuple[str, ...]:  # noqa: ARG002  the name says it all here
        """Nobody gives out ids here."""
        return ()

    def doubtful_until(self, name: str) -> float:  # noqa: ARG002  the name says it all here
        """Nothing that was asked for comes later."""
        return 0.0

    def note(self, name: str) -> str:  # noqa: ARG002  the name says it all here
        """Nothing has to be known beside that."""
        return ""

    def allocate(
        self,
        name: str,
        spec: spec.RunSpec,  # noqa: ARG002  the host is what it is
        progress: Progress,
        afford: Afford = none_beside,  # noqa: ARG002  nothing is rented
    ) -> Allocation:
        """Check key file, known_hosts, reachability, system and interpreter; make the pod folder.

        Raises UsageError for what is wrong on this side, RemoteError for the other.
        """
        self._reached = False
        endpoint = self._endpoint()
        progress(f"connecting to {endpoint.host}:{endpoint.port}")
        timeouts = dataclasses.replace(
            self._timeouts, connect=min(self._timeouts.connect, self._config.boot_deadline_sec)
        )
        with Pod(endpoint, timeouts=timeouts) as pod:
            host_key = pod.host_key
            self._pinned = host_key.lines
            _check_host(pod)
            folder = f"{endpoint.workdir}/{name}"
            self._reached = True
            pod.check(["mkdir", "-p", "-m", "700", "--", folder], "making the pod folder")
        return unrented(self.kind, name, dataclasses.replace(endpoint, host_key=host_key))

    def reopen(self, name: str, endpoint: Endpoint) -> Endpoint:  # noqa: ARG002  the host is where it was
        """The host, with the key that it showed then."""
        return endpoint

    def release(
        self,
        name: str,
        allocation_id: str | None = None,  # noqa: ARG002  the name says it all here
        doubt_until: float | None = None,  # noqa: ARG002  nothing is asked for that could come later
        waits: Waits = UNWATCHED,  # noqa: ARG002
        note: str | None = None,  # noqa: ARG002
    ) -> ReleaseProof:
        """Run the sweeper there; a host that cannot be asked proves nothing, unless nothing was put there."""
        if self._reached is False:
            return ReleaseProof(
                "zero",
                0,
                "nothing was put on the host: it was not reached, or no leg can run there",
                folder_removed=True,
            )
        try:
            endpoint = self._endpoint()
            with Pod(endpoint, timeouts=self._timeouts) as pod:
                report = pod.check(
                    [endpoint.python, "-I", "-", name, f"{endpoint.workdir}/{name}"],
                    "the clean-up",
                    input=Path(sweep_script.__file__).read_bytes(),
                    timeout=60.0,
                )
            return proof_from_sweep(parse_json(report))
        except (RemoteError, UsageError) as error:
            return unknown(f"the host could not be asked: {error.what}")
        except CanonicalError:
            return proof_from_sweep(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of ours runs on this side."""

    def _endpoint(self) -> Endpoint:
        config = self._config
        key_path = Path(config.key).expanduser()
        load_key(key_path)
        endpoint = Endpoint(
            host=config.host,
            port=config.port,
            user=config.user,
            key_path=key_path,
            host_key=HostKey("first-use", self._pinned),
            python=config.python,
            workdir=config.workdir,
        )
        if config.known_hosts is None:
            return endpoint
        path = Path(config.known_hosts).expanduser()
        pinned = HostKey("pinned", pinned_lines(path, endpoint.known_hosts_name))
        return dataclasses.replace(endpoint, host_key=pinned)


def _check_host(pod: Pod) -> None:
    """Refuse another system than Linux, and a Python that is too old. Raises RemoteError."""
    result = pod.run([pod.endpoint.python, "-I", "-S", "-c", _PROBE])
    platform, *words = result.stdout.decode("utf-8", "replace").split() or [""]
    if result.exit != 0 or len(words) != 2 or not all(word.isdecimal() for word in words):
        raise RemoteError(
            "the host has no such interpreter",
            field="provider.python",
            value=pod.endpoint.python,
            remedy="give the path of Python 3.11 or later there",
        )
    if platform != "linux":
        raise RemoteError(
            "the host is not Linux, which legs need",
            field="platform",
            value=platform[:40],
            remedy="name a Linux machine by provider.host, or rent one (gpu=a4000)",
        )
    version = (int(words[0]), int(words[1]))
    if version < (3, 11):
        raise RemoteError(
            f"the host's Python is {version[0]}.{version[1]}",
            field="provider.python",
            value=pod.endpoint.python,
            remedy="give the path of Python 3.11 or later there",
        )
