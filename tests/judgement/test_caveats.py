"""Every caveat: what makes it fire, and the nearest thing that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from glasshouse.judgement.caveats import CAVEATS, Observed, caveat, caveats_of, with_controls
from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.judge import judge
from glasshouse.judgement.rules import OPEN

from .facts import (
    H100,
    LORA,
    THROTTLED,
    Needle,
    allocation,
    facts,
    failed,
    launch,
    needle,
    on_gpu,
    ssh_spec,
    with_launches,
    with_lifecycle,
    with_result,
    zeroization,
)

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("simulated", {"tier": "simulated"}, {}),
    ("simulated", {"tier": "simulated"}, {"tier": "reported"}),
    ("not-a-tee", {}, {"tier": "simulated"}),
    ("reported-only", {"tier": "reported"}, {}),
    ("negative-delta", {"overhead_pct": -0.01}, {"overhead_pct": 0.0}),
    ("single-sample", {"overhead_pct": 1.0, "samples": 1}, {"overhead_pct": 1.0, "samples": 8}),
    ("short", {"measured_sec": 899.9}, {"measured_sec": 900.0}),
    ("short-warmup", {"warmup_sec": 4.9, "order": "raw-first"}, {"warmup_sec": 5.0, "order": "raw-first"}),
    ("short-warmup", {"warmup_sec": 0.9, "order": "abba"}, {"warmup_sec": 1.0, "order": "abba"}),
    ("order-confounded", {"order": "protected-first"}, {"order": "abba"}),
    ("order-confounded", {"order": "raw-first"}, {"order": None}),
    ("order-unclear", {"order_clear": False}, {}),
    ("synthetic-workload", {"synthetic_workload": True}, {}),
    ("random-weights", {"random_weights": True}, {}),
    ("host-bound", {"host_bound": True}, {"host_bound": None}),
    ("no-control", {"overhead_pct": 1.0}, {"overhead_pct": 1.0, "controlled": True}),
    ("no-control", {"overhead_pct": 1.0}, {"overhead_pct": 1.0, "is_control": True}),
    ("no-control", {"overhead_pct": 1.0}, {"overhead_pct": None}),
    ("control-failed", {"control_failed": True}, {}),
    ("blocks-dropped", {"dropped_blocks": 1}, {"dropped_blocks": 0}),
    ("disturbed", {"disturbed": ("throttled",)}, {"disturbed": ()}),
    ("relaunched", {"relaunched": 1}, {"relaunched": 0}),
    ("payload-disclosed", {"raw_disclosed": True}, {}),
    ("host-key-tofu", {"unproven_host_key": True}, {"unproven_host_key": False}),
    (
        "event-gap",
        {"max_gap_sec": 3.01, "head_interval_sec": 1.0},
        {"max_gap_sec": 3.0, "head_interval_sec": 1.0},
    ),
    ("unwitnessed", {}, {"witnessed": True}),
    ("unwitnessed", {}, {"tier": "reported"}),
    ("registered-late", {"registered_late": True}, {}),
    ("local-pod", {"provider": "local"}, {"provider": "ssh"}),
    ("no-file-barrier", {"file_barrier": "none"}, {"file_barrier": "landlock"}),
    ("swap-on", {"swap_kib": 1}, {"swap_kib": 0}),
    ("residue-not-scanned", {"residue_scanned": False}, {"residue_scanned": None}),
    ("residue-left", {"residue_left": ("marker",)}, {}),
    ("legs-bit-identical", {"bit_identical": True}, {}),
    ("runtime-ended", {"job": True}, {}),
    ("loss-unseen", {"job": True}, {}),
    ("checkpoints-missing", {"checkpoints_missing": True}, {}),
    ("network-open", {"network_open": True}, {}),
    ("reads-unconfined", {"reads_unconfined": True}, {}),
    ("exec-in-leg", {"exec_in_leg": True}, {}),
    ("unattended", {"unattended": True}, {}),
    ("self-counted", {"self_counted": True}, {"job": True}),
    ("checkpoint-unwitnessed", {"checkpoint_unwitnessed": True}, {}),
]


@pytest.mark.parametrize(("code", "fires", "spares"), CASES)
def test_the_rule(code: str, fires: dict[str, Any], spares: dict[str, Any]) -> None:
    def seen(values: dict[str, Any]) -> tuple[str, ...]:
        return caveats_of(Observed(**{"tier": "signed"} | values), OPEN)

    assert code in seen(fires)
    assert code not in seen(spares)


def test_every_caveat_is_tested_and_explained() -> None:
    assert {code for code, _, _ in CASES} == {item.code for item in CAVEATS}
    assert len({item.code for item in CAVEATS}) == len(CAVEATS)
    for item in CAVEATS:
        assert caveat(item.code) is item
        assert len(item.text) > 80
        assert item.text.endswith(".")
    with pytest.raises(KeyError):
        caveat("no-such-caveat")


def of(found: RunFacts) -> set[str]:
    return set(judge(found).caveats)


def test_a_plain_pair() -> None:
    expected = {
        "not-a-tee", "single-sample", "order-confounded", "synthetic-workload", "no-control",
        "payload-disclosed", "unwitnessed",
    }  # fmt: skip
    assert of(facts()) == expected


def test_a_private_job_has_nothing_of_a_comparison() -> None:
    assert of(facts(ssh_spec(order="protected-only"))) == {"not-a-tee", "synthetic-workload", "unwitnessed"}


def test_blocks_are_neither_single_nor_confounded() -> None:
    found = facts(ssh_spec(order="abba", duration=3200.0))
    assert not {"single-sample", "order-confounded", "short", "short-warmup"} & of(found)


def test_facts_reach_the_rules() -> None:
    base = facts()
    slot = base.slots[1].plan
    reached = {
        "negative-delta": with_result(base, 1, units=1_900_000),
        "short": facts(ssh_spec(duration=60.0)),
        "short-warmup": with_result(base, 0, warmup_sec=1.0),
        "order-unclear": with_launches(base, 1, launch(slot, started_at=5.0, ended_at=6.0)),
        "random-weights": facts(ssh_spec(model=LORA)),
        "host-bound": on_gpu(facts(ssh_spec(gpu=H100))),
        "disturbed": with_result(base, 1, telemetry=THROTTLED),
        "relaunched": with_launches(base, 1, failed(slot, "x", lifecycle=None), launch(slot, number=2)),
        "host-key-tofu": replace(base, allocation=allocation(host_key_source="first-use")),
        "event-gap": with_lifecycle(base, 1, max_gap_sec=9.0),
        "local-pod": facts(ssh_spec(provider={"kind": "local"})),
        "no-file-barrier": with_lifecycle(base, 1, file_barrier="none"),
        "swap-on": with_lifecycle(base, 1, swap_kib=4096),
        "residue-not-scanned": with_lifecycle(base, 1, zeroization=zeroization(residue="not-scanned")),
        "residue-left": with_lifecycle(base, 1, zeroization=zeroization(needles=(needle("marker", 2, 1),))),
        "legs-bit-identical": with_result(
            with_result(facts(ssh_spec(duration=None, steps=2000)), 0, output_sha256="same"),
            1,
            output_sha256="same",
        ),
    }
    for code, found in reached.items():
        assert code in of(found), code
        assert code not in of(base), code
    assert "unwitnessed" not in of(replace(base, witnesses=("w",)))
    assert "no-control" not in of(facts(ssh_spec(control="delay")))
    blocks = facts(ssh_spec(order="abba", duration=3200.0))
    dropped = with_result(blocks, 2, telemetry=THROTTLED)
    assert "blocks-dropped" in of(dropped)
    assert "disturbed" not in of(dropped)


def test_heads_of_a_long_private_job_are_expected_the_more_rarely() -> None:
    """A leg of `launch` takes 1900 seconds, of which 0.4 % are 7.6; the interval of measurements is 1."""
    job = facts(ssh_spec(order="protected-only", payload="private"))
    assert "event-gap" not in of(with_lifecycle(job, 0, max_gap_sec=22.0))
    assert "event-gap" in of(with_lifecycle(job, 0, max_gap_sec=23.0))
    assert "event-gap" in of(with_lifecycle(facts(ssh_spec(order="protected-only")), 0, max_gap_sec=22.0))


def test_a_search_without_its_positive_control_is_no_search() -> None:
    def scanned(*needles: Needle) -> bool:
        found = with_lifecycle(facts(), 1, zeroization=zeroization(needles=needles))
        return "residue-not-scanned" not in of(found)

    # The key is searched for twice, and must be there once: in the trainer it is gone already.
    assert scanned(needle("key", 2, 0), needle("key", 0, 0))
    assert not scanned(needle("key", 2, 0), needle("marker", 0, 0))
    assert not scanned()


def test_bytes_of_a_device_need_not_have_been_in_host_memory() -> None:
    """On a GPU the search covers the host; the device is read back, and what it freed is given back."""
    key, parameter = needle("key", 2, 0), needle("trained-parameter", 0, 0, "trainer/cuda")

    def of_leg(run: RunFacts, *needles: Needle, **report: Any) -> set[str]:
        found = with_lifecycle(run, 1, zeroization=zeroization(needles=needles, **report))
        return {"residue-not-scanned", "residue-left"} & set(of(found))

    def of_device(*needles: Needle, **report: Any) -> set[str]:
        return of_leg(on_gpu(facts()), *needles, **report)

    assert of_device(key, parameter, device_cache="released") == set()
    assert of_device(key, parameter, device_cache="kept") == {"residue-not-scanned"}
    assert of_device(key, parameter) == {"residue-not-scanned"}
    assert of_device(key, device_cache="kept") == {"residue-not-scanned"}  # with or without a sample of it
    assert of_device(parameter, device_cache="released") == {"residue-not-scanned"}  # the search saw nothing
    assert of_device(key, parameter.model_copy(update={"after": 1}), device_cache="released") == {
        "residue-left"
    }
    # Nor does a device excuse what the host should have shown, under any name,
    marker = needle("marker", 0, 0)
    assert of_device(key, parameter, marker, device_cache="released") == {"residue-not-scanned"}
    namesake = needle("marker", 1, 0, "trainer/cuda")
    assert of_device(key, namesake, marker, device_cache="released") == {"residue-not-scanned"}
    # and a leg on the processor has no device to speak of.
    assert of_leg(facts(), key, parameter, device_cache="released") == {"residue-not-scanned"}


def test_controls_lift_or_downgrade() -> None:
    codes = judge(facts()).caveats
    assert "no-control" in codes
    assert with_controls(codes, passed=False, failed=False) == codes
    assert "no-control" not in with_controls(codes, passed=True, failed=False)
    downgraded = with_controls(codes, passed=True, failed=True)
    assert {"no-control", "control-failed"} <= set(downgraded)
    order = [item.code for item in CAVEATS]
    assert list(downgraded) == sorted(downgraded, key=order.index)
