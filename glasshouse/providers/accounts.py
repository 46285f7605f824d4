"""Which account rented: beside each allocation the journal keeps a digest of the API key that was in use.

To another account's key a provider says of a machine what it says of one that is gone: it is not in the list,
and its id is not found. So what such a key is told proves nothing. A new key of the same account is as good
as the old one; that it is one shows as soon as it shows the machine, else only a person can say so.

The digest is scrypt's (RFC 7914) under a salt of its own for each allocation: whoever reads the journal can
neither try guesses in bulk, nor see that two allocations belong to one account.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from pydantic import TypeAdapter, ValidationError

from glasshouse.providers.journal import Entry, Journal, KeyMark
from glasshouse.providers.registry import KEY_VARIABLES, open_provider
from glasshouse.spec import CloudProvider

_N, _R, _P = 1 << 14, 8, 1  # 16 MiB and about 0.1 s a try
_LOOK_SEC = 30.0


def mark(kind: str) -> KeyMark | None:
    """The mark of the key in the environment; None where provider `kind` takes none, or none is set."""
    salt = secrets.token_hex(16)
    digest = _digest(kind, salt)
    return None if digest is None else KeyMark(salt, digest)


def same_key(entry: Entry) -> bool:
    """Whether the key in the environment is the one that rented, or nobody noted which one that was."""
    if entry.key is None:
        return True
    digest = _digest(entry.provider, entry.key.salt)
    return digest is not None and hmac.compare_digest(digest, entry.key.digest)


def seen(entry: Entry, journal: Journal) -> None:
    """The key in the environment showed a machine of this allocation: it is one of the account's own."""
    if not same_key(entry) and (now := mark(entry.provider)) is not None:
        journal.rented_with(entry.name, now)


def other_account(entry: Entry, journal: Journal) -> str:
    """Why the key in the environment can prove nothing about `entry`; "" where it can.

    Where it is another key than the one that rented, its account is asked once. Raises UsageError.
    """
    if same_key(entry):
        return ""
    shown, said = _shown(entry)
    if shown:
        seen(entry, journal)
        return ""
    variable = KEY_VARIABLES[entry.provider]
    return (
        f"the key in {variable} is not the one that rented {entry.name}, and {said}: set {variable} to that "
        "account's key, or say `glasshouse reap --other-key` if this is a new key of the same account"
    )


def _shown(entry: Entry) -> tuple[bool, str]:
    """Whether a machine of ours is to be seen with the key in the environment, and what to say if not."""
    # Loaded here: a run on this machine needs no HTTP library.
    from glasshouse.providers.cloud import Cloud  # noqa: PLC0415
    from glasshouse.providers.cloud_http import ApiError  # noqa: PLC0415
    from glasshouse.providers.cloud_release import is_ours  # noqa: PLC0415

    try:
        config = TypeAdapter(CloudProvider).validate_python(entry.detail.get("provider"))
        with open_provider(config, rented=True) as provider:
            assert isinstance(provider, Cloud)
            with provider.api.http.within(_LOOK_SEC):
                if any(is_ours(machine.name, entry.name) for machine in provider.api.machines()):
                    return True, ""
                for machine_id in filter(None, (entry.allocation_id or "").split(",")):
                    machine = provider.api.machine(machine_id)
                    if machine is not None and is_ours(machine.name, entry.name):
                        return True, ""
    except ApiError as error:
        return False, f"asking with it failed ({error})"
    except ValidationError:  # of another version of this program
        return False, "where to look is not readable here"
    return False, f"{provider.api.label} shows it no such machine"


def _digest(kind: str, salt: str) -> str | None:
    key = os.environ.get(KEY_VARIABLES.get(kind, ""), "").strip()
    if not key:
        return None
    salted = f"glasshouse/rented-with/v1/{kind}/{salt}".encode()
    return hashlib.scrypt(os.fsencode(key), salt=salted, n=_N, r=_R, p=_P, dklen=32).hex()
