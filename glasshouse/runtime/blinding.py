"""Salted digests in place of what a workload, a machine or a file's name says: published, they tell nobody.

The salt is made for one run and sealed to its owner in the plan (records/withheld.py), who can show later
what a digest stood for. Part of the archive that runs on the pod, which is given the salt: what a leg reports
is published as the pod signs it, so it is blinded there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from glasshouse.canonical import canonical_json, domain_hash

SALT_BYTES = 32
WITHHELD = re.compile(r"withheld:[0-9a-f]{64}\Z")
MAX_ITEMS = 60
# What a workload may count in; in its own words it counts "units".
UNITS: Final = (
    *("epochs", "steps", "units", "job", "samples", "tokens", "images", "rows", "batches", "sequences"),
    "episodes",
)
# What the program's own workloads say of theirs, always a number or a truth value.
LISTED: Final = frozenset(
    {"rowsPerUnit", "tokensPerUnit", "flopsPerUnit", "bytesPerUnit", "stepsPerUnit", "trainableParams"}
    | {"totalParams", "worldSize", "ranks", "deterministic"}
)


def host_digest(name: str, salt: bytes) -> str:
    """Digest of a host's name (64 hex), of no use to whoever lacks the salt."""
    return domain_hash("glasshouse/host-name/v2", [salt, name.encode()]).hex()


def withheld(salt: bytes, place: str, value: object) -> str:
    """What stands in place of a value: its salted digest, with the place's name in it."""
    digest = domain_hash("glasshouse/withheld/v1", [salt, place.encode(), canonical_json(value)])
    return f"withheld:{digest.hex()}"


def blinded(
    place: str,
    values: Mapping[str, Any],
    salt: bytes,
    allow: Collection[str],
    listed: Collection[str] = (),
    *,
    words: bool = False,
) -> dict[str, Any]:
    """Values by name as they may be published: those allowed (`place.name`) or listed as they are.

    They have to be finite numbers or truth values; with `words`, one that is allowed may be a text. Of any
    other its name is withheld with it, since a name is chosen by the same hand: `withheld-1`, in the order of
    the names. What is withheld already stays.
    """
    shown: dict[str, Any] = {}
    hidden = []
    for name, value in sorted(values.items()):
        number = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
        allowed = f"{place}.{name}" in allow
        told = (allowed and (number or words)) or (name in listed and number)
        if told or (isinstance(value, str) and WITHHELD.match(value)):
            shown[name] = value
        else:
            hidden.append((name, value))
    for index, (name, value) in enumerate(hidden[:MAX_ITEMS], 1):
        try:
            shown[f"withheld-{index}"] = withheld(salt, f"{place}.{name}", value)
        except (TypeError, ValueError):  # no JSON value: whoever reads it refuses it by its form
            shown[f"withheld-{index}"] = withheld(salt, f"{place}.{name}", None)
    return shown
