"""The slot schedule of a run: which arm is timed when, for how long, derived from the spec alone.

One slot is one launch, so one fresh process. A pair runs each arm once and cannot tell protection
from order. `order=abba` runs blocks of four slots, half of them ABBA and half BAAB (A protected,
B raw): within a block a linear drift cancels, over the two kinds of block a curved one does, and
the shuffle is what the randomisation test of estimate.py refers to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from glasshouse.canonical import domain_hash
from glasshouse.errors import UsageError
from glasshouse.schema import Slot
from glasshouse.spec import Arm, RunSpec

PATTERNS: dict[str, tuple[Arm, Arm, Arm, Arm]] = {
    "ABBA": ("protected", "raw", "raw", "protected"),
    "BAAB": ("raw", "protected", "protected", "raw"),
}
STREAM_DOMAIN = "glasshouse/schedule/v1"

T = TypeVar("T")


def build_schedule(spec: RunSpec) -> tuple[Slot, ...]:
    """Return every slot of `spec`'s run in the order of execution.

    abba splits `duration` (or `steps`) evenly over the 2 x blocks slots of an arm; when steps do
    not divide evenly, an arm's first slots take one more, the same ones in both arms.
    Raises UsageError when there are fewer steps than slots of an arm.
    """
    if spec.order == "protected-only":
        return _single(spec, ("protected",))
    if spec.order == "raw-first":
        return _single(spec, ("raw", "protected"))
    if spec.order == "protected-first":
        return _single(spec, ("protected", "raw"))
    return _abba(spec)


def _single(spec: RunSpec, arms: tuple[Arm, ...]) -> tuple[Slot, ...]:
    seconds, steps = left_of(spec)
    return tuple(
        _slot(spec, nth, block=None, position=nth, arm=arm, seconds=seconds, steps=steps)
        for nth, arm in enumerate(arms)
    )


def left_of(spec: RunSpec) -> tuple[float | None, int | None]:
    """Seconds and optimiser steps that are to be made: all that were asked for, but for those that were made
    by the checkpoint that a job goes on from. Raises UsageError where nothing is left, or nobody knows.
    """
    before = spec.continues
    if before is None or spec.workload == "project":
        return spec.duration, spec.total_steps
    for field, total, made in (
        ("steps" if spec.epochs is None else "epochs", spec.total_steps, before.steps),
        ("duration", spec.duration, before.seconds),
    ):
        if total is None:
            continue
        if made is None:
            raise UsageError(
                f"how much of it is made by then is not known ({field})", field="from",
                value=before.given, remedy="begin anew, without from=",
            )  # fmt: skip
        if total <= made:
            raise UsageError(
                f"nothing is left to do: {made:g} are made by then", field=field, value=f"{total:g}",
                remedy="give more in all, or name an earlier checkpoint with from=RUN@N",
            )  # fmt: skip
    return (
        None if spec.duration is None else spec.duration - (before.seconds or 0.0),
        None if spec.total_steps is None else spec.total_steps - (before.steps or 0),
    )


def _abba(spec: RunSpec) -> tuple[Slot, ...]:
    per_arm, total = 2 * spec.measure.blocks, spec.total_steps
    if total is not None and total < per_arm:
        raise UsageError(
            "fewer steps than slots of an arm",
            field="steps",
            value=total,
            remedy=f"order=abba with measure.blocks={spec.measure.blocks} needs steps={per_arm} or more",
        )
    seconds = None if spec.duration is None else spec.duration / per_arm

    def steps_of(nth: int) -> int | None:
        if total is None:
            return None
        return total // per_arm + (1 if nth < total % per_arm else 0)

    leading: tuple[Arm, Arm] = ("raw", "protected")
    slots = [
        _slot(
            spec, nth, block=None, position=nth, arm=leading[nth % 2], seconds=seconds,
            steps=steps_of(per_arm), burn_in=True,
        )
        for nth in range(spec.measure.burn_in_slots)
    ]  # fmt: skip
    done: dict[Arm, int] = {"raw": 0, "protected": 0}
    for block, pattern in enumerate(block_patterns(spec.measure.blocks, spec.seed, spec.repeat)):
        for position, arm in enumerate(PATTERNS[pattern]):
            steps = steps_of(done[arm])
            slots.append(
                _slot(spec, len(slots), block=block, position=position, arm=arm, seconds=seconds, steps=steps)
            )
            done[arm] += 1
    return tuple(slots)


def lead_sec(spec: RunSpec) -> float:
    """Seconds that run before a slot is measured, and are not counted.

    Of an abba slot never longer than what is measured in it: a short look at a small duration should
    not spend most of its time on what it throws away. Below a second the row carries a caveat.
    """
    if spec.workload == "project":
        return 0.0  # it ends when its command does: nothing is timed
    if spec.order != "abba":
        return spec.measure.warmup_sec
    if spec.duration is None:
        return spec.measure.discard_sec
    return min(spec.measure.discard_sec, spec.duration / (2 * spec.measure.blocks))


def _slot(
    spec: RunSpec,
    index: int,
    *,
    block: int | None,
    position: int,
    arm: Arm,
    seconds: float | None,
    steps: int | None,
    burn_in: bool = False,
) -> Slot:
    protected = arm == "protected"
    return Slot(
        index=index,
        block=block,
        position=position,
        arm=arm,
        lifecycle=protected and spec.control == "none",
        warmup_sec=lead_sec(spec),
        measured_sec=seconds,
        steps=steps,
        burn_in=burn_in,
        delay_pct=spec.measure.delay_pct if protected and spec.control == "delay" else 0.0,
    )


def block_patterns(blocks: int, seed: int, repeat: int = 0) -> tuple[str, ...]:
    """Return the shuffled block kinds, "ABBA" or "BAAB", half of each.

    With an odd number of blocks the stream's first draw says which kind has one more. Repeats of
    one spec are randomised apart: `repeat` enters the stream beside the seed.
    """
    stream = uniform_stream(seed, repeat)
    kinds = ("ABBA", "BAAB")
    patterns = [kinds[0]] * (blocks // 2) + [kinds[1]] * (blocks // 2)
    if blocks % 2:
        patterns.append(kinds[_below(2, stream)])
    return tuple(_shuffled(patterns, stream))


def uniform_stream(seed: int, repeat: int) -> Iterator[int]:
    """Yield 64-bit words: SHA-256 in counter mode, four big-endian words a digest.

    Digest i is domain_hash(STREAM_DOMAIN, [seed, repeat, i]), each as 8 bytes big-endian. Python's
    own generator is not used: a registered schedule must come out the same in every version.
    """
    counter = 0
    while True:
        parts = [number.to_bytes(8, "big") for number in (seed, repeat, counter)]
        digest = domain_hash(STREAM_DOMAIN, parts)
        for start in range(0, 32, 8):
            yield int.from_bytes(digest[start : start + 8], "big")
        counter += 1


def _below(limit: int, stream: Iterator[int]) -> int:
    """Draw uniformly from 0..limit-1; words past the last whole multiple of limit are rejected."""
    ceiling = 2**64 - 2**64 % limit
    return next(word for word in stream if word < ceiling) % limit


def _shuffled(items: list[T], stream: Iterator[int]) -> list[T]:
    """Shuffle by Fisher and Yates, from the end (Knuth, TAOCP volume 2, section 3.4.2, algorithm P)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        chosen = _below(last + 1, stream)
        result[last], result[chosen] = result[chosen], result[last]
    return result
