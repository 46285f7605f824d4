"""Every reason code: a run for which it is given, and one for which it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.judge import judge
from glasshouse.judgement.rules import OPEN, RULES, check_rules
from glasshouse.reasons import REASONS, reason
from glasshouse.schema import Execs, Hardened, JobExit, Weights

from .facts import (
    H100,
    LORA,
    facts,
    failed,
    launch,
    lifecycle,
    machine,
    on_gpu,
    result,
    ssh_spec,
    with_launches,
    with_lifecycle,
    with_result,
    zeroization,
)

# slot 0 is raw, slot 1 protected
Build = Callable[[], RunFacts]
STEPS = {"duration": None, "steps": 2000}


def codes(found: RunFacts) -> set[str]:
    return {check.code for check in check_rules(found) if not check.ok}


def slot(found: RunFacts, index: int) -> Any:
    return found.slots[index].plan


def gpu_run(**changes: Any) -> RunFacts:
    return on_gpu(facts(ssh_spec(gpu=H100 | changes)))


def spoil_edge(found: RunFacts, index: int, edge: str, **changes: Any) -> RunFacts:
    done = found.slots[index].result
    assert done is not None
    return with_result(found, index, **{edge: getattr(done, edge).model_copy(update=changes)})


def relaunched(*codes_of_first: str) -> RunFacts:
    base = facts()
    first = [failed(slot(base, 1), code, lifecycle=None) for code in codes_of_first]
    last = launch(slot(base, 1), number=len(first) + 1)
    return with_launches(base, 1, *first, last)


def equal_adapters(spec: Any, **changes: Any) -> RunFacts:
    found = facts(spec)
    for index in (0, 1):
        found = with_result(found, index, output_sha256="same", **changes)
    return found


def uneven_adapters() -> RunFacts:
    return with_result(equal_adapters(ssh_spec(model=LORA, **STEPS)), 1, steps=2019)


def unattested() -> RunFacts:
    return with_launches(facts(), 1, failed(slot(facts(), 1), "boot-failed", lifecycle=None))


def given_back(**changes: Any) -> RunFacts:
    found = facts()
    assert found.release is not None
    return replace(found, release=found.release.model_copy(update=changes))


def allocated(found: RunFacts, **changes: Any) -> RunFacts:
    assert found.allocation is not None
    return replace(found, allocation=found.allocation.model_copy(update=changes))


def wiped(**changes: Any) -> RunFacts:
    return with_lifecycle(facts(), 1, zeroization=zeroization(**changes))


def project(**changes: Any) -> RunFacts:
    """A project that ended with exit code 0. `changes` are of how its command ended."""
    withheld = {"kind": "withheld", "workload": "project"}
    found = facts(
        ssh_spec(model=withheld, payload="private", order="protected-only", duration=None, steps=None)
    )
    said = {"code": 0, "signal": None, "out_of_memory": False, "out_of_time": False} | changes
    ended = JobExit.model_validate(said)
    found = with_result(
        found, 0, exit=ended, final_loss=None, loss_curve=(), units=1, steps=0, output_differs=False
    )
    none = Execs(started=0, refused=0, counted="notified")
    return with_lifecycle(found, 0, zeroization=zeroization(runtime_state="ended"), execs=none)


def raw_launch(**changes: Any) -> RunFacts:
    return with_launches(facts(), 0, launch(slot(facts(), 0), **changes))


def test_a_good_run_breaks_no_rule() -> None:
    for found in (
        facts(),
        facts(ssh_spec(order="abba", duration=3200.0)),
        facts(ssh_spec(order="protected-only")),
        facts(ssh_spec(control="aa")),
        facts(ssh_spec(**STEPS)),
        gpu_run(),
        relaunched("broker-unreachable"),
        project(),
        strict(),
    ):
        assert codes(found) == set()
        assert judge(found).status == "verified"


@pytest.mark.parametrize(
    ("started", "refused", "counted", "fires"),
    [
        (0, 0, "notified", False), (0, 3, "notified", False), (0, 0, "filter", False),
        (1, 0, "notified", True), (1, 0, "table", True), (0, 0, "table", True), (0, 0, "none", True),
    ],
)  # fmt: skip
def test_a_project_that_is_not_shown_to_have_started_no_program_says_so(
    started: int, refused: int, counted: str, fires: bool
) -> None:
    said = programs(started, refused, counted)
    found = judge(with_lifecycle(project(), 0, execs=said))
    assert found.status == "verified"
    assert ("exec-in-leg" in found.caveats) == fires
    assert found.figures.execs == said


def test_programs_are_a_matter_of_projects_that_ended_alone() -> None:
    said = Execs(started=3, refused=0, counted="notified")
    other = judge(with_lifecycle(facts(), 1, execs=said))
    assert "exec-in-leg" not in other.caveats
    assert other.figures.execs is None
    assert b"execs" not in other.record()
    unsaid = judge(with_lifecycle(project(), 0, execs=None))
    assert "exec-in-leg" in unsaid.caveats
    assert b"execs" not in unsaid.record()
    # One that did not come so far started nothing that is known of, and is excluded anyway.
    lost = judge(with_lifecycle(project(), 0, execs=None, zeroization=None))
    assert (lost.status, "exec-in-leg" in lost.caveats) == ("excluded", False)


def test_steps_that_a_project_counted_are_said_to_be_its_own() -> None:
    said = Weights(first_digest="1" * 64, last_digest="2" * 64)
    counted = judge(with_result(project(), 0, steps=1500, weights=said))
    assert (counted.status, counted.method) == ("verified", OPEN)
    assert {"self-counted", "loss-unseen"} <= set(counted.caveats)
    assert counted.figures.protected is not None
    assert (counted.figures.protected.steps, counted.figures.weights) == (1500, said)
    assert counted.figures.weights.words == "its weights, where sampled, changed"
    none = judge(project())
    assert "loss-unseen" in none.caveats
    assert "self-counted" not in none.caveats
    assert b"weights" not in none.record()
    # Of a workload that is measured the harness counts, whatever its result holds.
    other = judge(with_result(facts(), 1, weights=said))
    assert "self-counted" not in other.caveats
    assert b"firstDigest" not in other.record()


def test_what_digests_of_weights_tell() -> None:
    one, other = "1" * 64, "2" * 64
    unseen = "whether its weights changed was not seen"
    for first, last, words in [
        (one, one, "its weights, where sampled, did not change"), (one, None, unseen), (None, other, unseen),
    ]:  # fmt: skip
        assert Weights(first_digest=first, last_digest=last).words == words


def strict(**changes: Any) -> RunFacts:
    """A project under a policy that confines its reading and lets it start nothing."""
    found = project()
    demands = {"require_confined_reads": True, "refuse_execs": True}
    policy = found.spec.policy.model_copy(update=demands)
    found = replace(found, spec=found.spec.model_copy(update={"policy": policy}))
    return with_lifecycle(found, 0, **{"hardened": Hardened(reads="mounts"), **changes})


def programs(started: int, refused: int, counted: str) -> Execs:
    return Execs.model_validate({"started": started, "refused": refused, "counted": counted})


@pytest.mark.parametrize(
    "said", [programs(0, 0, "notified"), programs(0, 5, "notified"), programs(0, 0, "filter")]
)
def test_a_policy_that_was_kept(said: Execs) -> None:
    assert codes(strict(execs=said)) == set()
    assert (
        codes(with_lifecycle(project(), 0, hardened=Hardened(reads="none"), execs=programs(3, 0, "table")))
        == set()
    )


FIRES: list[tuple[str, Build]] = [
    ("raw-incomplete", lambda: with_launches(facts(), 0)),
    ("raw-incomplete", lambda: raw_launch(result=None)),
    ("protected-incomplete", lambda: with_launches(facts(), 1)),
    ("attestation-not-verified", lambda: with_launches(facts(), 1)),
    ("attestation-not-verified", unattested),
    ("attestation-not-verified", lambda: with_lifecycle(facts(), 1, attestation=("nonce-replay",))),
    ("attestation-not-verified", lambda: with_lifecycle(facts(), 1, attestation=None)),
    ("attestation-not-verified", lambda: with_lifecycle(facts(), 1, released=False)),
    ("attestation-not-verified", lambda: with_launches(facts(), 1, launch(slot(facts(), 1), lifecycle=None))),
    ("event-chain-broken", lambda: with_lifecycle(facts(), 1, chain=("event-link",))),
    ("event-chain-broken", lambda: with_lifecycle(facts(), 1, chain=None)),
    ("runtime-not-zeroized", lambda: with_lifecycle(facts(), 1, zeroization=None)),
    ("runtime-not-zeroized", lambda: wiped(unwiped=("device",))),
    ("runtime-not-zeroized", lambda: wiped(trainer_exit=None)),
    ("runtime-not-zeroized", lambda: wiped(custodian_exit=-9)),
    ("runtime-not-zeroized", lambda: wiped(tmpfs_removed=False)),
    ("raw-files-not-removed", lambda: raw_launch(raw_files_removed=False)),
    ("cleanup-not-proven", lambda: replace(facts(), release=None)),
    ("cleanup-not-proven", lambda: given_back(proof="unknown", active=None)),
    ("cleanup-not-proven", lambda: given_back(pod_folder_removed=False)),
    ("cleanup-not-proven", lambda: given_back(processes_left=2)),
    ("same-machine-not-proven", lambda: spoil_edge(facts(), 1, "machine_end", boot_id="boot-2")),
    ("same-machine-not-proven", lambda: spoil_edge(facts(), 1, "machine_start", allocation="b")),
    ("same-machine-not-proven", lambda: spoil_edge(facts(), 1, "machine_start", uptime_sec=5.0)),
    ("same-machine-not-proven", lambda: spoil_edge(gpu_run(), 1, "machine_start", gpu_uuids=("GPU-2",))),
    ("same-machine-not-proven", lambda: spoil_edge(gpu_run(), 1, "machine_start", driver="581")),
    ("same-machine-not-proven", lambda: on_gpu(facts(ssh_spec(gpu=H100)), gpu_uuids=())),
    ("same-machine-not-proven", lambda: with_lifecycle(facts(), 1, boot_id="another")),
    ("same-machine-not-proven", lambda: allocated(facts(), machine=machine(boot_id="x"))),
    ("gpu-not-as-asked", lambda: on_gpu(facts(ssh_spec(gpu=H100)), gpu_names=("NVIDIA H100 PCIe",))),
    ("gpu-not-as-asked", lambda: on_gpu(facts(ssh_spec(gpu=H100)), gpu_names=())),
    ("gpu-not-as-asked", lambda: gpu_run(count=2)),
    ("gpu-not-as-asked", lambda: with_result(gpu_run(), 1, device="cpu")),
    ("gpu-not-as-asked", lambda: allocated(gpu_run(), gpu_model="NVIDIA A100")),
    ("gpu-not-as-asked", lambda: with_result(facts(ssh_spec(gpu={"name": "cpu"})), 0, device="cuda")),
    ("workload-digest-mismatch", lambda: with_result(facts(), 1, workload_digest="other")),
    ("workload-digest-mismatch", lambda: with_result(facts(), 1, workload_digest="")),
    ("initial-weights-mismatch", lambda: with_result(facts(), 1, initial_digest="other")),
    ("final-loss-missing", lambda: with_result(facts(), 0, final_loss=None)),
    ("non-finite-loss", lambda: with_result(facts(), 0, loss_curve=((1.0, None),))),
    ("non-finite-loss", lambda: with_launches(facts(), 0, failed(slot(facts(), 0), "non-finite-loss"))),
    ("adapter-unchanged", lambda: with_result(facts(), 1, output_differs=False)),
    ("adapter-digests-equal", lambda: equal_adapters(ssh_spec(model=LORA))),
    ("adapter-digests-equal", uneven_adapters),
    ("duration-out-of-tolerance", lambda: with_result(facts(), 1, elapsed_sec=1700.0)),
    ("duration-out-of-tolerance", lambda: with_result(facts(), 1, elapsed_sec=1900.0)),
    ("duration-out-of-tolerance", lambda: with_result(facts(), 1, units=0, elapsed_sec=1800.0)),
    ("steps-not-as-planned", lambda: with_result(facts(ssh_spec(**STEPS)), 1, steps=1999)),
    ("steps-not-as-planned", lambda: with_result(facts(ssh_spec(**STEPS)), 1, units=101, steps=2020)),
    ("job-failed", lambda: project(code=7)),
    ("job-failed", lambda: project(code=None, signal="SIGKILL", out_of_memory=True)),
    ("job-failed", lambda: project(out_of_time=True)),
    ("job-failed", lambda: with_result(project(), 0, exit=None)),
    ("outputs-left-out", lambda: with_result(project(), 0, left_out=True)),
    ("runtime-not-ended", lambda: with_lifecycle(project(), 0, zeroization=zeroization())),
    ("runtime-not-ended", lambda: with_lifecycle(project(), 0, zeroization=None)),
    ("policy-not-kept", lambda: strict(hardened=Hardened(reads="none"))),
    ("policy-not-kept", lambda: strict(hardened=Hardened())),
    ("policy-not-kept", lambda: strict(hardened=None)),
    ("policy-not-kept", lambda: strict(execs=None)),
    ("policy-not-kept", lambda: strict(execs=programs(1, 0, "notified"))),
    ("policy-not-kept", lambda: strict(execs=programs(0, 0, "table"))),
    (
        "runtime-not-ended",
        lambda: with_lifecycle(
            project(), 0, zeroization=zeroization(runtime_state="ended", unwiped=("package",))
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "build"), FIRES)
def test_the_rule_fires_alone_or_with_its_kin(code: str, build: Build) -> None:
    found = build()
    assert code in codes(found)
    judgement = judge(found)
    assert judgement.status == "excluded"
    assert judgement.overhead_pct is None
    detail = next(check.detail for check in judgement.exclusion if check.code == code)
    assert detail != next(rule.text for rule in RULES if rule.code == code)


def test_every_rule_is_tested_to_fire() -> None:
    assert {code for code, _ in FIRES} == {rule.code for rule in RULES}


ONLY = {
    "attestation-not-verified", "event-chain-broken", "runtime-not-zeroized", "raw-files-not-removed",
    "cleanup-not-proven", "same-machine-not-proven", "workload-digest-mismatch", "initial-weights-mismatch",
    "final-loss-missing", "adapter-unchanged", "raw-incomplete", "protected-incomplete",
}  # fmt: skip


@pytest.mark.parametrize(("code", "build"), [item for item in FIRES if item[0] in ONLY])
def test_one_fault_gives_one_code(code: str, build: Build) -> None:
    found = build()
    # A protected slot without a launch has neither a result nor an attestation.
    bare = any(item.plan.lifecycle and not item.complete for item in found.slots)
    kin = {"protected-incomplete", "attestation-not-verified"} if bare else set()
    assert codes(found) - {"boot-failed"} == {code} | kin


# --- nothing to look at -----------------------------------------------------------------------


def details(found: RunFacts) -> dict[str, str]:
    return {check.code: check.detail for check in check_rules(found) if check.vacuous}


def test_a_check_with_nothing_to_look_at_says_so() -> None:
    assert details(facts()) == {}
    # Interrupted in the raw leg: the protected one was never launched.
    cut = with_launches(with_launches(facts(), 1), 0, failed(slot(facts(), 0), "interrupted"))
    assert "attestation-not-verified" in codes(cut)
    said = details(cut)
    assert said["event-chain-broken"] == "no protected leg got as far as its first event: nothing to check"
    assert said["runtime-not-zeroized"] == "no payload was released to any leg: nothing to check"
    assert said["final-loss-missing"] == "no leg got as far as a result: nothing to check"
    record = {check.code: check for check in judge(cut).as_record().checks}
    assert record["runtime-not-zeroized"].detail == said["runtime-not-zeroized"]
    assert all(not check.vacuous for check in check_rules(cut) if not check.ok)


def test_a_control_has_no_attestation_to_verify_and_says_so() -> None:
    said = details(facts(ssh_spec(control="aa")))
    assert set(said) == {"attestation-not-verified", "event-chain-broken", "runtime-not-zeroized"}
    assert set(said.values()) == {"no slot was planned to run protected: nothing to check"}
    only = details(facts(ssh_spec(order="protected-only")))
    assert set(only) == {"raw-incomplete", "raw-files-not-removed"}


# --- near misses: what must not exclude -----------------------------------------------------


def test_adapters_may_be_equal_where_that_is_what_should_happen() -> None:
    assert codes(equal_adapters(ssh_spec(model=LORA, **STEPS))) == set()
    assert codes(equal_adapters(ssh_spec())) == set()  # an MLP whose legs happened to take equal steps
    told = {"unit_info": {"deterministic": True}}
    assert codes(equal_adapters(ssh_spec(model=LORA), **told)) == set()
    uneven = with_result(equal_adapters(ssh_spec(model=LORA), **told), 1, warmup_units=10)
    assert codes(uneven) == {"adapter-digests-equal"}
    # What counts is every step since the start: one more of the warm-up, one less of the measured stretch.
    units = uneven.slots[1].result.units - 1
    even = with_result(uneven, 1, units=units, steps=20 * units)
    assert codes(even) == set()
    assert {check.code for check in check_rules(even, 1) if not check.ok} == {"adapter-digests-equal"}


def test_a_warm_up_that_was_undone_is_in_no_weights() -> None:
    told = {"unit_info": {"deterministic": True}, "warmup_units": 0, "undone_units": 9}
    even = with_result(equal_adapters(ssh_spec(model=LORA), **told), 1, undone_units=700)
    assert codes(even) == set()
    assert even.slots[1].result is not None
    assert even.slots[1].result.trained_steps == even.slots[1].result.steps


def a_job(**changes: Any) -> RunFacts:
    """A private job of the MLP that was asked for 2010 steps: 100 units of twenty and a half."""
    withheld = {"kind": "withheld", "workload": "mlp"}
    steps = {"duration": None, "steps": 2010}
    found = facts(ssh_spec(model=withheld, payload="private", order="protected-only", **steps))
    return with_result(found, 0, **{"units": 100.5, "steps": 2010, "warmup_units": 0} | changes)


def test_a_job_is_judged_by_the_open_method_which_takes_the_steps_asked_for_and_no_others() -> None:
    assert judge(a_job()).method == OPEN
    assert codes(a_job()) == set()
    for steps in (2009, 2011, 2020):
        found = check_rules(a_job(steps=steps, units=steps / 20))
        assert [check.code for check in found if not check.ok] == ["steps-not-as-planned"]
    warm = a_job(warmup_units=3)
    (wrong,) = [check for check in check_rules(warm) if not check.ok]
    assert wrong.detail == "s000-protected returned 2070 steps: its warm-up was not undone"
    # As jobs of before were judged, whose last unit took them past the target.
    past = a_job(steps=2020, units=101, warmup_units=3)
    assert all(check.ok for method in (1, 2) for check in check_rules(past, method))


def test_of_a_job_the_open_method_asks_for_no_warm_up() -> None:
    job = a_job(warmup_sec=0.0)
    assert "short-warmup" not in judge(job).caveats
    assert all("short-warmup" in judge(job, method).caveats for method in (1, 2))


def test_a_stretch_may_end_one_slow_unit_late() -> None:
    spec = ssh_spec(duration=2.0)
    late = with_result(facts(spec), 0, units=8, elapsed_sec=2.6)
    assert codes(late) == set()
    assert codes(with_result(facts(spec), 0, units=8, elapsed_sec=3.4)) == {"duration-out-of-tolerance"}


def test_a_fixed_step_leg_ends_on_a_whole_unit() -> None:
    spec = ssh_spec(duration=None, steps=1990)
    whole = with_result(facts(spec), 0, units=100, steps=2000)
    assert codes(with_result(whole, 1, units=100, steps=2000)) == set()


def test_a_failed_launch_before_release_may_be_repeated() -> None:
    base = facts()
    refused = failed(slot(base, 1), "attestation-refused", lifecycle=lifecycle(
        attestation=("stale-timestamp",), released=False, chain=None, zeroization=None
    ))  # fmt: skip
    found = with_launches(base, 1, refused, launch(slot(base, 1), number=2))
    assert codes(found) == set()
    died = failed(
        slot(base, 1), "process-died", lifecycle=lifecycle(chain=("heads-incomplete",), zeroization=None)
    )
    found = with_launches(base, 1, died, launch(slot(base, 1), number=2))
    assert codes(found) == {"event-chain-broken", "runtime-not-zeroized"}


def test_a_burn_in_slot_may_be_cut_but_not_on_another_machine() -> None:
    found = facts(ssh_spec(order="abba", duration=3200.0, measure={"burn_in_slots": 1}))
    assert codes(with_result(found, 0, elapsed_sec=5.0)) == set()
    assert codes(spoil_edge(found, 0, "machine_end", boot_id="other")) == {"same-machine-not-proven"}


def test_a_machine_that_is_gone_has_no_folder_to_look_at() -> None:
    assert codes(given_back(pod_folder_removed=None, processes_left=None)) == set()


def test_an_ssh_host_may_have_more_gpus_than_asked() -> None:
    found = on_gpu(facts(ssh_spec(gpu=H100)), gpu_names=("NVIDIA H100 80GB HBM3",) * 2)
    assert codes(found) == set()


def test_providers_may_call_a_gpu_by_another_name_than_its_driver() -> None:
    names = {"vastai": "H100 SXM", "driver": "NVIDIA H100 80GB HBM3"}
    found = on_gpu(facts(ssh_spec(gpu=H100 | {"provider_names": names})))
    assert codes(found) == set()
    assert codes(allocated(found, gpu_model="H100 SXM")) == set()


# --- codes of phases ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["boot-failed", "seal-failed", "lost-leg", "interrupted", "controller-killed", "new-code"]
)
def test_whatever_ended_a_run_or_a_leg_is_a_reason(code: str) -> None:
    base = facts()
    assert codes(replace(base, failures=(code,))) == {code}
    assert codes(with_launches(base, 0, failed(slot(base, 0), code))) == {"raw-incomplete", code}
    assert reason(code).text


def test_a_phase_that_ended_with_a_rules_code_fails_that_rule() -> None:
    assert codes(replace(facts(), failures=("gpu-not-as-asked",))) == {"gpu-not-as-asked"}
    found = check_rules(replace(facts(), failures=("gpu-not-as-asked",)))
    assert len({check.code for check in found}) == len(found)


def test_a_simulated_gpu_may_have_nothing_behind_it_but_not_another_name() -> None:
    on_cpu = with_result(with_result(gpu_run(), 0, device="cpu"), 1, device="cpu")
    assert codes(on_cpu) == {"gpu-not-as-asked"}
    assert codes(replace(on_cpu, simulated=True)) == set()
    other = on_gpu(facts(ssh_spec(gpu=H100)), gpu_names=("NVIDIA H100 PCIe",))
    assert "gpu-not-as-asked" in codes(replace(other, simulated=True))


def test_every_rule_has_one_code_and_its_words_in_the_catalogue() -> None:
    for rule in RULES:
        assert reason(rule.code).text == f"Not met: {rule.text}."
    assert {rule.code for rule in RULES} == {code for code, entry in REASONS.items() if entry.demand}
    assert len({rule.code for rule in RULES}) == len(RULES)


def test_a_result_that_went_missing_is_no_result() -> None:
    base = facts()
    odd = launch(slot(base, 0), code="result-malformed", result=None)
    assert codes(with_launches(base, 0, odd)) == {"raw-incomplete", "result-malformed"}
    assert result(slot(base, 0)).per_sec == 1000.0
