"""`provider=local`: this machine as the pod, behind a real SSH server, so that nothing above knows.

Everything of an allocation lives under state_dir()/pods/<name>/ (mode 0700): `home` is the pod's home and
working folder, `keys` the throwaway client key. The place follows from the name alone, so any process can
release it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from glasshouse import paths, spec
from glasshouse.errors import ProviderError, UsageError
from glasshouse.host import need_linux
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
from glasshouse.providers.pod_server import USER, PodServer
from glasshouse.providers.proofs import proof_from_sweep, unknown
from glasshouse.remote.sweep_script import NAME, sweep


def pod_place(name: str) -> Path:
    """The folder of allocation `name` on this machine. Raises ProviderError for what is no allocation
    name."""
    if NAME.match(name) is None:
        raise ProviderError("not an allocation name", field="name", value=name)
    return paths.state_dir() / "pods" / name


class LocalProvider:
    """Provider over embedded SSH servers; several allocations may live at once."""

    kind = "local"
    simulated = False

    def __init__(self, config: spec.LocalProvider) -> None:
        self._config = config
        self._servers: dict[str, PodServer] = {}

    def check(self, spec: spec.RunSpec) -> None:  # noqa: ARG002  the same for every run
        """Refuse what is no Linux; look for the interpreter. Raises UsageError."""
        need_linux("provider=local")
        self._python()

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
        spec: spec.RunSpec,  # noqa: ARG002  this machine is what it is
        progress: Progress,
        afford: Afford = none_beside,  # noqa: ARG002  nothing is rented
    ) -> Allocation:
        """Make the pod's home and start its server. Raises UsageError, ProviderError."""
        python = self._python()
        place = pod_place(name)
        home, keys = place / "home", place / "keys"
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            for folder in (place, home, keys):
                folder.mkdir(mode=0o700)
        except OSError as error:
            raise ProviderError(
                f"cannot make the local pod's folder: {error.strerror}", field="name", value=name
            ) from error
        progress("starting an SSH server on loopback")
        return unrented(self.kind, name, self._serve(name, home, keys, python))

    def reopen(self, name: str, endpoint: Endpoint) -> Endpoint:
        """Serve the pod's home once more: its server was part of the process that died."""
        place = pod_place(name)
        try:
            keys = Path(tempfile.mkdtemp(prefix="keys-", dir=place))
        except OSError as error:
            raise ProviderError(
                f"cannot open the local pod's folder: {error.strerror}", field="name", value=name
            ) from error
        return self._serve(name, place / "home", keys, endpoint.python)

    def _serve(self, name: str, home: Path, keys: Path, python: str) -> Endpoint:
        server = PodServer(home, keys, threads=self._config.threads)
        server.start(self._config.boot_deadline_sec)
        self._servers[name] = server
        return Endpoint(
            host="127.0.0.1",
            port=server.port,
            user=USER,
            key_path=server.key_path,
            host_key=HostKey("created", (server.known_hosts_line(),)),
            python=python,
            workdir=str(home),
        )

    def release(
        self,
        name: str,
        allocation_id: str | None = None,  # noqa: ARG002  the name says it all here
        doubt_until: float | None = None,  # noqa: ARG002  nothing is asked for that could come later
        waits: Waits = UNWATCHED,  # noqa: ARG002
        note: str | None = None,  # noqa: ARG002
    ) -> ReleaseProof:
        """Kill what runs under the name, stop the server, remove the folder; look twice."""
        try:
            report = sweep(name, str(pod_place(name)))
        except (OSError, ValueError) as error:
            return unknown(f"the local pod could not be swept: {type(error).__name__}")
        finally:
            server = self._servers.pop(name, None)
            if server is not None:
                server.stop()
        return proof_from_sweep(report)

    def _python(self) -> str:
        python = self._config.python or sys.executable
        if shutil.which(python) is None:
            raise UsageError(
                "no such interpreter",
                field="provider.python",
                value=python,
                remedy="give the path of a Python 3.11 or later",
            )
        return python

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the servers; what was not released stays for `reap`, as it would at a paid provider."""
        while self._servers:
            self._servers.popitem()[1].stop()
