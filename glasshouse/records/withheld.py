"""A run's salt: made before its plan, sealed to the owner's keys inside it, and opened by any of them.

With it the owner shows that a digest in a published row is that of a value:
blinding.withheld(salt, place, value).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from glasshouse.canonical import b64u, b64u_decode
from glasshouse.errors import SealError
from glasshouse.runtime.blinding import SALT_BYTES, WITHHELD, blinded, withheld
from glasshouse.spec import CustomModel, RunSpec

if TYPE_CHECKING:
    from glasshouse.sealing.grant import KemKey

_ENTRY = "withheld-"


def sealed_salt(salt: bytes, run: str, owners: Iterable[bytes]) -> tuple[str, ...]:
    """The salt wrapped to each of the owner's public keys, as base64url: what the plan holds."""
    from glasshouse.sealing.grant import wrap_key  # noqa: PLC0415  (verifying needs no HPKE)

    return tuple(b64u(wrap_key(salt, public, _info(run))) for public in owners)


def opened_salt(sealed: Sequence[str], run: str, keys: Sequence[KemKey]) -> bytes | None:
    """The salt, where one of the keys opens one of its copies; None where none does."""
    from glasshouse.sealing.grant import unwrap_key  # noqa: PLC0415

    for text in sealed:
        for key in keys:
            try:
                return bytes(unwrap_key(b64u_decode(text), key, _info(run)))
            except SealError:
                continue
    return None


def blinded_model(model: CustomModel, salt: bytes, allow: Sequence[str]) -> CustomModel:
    """A workload of one's own as its plan shows it: file names, class and parameters as salted digests."""
    path, _, name = model.entry.rpartition(":")
    entry = f"{PurePath(path).name}:{name}"
    if "model.entry" not in allow and not model.entry.startswith(_ENTRY):
        entry = f"{_ENTRY}{withheld(salt, 'model.entry', entry).partition(':')[2]}.py:Withheld"
    data = tuple(PurePath(item).name for item in model.data)
    if "model.data" not in allow:
        data = tuple(item if WITHHELD.match(item) else withheld(salt, "model.data", item) for item in data)
    params = blinded("model.params", model.params, salt, allow, words=True)
    return model.model_copy(update={"entry": entry, "data": data, "params": params})


def places(spec: RunSpec, unit_info: Iterable[str] = ()) -> tuple[str, ...]:
    """Which of a run's settings and reports are published as digests, by name; () where none is."""
    hidden = []
    model = spec.model
    if isinstance(model, CustomModel):
        if model.entry.startswith(_ENTRY):
            hidden.append("model.entry")
        if any(WITHHELD.match(item) for item in model.data):
            hidden.append("model.data")
        if any(isinstance(item, str) and WITHHELD.match(item) for item in model.params.values()):
            hidden.append("model.params")
    if any(name.startswith(_ENTRY) for name in unit_info):
        hidden.append("unitInfo")
    return tuple(hidden)


def _info(run: str) -> bytes:
    return f"glasshouse/publication-salt/v1 {run}".encode()


assert SALT_BYTES == 32  # what wrap_key takes
