"""Why a rule may have nothing to look at: what is missing, in words, or "" where something is there. Pure."""

from __future__ import annotations

from collections.abc import Callable

from glasshouse.judgement.facts import RunFacts


def asks_gpu(facts: RunFacts) -> bool:
    """Whether a GPU type was asked for: `auto` takes what is there, `cpu` none."""
    return bool(facts.spec.gpu.provider_names)


def no_slots(arm: str) -> Callable[[RunFacts], str]:
    """No slot of this arm was planned."""

    def absent(facts: RunFacts) -> str:
        planned = any(slot.plan.arm == arm for slot in facts.slots)
        return "" if planned else f"no {arm} slot was planned: nothing to check"

    return absent


def none_protected(facts: RunFacts) -> str:
    """No protected slot was planned."""
    planned = any(slot.plan.lifecycle for slot in facts.slots)
    return "" if planned else "no slot was planned to run protected: nothing to check"


def none_chained(facts: RunFacts) -> str:
    """No protected leg signed an event."""
    if any(life.chain is not None for _, _, life in facts.lifecycles):
        return ""
    return none_protected(facts) or "no protected leg got as far as its first event: nothing to check"


def none_released(facts: RunFacts) -> str:
    """No payload was released."""
    if any(life.released or launch.complete for _, launch, life in facts.lifecycles):
        return ""
    return none_protected(facts) or "no payload was released to any leg: nothing to check"


def no_raw_files(facts: RunFacts) -> str:
    """No raw leg was given files."""
    raw = [slot for slot in facts.slots if slot.plan.arm == "raw" and not slot.plan.lifecycle]
    if any(launch.record.raw_files_removed is not None for slot in raw for launch in slot.launches):
        return ""
    return (
        "no raw slot was planned: nothing to check" if not raw else "no raw leg got so far: nothing to check"
    )


def no_results(facts: RunFacts) -> str:
    """No leg has a result."""
    return "" if facts.all_results else "no leg got as far as a result: nothing to check"


def no_policy(facts: RunFacts) -> str:
    """The policy asks nothing of a project, or none was released."""
    policy = facts.spec.policy
    if policy.require_confined_reads or policy.refuse_execs:
        return none_released(facts)
    return "the policy asks nothing of a project: nothing to check"


def nothing_of_an_end(facts: RunFacts) -> bool:
    """Whether it is no project's run, and no other job's that its ceiling ended."""
    return of_no_project(facts) and all(result.exit is None for _, result in facts.all_results)


def of_a_project(facts: RunFacts) -> bool:
    """Whether a user's own command was run, which has no losses, steps or buffers of ours."""
    return facts.spec.workload == "project"


def of_no_project(facts: RunFacts) -> bool:
    """Whether what trained was a workload that we call."""
    return not of_a_project(facts)


def no_gpu_seen(facts: RunFacts) -> str:
    """A GPU was asked for, and neither provider nor driver named one."""
    given = facts.allocation is not None and facts.allocation.gpu_model is not None
    return "" if not asks_gpu(facts) or given else no_results(facts)
