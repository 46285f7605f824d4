"""Whole protected legs, as programs, against what an honest workload may do."""

from __future__ import annotations

from tests.runtime.rig import rig


def test_a_leg_from_ticket_to_zeroized() -> None:
    with rig() as made:
        leg = made.launch()
        result = leg.wait()
        assert result["status"] == "complete", (result, leg.log)
        assert [event["type"] for event in leg.events()][-1] == "zeroized"
        body = leg.event("zeroized")
        print(body)
        assert body["residue"] == "scanned"
        assert leg.processes() == []
        assert made.scratch() == []
        assert leg.log == ""
        outputs = made.open(leg, "outputs.sealed")
        assert set(outputs.tensors) == {"weights"}
