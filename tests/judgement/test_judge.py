from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.judgement.caveats import CAVEATS
from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.figures import estimate_of, figures_of, overhead_pct
from glasshouse.judgement.judge import judge, row_id
from glasshouse.judgement.rules import METHOD, OPEN, RULES

from .facts import H100, facts, failed, on_gpu, release, ssh_spec, with_launches, with_result


def at_rates(found: RunFacts, raw: float, protected: float) -> RunFacts:
    for index, slot in enumerate(found.slots):
        rate = raw if slot.plan.arm == "raw" else protected
        assert slot.result is not None
        found = with_result(found, index, units=rate * slot.result.elapsed_sec)
    return found


def overhead(found: RunFacts) -> float | None:
    return overhead_pct(found, estimate_of(found))


@pytest.mark.parametrize(
    ("raw", "protected", "published"),
    [  # from the rows published before this software existed: May 15 and 16, 2026
        (937.134, 839.133, 10.46),
        (707.015, 916.788, -29.67),
        (707.995, 580.205, 18.05),
        (1059.493, 1032.108, 2.58),
    ],
)
def test_a_pairs_overhead_is_as_published(raw: float, protected: float, published: float) -> None:
    value = overhead(at_rates(facts(), raw, protected))
    assert value is not None
    assert round(value, 2) == published


def test_a_blocks_overhead_is_the_geometric_one() -> None:
    found = at_rates(facts(ssh_spec(order="abba", duration=3200.0)), 1000.0, 980.0)
    figures = figures_of(found)
    assert figures.overhead_pct == pytest.approx(2.0)
    assert figures.overhead.n == 8
    assert figures.overhead.verdict in ("within", "exceeds", "inconclusive")


def rented(usd_per_hour: float | None, proof: Any = "zero") -> RunFacts:
    """A rented run held from second 1000 to second 2800."""
    provider = {"kind": "runpod", "base_url": "https://withheld.invalid", "image": "i"}
    base = facts(ssh_spec(provider=provider, gpu={**H100, "max_usd_per_hour": {"runpod": 4.0}, "count": 2}))
    assert base.allocation is not None
    return replace(
        base,
        allocation=base.allocation.model_copy(update={"usd_per_hour": usd_per_hour, "rented_at": 1000.0}),
        release=release(
            proof=proof, pod_folder_removed=None, processes_left=None, checked_at=(2790.0, 2800.0)
        ),
    )


def test_a_rented_run_states_what_it_cost_and_others_do_not() -> None:
    figures = figures_of(rented(3.0))
    assert (figures.held_sec, figures.cost_usd) == (1800.0, 1.5)
    assert figures_of(rented(None)).cost_usd is None
    # What may still bill has no cost yet.
    assert figures_of(rented(3.0, "unknown")).cost_usd is None
    assert b"costUsd" not in figures_of(facts()).to_bytes()


def test_a_machine_that_never_became_usable_cost_at_most_what_would_have_been_accepted() -> None:
    unused = replace(rented(3.0), allocation=None)
    assert figures_of(unused).cost_usd is None  # nothing was created
    figures = figures_of(replace(unused, rented_at=1000.0))
    assert (figures.held_sec, figures.cost_usd) == (1800.0, 4.0)  # half an hour of two GPUs


def test_a_simulated_run_says_so_before_anything_else() -> None:
    assert judge(replace(facts(), simulated=True)).caveats[0] == "simulated"
    assert "simulated" not in judge(facts()).caveats


def test_no_overhead_without_both_arms() -> None:
    assert overhead(facts(ssh_spec(order="protected-only"))) is None
    assert overhead(with_launches(facts(), 0)) is None
    blocks = facts(ssh_spec(order="abba", duration=3200.0))
    for index in range(len(blocks.slots)):
        blocks = with_launches(blocks, index)
    assert overhead(blocks) is None


def test_fixed_cost_is_of_protected_launches() -> None:
    figures = figures_of(facts())
    assert figures.fixed_cost_sec == {"sealSec": 1.0, "uploadSec": 2.0, "unsealSec": 0.5, "totalSec": 3.5}
    assert figures.raw_upload_sec == 3.0
    assert figures_of(with_launches(facts(), 1)).fixed_cost_sec is None


def test_the_roofline_is_there_where_the_limits_are_known() -> None:
    assert figures_of(facts()).roofline is None
    share = figures_of(on_gpu(facts(ssh_spec(gpu=H100)))).roofline.share
    assert 0 < share < 0.2


