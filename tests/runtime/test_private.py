"""A private leg signs no size and no digest without a salt; its owner finds all of it in the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from glasshouse.sealing.outputs import PREFIX_BYTES
from glasshouse.sealing.padding import FLOOR, padme
from tests.runtime.rig import rig

WIDE = """
class Workload(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.info = {"rowsPerUnit": 1, "trainableParams": 40009}
        self.weights = HostTensor(4 * 40009)
        with open("/dev/urandom", "rb", buffering=0) as source:
            source.readinto(self.weights.memory)
"""


def numbers(value: Any) -> Iterator[float]:
    """Every number anywhere in JSON data."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_a_private_leg_signs_nothing_that_confirms_a_guess() -> None:
    with rig(WIDE, data={"rows": b"row" * 7000}) as made:
        leg = made.launch(private=True)
        result = leg.wait()
        assert result["status"] == "complete", (result, leg.log)
        signed = (leg.folder / "events.jsonl").read_text()
        outputs = bytes(made.open(leg, "outputs.sealed").tensors["weights"][1])
        log = made.open(leg, "log.sealed").files
        whole = json.loads(bytes(log["events.json"]))
        assert set(whole) == {"unsealed", "trained", "sealed-outputs", "zeroized"}
        trained = whole["trained"]["result"]
        assert trained["unitInfo"]["trainableParams"] == 40009
        assert trained["outputBytes"] > len(outputs) == 4 * 40009
        assert trained["outputSha256"] not in signed
        assert hashlib.sha256(outputs).hexdigest() not in signed
        sizes = {40009, len(outputs), trained["outputBytes"], whole["unsealed"]["bytes"]}
        sizes |= {whole["sealed-outputs"]["bytes"], whole["zeroized"]["buffers"]["host"]["bytes"]}
        assert sizes & set(numbers([json.loads(line) for line in signed.splitlines()])) == set()
        for name in ("outputs.sealed", "log.sealed"):  # of the one, 160 KB; of the other, less than the floor
            size = (leg.folder / name).stat().st_size - PREFIX_BYTES
            assert size == padme(size) >= FLOOR
        # What is left is what verification and the owner's digests need.
        shown = leg.event("trained")["result"]
        assert {"workloadDigest", "initialDigest", "outputDigest", "outputDiffers"} <= set(shown)
        assert (shown["finalLoss"], shown["lossFinite"], shown["lossCurve"]) == (None, True, [])
        assert isinstance(trained["finalLoss"], float)
        assert {needle["positiveControl"] for needle in leg.event("zeroized")["needles"]} <= {0, 1}
        assert all("needles" not in needle for needle in leg.event("zeroized")["needles"])
        assert leg.event("zeroized")["outputs"] == leg.event("sealed-outputs")
        assert leg.event("zeroized")["buffers"]["host"]["readBackZero"] is True
        assert leg.log == ""


def test_a_public_leg_signs_all_of_it_and_seals_no_second_copy() -> None:
    with rig(WIDE) as made:
        leg = made.launch()
        assert leg.wait()["status"] == "complete"
        assert leg.event("trained")["result"]["unitInfo"]["trainableParams"] == 40009
        assert leg.event("unsealed")["bytes"] > 0
        assert not (leg.folder / "log.sealed").exists()
