"""The shell text that a rented container runs first: our host key, our client key, a dead-man timer.

`GLASSHOUSE_ROOT` is empty in a real container; the fake providers set it to the folder that plays the
container's root, so that the very same text runs in the tests.
"""

from __future__ import annotations

import shlex
from typing import Final

from glasshouse.providers.hostkeys import RentalKeys

VAST_ONSTART_LIMIT: Final = 4096  # characters of onstart and args together

# Other key types go, so that the server has no key but ours to show.
_INSTALL: Final = """\
umask 077; mkdir -p "$R/etc/ssh"; rm -f "$R"/etc/ssh/ssh_host_*_key*
printf %s "$HK" | base64 -d > "$R/etc/ssh/ssh_host_ed25519_key"
printf '%s\\n' "$HP" > "$R/etc/ssh/ssh_host_ed25519_key.pub"
"""

# RunPod's images start sshd from /start.sh, which keeps a host key that it finds; others need an sshd.
_RUNPOD: Final = """\
R="${{GLASSHOUSE_ROOT:-}}"; HK="$GLASSHOUSE_HOST_KEY"; HP="$GLASSHOUSE_HOST_PUBLIC"
{install}umask 022; unset GLASSHOUSE_HOST_KEY HK HP
P="$RUNPOD_POD_ID"; (sleep {seconds}; runpodctl remove pod "$P" || runpodctl stop pod "$P") >/dev/null 2>&1 &
if [ -f "$R/start.sh" ]; then exec bash "$R/start.sh"; fi
umask 077; mkdir -p "$R/root/.ssh" "$R/run/sshd"
printf '%s\\n' "$PUBLIC_KEY" >> "$R/root/.ssh/authorized_keys"
exec "$R/usr/sbin/sshd" -D -e
"""

# Vast.ai starts sshd before onstart runs: it must load the new host key.
_VAST: Final = """\
R="${{GLASSHOUSE_ROOT:-}}"; HK={host_private}; HP={host_public}
umask 077; mkdir -p "$R/root/.ssh"; printf '%s\\n' {client_public} >> "$R/root/.ssh/authorized_keys"
{install}unset HK HP; umask 022
service ssh restart >/dev/null 2>&1 || kill -HUP "$(cat "$R/run/sshd.pid")"
(sleep {seconds}; {python} -c {destroy}) >/dev/null 2>&1 &
"""

# The container's own key stays out of the command line, which other processes can read.
_VAST_DESTROY: Final = """\
import os,urllib.request as u
e=os.environ
h={{"Authorization":"Bearer "+e["CONTAINER_API_KEY"]}}
u.urlopen(u.Request({url!r}+e["CONTAINER_ID"].removeprefix("C.")+"/",method="DELETE",headers=h))
"""


def runpod_start(dead_man_sec: float) -> str:
    """`args` of a RunPod pod: they replace the image's start command, so they end in calling it.

    Expects GLASSHOUSE_HOST_KEY (base64), GLASSHOUSE_HOST_PUBLIC and PUBLIC_KEY in the pod's environment.
    """
    script = _RUNPOD.format(install=_INSTALL, seconds=int(dead_man_sec))
    return shlex.join(["bash", "-c", script])


def vast_onstart(keys: RentalKeys, dead_man_sec: float, base_url: str, python: str) -> str:
    """`onstart` of a Vast.ai instance; all is inline, since its variables do not reach it dependably."""
    text = _VAST.format(
        host_private=shlex.quote(keys.host_private_b64),
        host_public=shlex.quote(keys.host_public),
        client_public=shlex.quote(keys.client_public),
        install=_INSTALL,
        seconds=int(dead_man_sec),
        python=shlex.quote(python),
        destroy=shlex.quote(_VAST_DESTROY.format(url=base_url.rstrip("/") + "/v0/instances/")),
    )
    if len(text) > VAST_ONSTART_LIMIT:
        raise ValueError("onstart is longer than Vast.ai takes")
    return text