def test_controls_say_what_they_show() -> None:
    control = figures_of(
        at_rates(facts(ssh_spec(order="abba", duration=3200.0, control="aa")), 100, 100)
    ).control
    assert (control.kind, control.outcome) == ("aa", "passed")
    delayed = at_rates(facts(ssh_spec(order="abba", duration=3200.0, control="delay")), 103.0, 100.0)
    assert figures_of(delayed).control.kind == "delay"
    assert figures_of(facts()).control is None
    # A control that measured nothing is still one.
    none = figures_of(with_launches(facts(ssh_spec(control="delay")), 0)).control
    assert (none.kind, none.outcome, none.reason) == (
        "delay",
        "inconclusive",
        "no figure to compare",
    )


def test_the_record_is_one_canonical_document() -> None:
    judgement = judge(facts())
    record = parse_json(judgement.record())
    assert judgement.record() == canonical_json(record)
    assert set(record) == {"method", "run", "id", "status", "exclusion", "caveats", "figures", "checks"}
    assert record["exclusion"] is None
    excluded = parse_json(judge(replace(facts(), failures=("boot-failed",))).record())
    assert excluded["exclusion"] == {"codes": ["boot-failed"], "observed": "the run ended so"}
    # An excluded row keeps what was measured; it just counts for nothing.
    assert excluded["figures"]["protected"] == record["figures"]["protected"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"duration": 60.0}, "2026-01-02-ssh-auto-mlp-60s-raw-first-abcdef"),
        (
            {"duration": 1800.0, "order": "protected-first"},
            "2026-01-02-ssh-auto-mlp-30m-protected-first-abcdef",
        ),
        ({"duration": 90.0}, "2026-01-02-ssh-auto-mlp-90s-raw-first-abcdef"),
        ({"duration": 2.5}, "2026-01-02-ssh-auto-mlp-2.5s-raw-first-abcdef"),
        ({"duration": None, "steps": 256}, "2026-01-02-ssh-auto-mlp-256steps-raw-first-abcdef"),
        ({"control": "aa"}, "2026-01-02-ssh-auto-mlp-30m-raw-first-aa-abcdef"),
    ],
)
def test_row_ids_read_like_the_published_ones(changes: dict[str, Any], expected: str) -> None:
    assert row_id("20260102-030405-abcdef", ssh_spec(**changes)) == expected


def test_order_is_judged_by_what_happened() -> None:
    base = facts()
    first, second = base.slots[0].launches[0], base.slots[1].launches[0]
    early = second.record.model_copy(update={"started_at": first.record.ended_at - 1})
    overlapping = replace(second, record=early)
    assert "order-unclear" in judge(with_launches(base, 1, overlapping)).caveats
    assert "order-unclear" not in judge(base).caveats


numbers = st.one_of(st.integers(0, 10**9), st.floats(0, 1e9), st.sampled_from([5e-324, 1e-300, 1e300]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_judging_is_total_and_repeatable(data: st.DataObject) -> None:
    order = data.draw(st.sampled_from(["raw-first", "protected-first", "protected-only"]))
    found = facts(ssh_spec(order=order))
    for index in range(len(found.slots)):
        kind = data.draw(st.sampled_from(["good", "none", "failed"]))
        if kind == "none":
            found = with_launches(found, index)
        elif kind == "failed":
            found = with_launches(found, index, failed(found.slots[index].plan, "some-code"))
        else:
            units, elapsed = data.draw(numbers), data.draw(numbers)
            found = with_result(
                found, index, units=units, elapsed_sec=elapsed, steps=data.draw(st.integers(0, 9))
            )
    judgement = judge(found)
    assert judgement.record() == judge(found).record()
    value = judgement.overhead_pct
    assert value is None or math.isfinite(value)
    assert (judgement.status == "verified") == (not judgement.exclusion)


def test_rules_and_caveats_apply_from_their_method_on() -> None:
    """A record judged by an older method is judged by the same rules for ever."""
    bad = replace(facts(), failures=("boot-failed",))
    before = judge(bad, method=0)
    assert (before.method, before.caveats) == (0, ())
    assert [check.code for check in before.checks] == ["boot-failed"]
    assert judge(bad).method == METHOD
    assert {rule.since for rule in RULES} | {item.since for item in CAVEATS} <= set(range(1, OPEN + 1))


def test_checks_that_hold_carry_no_prose_into_the_record() -> None:
    record = parse_json(judge(replace(facts(), failures=("boot-failed",))).record())
    assert all(bool(check["detail"]) != check["ok"] for check in record["checks"])
