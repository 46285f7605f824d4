"""The form of each string that a pod says of a leg, by the way to it: the list of what may be published.

What a pod signs is published as it stands, so a field that nobody reads is still read by everybody. Here
every string in events.jsonl and result.json has its pattern and its length; one that is not listed, or not
of its form, is a finding, and nothing of the run is published. Names of fields are strings as well.

Forms of what is judged are those of schema.py, where they also bound what is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from glasshouse.runtime.blinding import UNITS
from glasshouse.runtime.events import EVENT_TYPES
from glasshouse.schema import (
    CPU_MODEL,
    DEVICE_CACHE,
    DRIVER,
    GPU_NAME,
    GPU_STATE,
    GPU_UUID,
    KERNEL,
    NEEDLE_PLACE,
)

_HEX = "[0-9a-f]{64}"
_CODE = r"[a-z0-9][a-z0-9\-]{0,63}"
_COUNTER = r"[0-9]{0,20}|\[[A-Za-z/ ]{1,40}\]"
_WITHHELD = rf"withheld:{_HEX}"
MAX_DEPTH = 12

# Ways with an index as [], a name that the pod chose as *.
_MACHINE = {
    "bootId": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|",
    "hostnameDigest": rf"{_HEX}|",
    "allocation": rf"{_HEX}|",
    "gpuNames[]": GPU_NAME,
    "gpuUuids[]": GPU_UUID,
    "pciBusIds[]": r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]",
    "driver": DRIVER,
    "eccUncorrected[]": _COUNTER,
    "cpuModel": CPU_MODEL,
    "kernel": KERNEL,
}
_OUTPUTS = {"ciphertextSha256": _HEX, "plaintextSha256": _HEX}
_RESULT = {
    "unit": "|".join(UNITS),
    "device": "cpu|cuda|mps|xpu",
    "initialDigest": _HEX,
    "outputDigest": _HEX,
    "outputSha256": _HEX,
    "workloadDigest": _HEX,
    "unitInfo.*": _WITHHELD,
    "exit.signal": r"SIG[A-Z0-9+]{1,12}",
    "weights.firstDigest": _HEX,
    "weights.lastDigest": _HEX,
    **{f"machineStart.{name}": form for name, form in _MACHINE.items()},
    **{f"machineEnd.{name}": form for name, form in _MACHINE.items()},
    **{
        f"telemetry[].gpu[].{name}": GPU_STATE
        for name in ("smMhz", "memMhz", "powerW", "tempC", "utilPct", "throttle")
    },
}
_NEEDLE = {"class": _CODE, "where": NEEDLE_PLACE}
_BODIES: Final[dict[str, dict[str, str]]] = {
    "released": {"run": r"20\d{6}-\d{6}-[a-z2-7]{6}", "leg": r"s\d{3}"},
    "unsealed": {"keyAtRest": _CODE, **{f"keyResidue[].{name}": form for name, form in _NEEDLE.items()}},
    "trainer-hardened": dict.fromkeys(("fs", "shm", "network", "reads", "sockets"), _CODE),
    "progress": {"phase": _CODE},
    "trained": {f"result.{name}": form for name, form in _RESULT.items()},
    "sealed-outputs": dict(_OUTPUTS),
    "checkpoint-sealed": {**_OUTPUTS, "state": _CODE},
    "watched": dict(_OUTPUTS),
    "execs-counted": {"counted": _CODE},
    "zeroized": {
        **{f"outputs.{name}": form for name, form in _OUTPUTS.items()},
        **{f"needles[].{name}": form for name, form in _NEEDLE.items()},
        **{f"buffers.{place}.cache": DEVICE_CACHE for place in ("host", "device", "ranks", "package")},
        "residue": _CODE,
        "runtimeState": _CODE,
        "scannedBy.custodian": _CODE,
        "scannedBy.trainer": _CODE,
        "scannedBy.keeper": _CODE,
        "keeper.ended": "asked|killed|died",
    },
    "failed": {"code": _CODE},
}
assert set(_BODIES) == set(EVENT_TYPES)
_ENVELOPE = {"prev": _HEX, "sig": r"[A-Za-z0-9_\-]{86}"}
_EVENT: Final = {
    kind: {
        **_ENVELOPE,
        "type": re.escape(kind),
        **{f"body.{name}": form for name, form in {**body, "code": _CODE, "reasonCodes[]": _CODE}.items()},
    }
    for kind, body in _BODIES.items()
}
_END: Final = {
    **_RESULT,
    **{f"result.{name}": form for name, form in _RESULT.items()},
    "arm": "raw|protected",
    "status": "complete|failed",
    "code": _CODE,
    "reasonCodes[]": _CODE,
    "eventsHead": _HEX,
}
_FILE: Final = re.compile(r"(?:^|/)(?:(events)\.jsonl|(result)\.json)(?::\d+)?\Z")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}(?:-\d{1,3})?\Z")


def strangers(file: str, value: object) -> Iterator[tuple[str, str]]:
    """(kind, way) of each string in a pod's file that has no form, or not its own; none of other files."""
    found = _FILE.search(file)
    if found is None:
        return
    if not isinstance(value, Mapping):
        yield "not-of-its-form", ""
        return
    forms = _EVENT.get(str(value.get("type"))) if found[1] else _END
    if forms is None:
        yield "not-of-its-form", ".type"
        return
    yield from _walk(value, "", forms, 0)


def _walk(value: Any, way: str, forms: Mapping[str, str], depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        yield "too-deep", f".{way}"
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str) or _NAME.match(name) is None:
                yield "not-of-its-form", f".{way} (a name in it)"
                continue
            yield from _walk(item, f"{way}.{name}" if way else name, forms, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, f"{way}[]", forms, depth + 1)
    elif isinstance(value, str):
        form = forms.get(way)
        if form is None:
            form = forms.get(f"{way.rpartition('.')[0]}.*")
        if form is None:
            yield "not-listed", f".{way}"
        elif re.fullmatch(form, value) is None:
            yield "not-of-its-form", f".{way}"
