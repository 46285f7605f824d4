"""The order of a leg's events, by both who judge it: records/chain.py, and the row page's code under Node."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

import pytest

from glasshouse.canonical import b64u
from glasshouse.records.keys import public_bytes
from tests.records.test_chain import EVENT_KEY, GRANT, events, found

from .conftest import ROOT

_JUDGE = """
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
const { checkEvents } = await import(pathToFileURL(process.argv[1]).href);
for await (const line of createInterface({ input: process.stdin })) {
  const { events, key, grant, complete } = JSON.parse(line);
  const bytes = new Uint8Array(Buffer.from(events));
  const read = await checkEvents(bytes, new Uint8Array(Buffer.from(key, "base64url")), grant, complete);
  console.log(JSON.stringify([...read.faults.keys()]));
}
"""
_START = ("released", "unsealed", "trainer-hardened")
_MIDDLE = ("progress", "checkpoint-sealed", "watched", "trained", "sealed-outputs", "execs-counted")
_OF_A_JOB = (
    *_START, "progress", "watched", "checkpoint-sealed", "watched", "trained", "progress", "progress",
    "sealed-outputs", "execs-counted", "zeroized",
)  # fmt: skip


def orders() -> list[tuple[str, ...]]:
    """Of a job whose outputs take long to seal: whole, cut off, failed at each point, one event missing or
    one too many; and others at random.
    """
    length = len(_OF_A_JOB)
    made = [
        _OF_A_JOB,
        *(_OF_A_JOB[:at] for at in range(1, length)),
        *((*_OF_A_JOB[:at], "failed") for at in range(length)),
        *((*_OF_A_JOB[:at], *_OF_A_JOB[at + 1 :]) for at in range(length)),
        *((*_OF_A_JOB[:at], kind, *_OF_A_JOB[at:]) for at in range(length) for kind in _MIDDLE),
    ]
    drawn = random.Random(1)
    for _ in range(150):
        middle = drawn.choices(_MIDDLE, k=drawn.randrange(6))
        made.append((*_START, *middle, drawn.choice(("zeroized", "failed", "sealed-outputs"))))
    return made


def test_both_take_the_same_orders() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    asked, expected = [], []
    for order in orders():
        chain = found(data := events(order))
        for complete in (True, False):
            asked.append({
                "events": data.decode(), "key": b64u(public_bytes(EVENT_KEY)), "grant": GRANT,
                "complete": complete,
            })  # fmt: skip
            refused = "event-order" in chain.codes or (complete and not chain.whole)
            expected.append(["event-order"] if refused else [])
    script = ROOT / "site/assets/verify/launches.js"
    done = subprocess.run(
        [node, "--input-type=module", "-e", _JUDGE, str(script)],
        input="".join(json.dumps(one) + "\n" for one in asked), capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        (number // 2, one["complete"])
        for number, (one, mine, theirs) in enumerate(zip(asked, expected, said, strict=True))
        if mine != theirs
    ]
    assert [(orders()[at], complete) for at, complete in wrong] == []
    assert expected[0] == []  # the first is the whole one
    assert ["event-order"] in expected
