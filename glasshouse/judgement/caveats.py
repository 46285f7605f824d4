"""Caveats: what a reader must know about a row that counts. Rules over a few figures. Pure.

A caveat never excludes. The same rules serve rows of ours and rows that were published before this
software existed: both are first reduced to `Observed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from glasshouse.judgement.rules import METHOD, OPEN

SHORT_SEC = 900.0  # below a quarter of an hour an arm, clocks, caches and neighbours dominate
PAIR_WARMUP_SEC = 5.0  # as published before
SLOT_DISCARD_SEC = 1.0
GAP_FACTOR = 3.0  # of measure.head_interval_sec


@dataclass(frozen=True)
class Observed:
    """What caveats are decided from. None: not known, and no caveat is made of it.

    measured_sec: measured seconds of the shorter arm. samples: independent differences behind the
    overhead. host_bound: far below what the GPU's arithmetic or memory allows (measurement/roofline.py).
    control_failed, controlled: whether controls of the same kind of run failed, or stand beside it.
    registered_late: on a journey that no log announced; known where logs are published, not in a record.
    """

    tier: Literal["signed", "reported", "simulated"]
    overhead_pct: float | None = None
    samples: int | None = None
    measured_sec: float | None = None
    warmup_sec: float | None = None
    order: str | None = None
    order_clear: bool = True
    synthetic_workload: bool = False
    random_weights: bool = False
    host_bound: bool | None = None
    is_control: bool = False
    controlled: bool = False
    control_failed: bool = False
    raw_disclosed: bool = False
    unproven_host_key: bool = False
    max_gap_sec: float | None = None
    head_interval_sec: float | None = None
    witnessed: bool = False
    provider: str | None = None
    dropped_blocks: int = 0
    disturbed: tuple[str, ...] = ()
    relaunched: int = 0
    residue_scanned: bool | None = None
    residue_left: tuple[str, ...] = ()
    file_barrier: str | None = None
    swap_kib: int | None = None
    bit_identical: bool = False
    job: bool = False
    checkpoints_missing: bool = False
    network_open: bool = False
    reads_unconfined: bool = False
    exec_in_leg: bool = False
    self_counted: bool = False
    registered_late: bool = False


@dataclass(frozen=True)
class Caveat:
    """A rule with the paragraph that the site shows for it."""

    code: str
    title: str
    text: str
    fires: Callable[[Observed], bool]
    since: int = 1  # method number, as for rules


def caveats_of(seen: Observed, method: int = METHOD) -> tuple[str, ...]:
    """Codes of every caveat that applies, in the catalogue's order."""
    return tuple(item.code for item in CAVEATS if item.since <= method and item.fires(seen))


def caveat(code: str) -> Caveat:
    """Look up a caveat; KeyError for a code that is none."""
    return _BY_CODE[code]


def with_controls(codes: tuple[str, ...], *, passed: bool, failed: bool) -> tuple[str, ...]:
    """Caveats of a published row with an overhead, once its controls are known.

    passed: an A/A control and a positive control of the same kind stand beside it, both good.
    failed: a control of the same kind failed; its rows are downgraded. A control that is withdrawn
    later gives back the caveat it had lifted.
    """
    kept = set(codes) - {"no-control", "control-failed"}
    if failed:
        kept.add("control-failed")
    if failed or not passed:
        kept.add("no-control")
    return tuple(item.code for item in CAVEATS if item.code in kept)


def with_registration(codes: tuple[str, ...], *, late: bool) -> tuple[str, ...]:
    """Caveats of a published row, once it is known whether its journey was announced before it began."""
    kept = {*codes, "registered-late"} if late else set(codes) - {"registered-late"}
    return tuple(item.code for item in CAVEATS if item.code in kept)


def _pair(seen: Observed) -> bool:
    return seen.order in ("raw-first", "protected-first")


def _short_warmup(seen: Observed) -> bool:
    if seen.warmup_sec is None:
        return False
    return seen.warmup_sec < (SLOT_DISCARD_SEC if seen.order == "abba" else PAIR_WARMUP_SEC)


def _gap(seen: Observed) -> bool:
    if seen.max_gap_sec is None or seen.head_interval_sec is None:
        return False
    return seen.max_gap_sec > GAP_FACTOR * seen.head_interval_sec


CAVEATS: tuple[Caveat, ...] = (
    Caveat(
        "simulated",
        "Nothing was rented",
        "A fake provider played the rental on the operator's own machine, so that the code could be tried "
        "without an account. The GPU is a name with nothing behind it, so no figure of the row measures "
        "anything, and it is never published as measured.",
        lambda seen: seen.tier == "simulated",
    ),
    Caveat(
        "not-a-tee",
        "Not a hardware enclave",
        "The protection is software on a machine that someone else controls. Attestation shows what was "
        "launched there and what the key was released to. It cannot show that the host is honest: whoever "
        "has root on it can read memory and could forge the evidence. No hardware claim is made for any "
        "row.",
        lambda seen: seen.tier != "simulated",
    ),
    Caveat(
        "reported-only",
        "Reported, not verified by us",
        "The figures were published before this software existed, without an evidence bundle. Schema and "
        "arithmetic were checked, nothing else can be. Such rows are counted apart and carry no headline.",
        lambda seen: seen.tier == "reported",
    ),
    Caveat(
        "negative-delta",
        "Protected was faster",
        "The protected arm came out faster than the raw one. Protection does not speed training up, so a "
        "value below zero shows how far order, clocks and neighbours move the result: read it as a bound "
        "on the noise, not as a gain.",
        lambda seen: seen.overhead_pct is not None and seen.overhead_pct < 0,
    ),
    Caveat(
        "single-sample",
        "One pair only",
        "One protected and one raw stretch were compared once. There is no second difference to judge the "
        "spread by, so there is no interval; the same machine can give tens of percent either way.",
        lambda seen: seen.overhead_pct is not None and seen.samples is not None and seen.samples <= 1,
    ),
    Caveat(
        "short",
        "Short",
        "Less than a quarter of an hour was measured in an arm. Clock ramps, caches and whatever else the "
        "host does weigh heavily in so little time.",
        lambda seen: seen.measured_sec is not None and seen.measured_sec < SHORT_SEC,
    ),
    Caveat(
        "short-warmup",
        "Little warm-up",
        "A leg warmed up for less than five seconds (one second before a slot of a block design). First "
        "iterations compile, allocate and raise clocks; part of that may be in the measured time.",
        _short_warmup,
    ),
    Caveat(
        "order-confounded",
        "Order and protection not separable",
        "Each arm ran once, one after the other. Whatever changed on the machine in between looks exactly "
        "like an effect of the protection. Only a design that alternates the arms can tell the two apart, "
        "so a row like this is never a headline.",
        _pair,
    ),
    Caveat(
        "order-unclear",
        "Order not established",
        "Which arm ran first is not stated, is stated in two ways, or does not agree with the recorded "
        "start times. The order effect cannot even be given a sign.",
        lambda seen: not seen.order_clear,
    ),
    Caveat(
        "synthetic-workload",
        "Synthetic data",
        "The training data are drawn from a seed. Speed does not depend on what they say, but losses show "
        "only that training ran, not that anything useful was learned, and no data pipeline is measured.",
        lambda seen: seen.synthetic_workload,
    ),
    Caveat(
        "random-weights",
        "Random base weights",
        "The base model was built from its published configuration with random weights. Shapes, memory "
        "and speed are those of the real model; its losses and outputs are not.",
        lambda seen: seen.random_weights,
    ),
    Caveat(
        "host-bound",
        "Far from the hardware's limits",
        "The workload reached less than a fifth of what the GPU's arithmetic or memory allows. Mostly the "
        "host's launch of small kernels was timed. A cost that protection adds on the GPU could have "
        "hidden in the idle time.",
        lambda seen: seen.host_bound is True,
    ),
    Caveat(
        "no-control",
        "No controls that passed",
        "Raw against raw through the same code must be found equal, and a known delay must be found again. "
        "Beside this row not both were: a control was not run, or its interval was too wide to tell. That "
        "the method finds nothing where there is nothing, and an effect where there is one, is not shown.",
        lambda seen: seen.overhead_pct is not None and not seen.controlled and not seen.is_control,
    ),
    Caveat(
        "control-failed",
        "Its control failed",
        "A control of the same kind of run did not give what it must: a difference where both arms were "
        "equal, or no difference where one was known. The row stays, but nothing is concluded from it.",
        lambda seen: seen.control_failed,
    ),
    Caveat(
        "blocks-dropped",
        "Disturbed blocks left out",
        "One or more blocks were disturbed (throttled clocks, other work on the machine) and were left "
        "out whole. How many is published; they were chosen by rules fixed beforehand, not by their "
        "result.",
        lambda seen: seen.dropped_blocks > 0,
    ),
    Caveat(
        "disturbed",
        "Disturbed while it was measured",
        "The leg's own telemetry shows throttled clocks or other work on the machine. A single pair has "
        "no other blocks to fall back on, so it is shown as it is.",
        lambda seen: bool(seen.disturbed),
    ),
    Caveat(
        "relaunched",
        "A leg was launched again",
        "At least one launch failed before training and was repeated under a new ticket. Every launch is "
        "in the bundle; the failed ones count for nothing but are shown.",
        lambda seen: seen.relaunched > 0,
    ),
    Caveat(
        "payload-disclosed",
        "The payload was disclosed",
        "A raw arm ran the same code and weights in the clear on the same machine, so nothing in this "
        "payload was secret from its host. The row measures what protection costs; it is not an example "
        "of a private job.",
        lambda seen: seen.raw_disclosed,
    ),
    Caveat(
        "host-key-tofu",
        "Host key taken on first use",
        "Neither the provider nor the operator gave the machine's SSH host key beforehand, so the first "
        "one offered was believed. Someone between operator and machine at that moment could have stood "
        "in for it.",
        lambda seen: seen.unproven_host_key,
    ),
    Caveat(
        "event-gap",
        "Long gap between countersigned heads",
        "The operator countersigns the head of the event log while a leg runs. Here more than three "
        "intervals passed between two of them; events of that stretch could have been rewritten on the "
        "machine unseen.",
        _gap,
    ),
    Caveat(
        "unwitnessed",
        "No independent witness",
        "No third party co-signed the ledger in which the plan was registered. A signature shows that a "
        "row was not changed afterwards, not that it is true, nor that the operator shows everyone the "
        "same ledger.",
        lambda seen: seen.tier == "signed" and not seen.witnessed,
    ),
    Caveat(
        "registered-late",
        "Not announced beforehand",
        "The row was measured on a borrowed machine, under keys made for that journey. No published ledger "
        "announced the journey before its first plan was entered, or this row was planned after the "
        "announced time was over or the journey had ended. So several may have been made and the most "
        "pleasing one brought home. A row like this is never in a headline.",
        lambda seen: seen.registered_late,
    ),
    Caveat(
        "local-pod",
        "Pod and keys on one machine",
        "The run used the local provider: the pod is a folder on the machine that also holds the keys. "
        "The protocol ran in full, but isolation between the two parties was not tested, and claims about "
        "disk contents cover the pod's folder only.",
        lambda seen: seen.provider == "local",
    ),
    Caveat(
        "no-file-barrier",
        "No file-system barrier",
        "The kernel offered no Landlock, so nothing but convention kept the workload from writing "
        "plaintext outside its scratch folder.",
        lambda seen: seen.file_barrier == "none",
    ),
    Caveat(
        "swap-on",
        "Host swap was on",
        "The host had swap space while the payload was in memory. Pages may have been written to its "
        "disk, and no process inside can wipe or check them.",
        lambda seen: seen.swap_kib is not None and seen.swap_kib > 0,
    ),
    Caveat(
        "residue-not-scanned",
        "Memory not searched",
        "Memory of the payload's processes could not be searched after the wipe, or a search found "
        "nothing even while the bytes were known to be there. The wipe rests on read-back of registered "
        "buffers alone.",
        lambda seen: seen.residue_scanned is False,
    ),
    Caveat(
        "residue-left",
        "Residue found",
        "The search after the wipe still found bytes of the payload, by class as listed. Interpreter "
        "objects cannot be wiped from inside; the kernel cleared them when the process ended.",
        lambda seen: bool(seen.residue_left),
    ),
    Caveat(
        "legs-bit-identical",
        "Both arms gave the same bits",
        "Both arms took the same steps from the same weights in a deterministic mode and ended bit for "
        "bit alike. That is what should happen: the protected arm trained exactly what the raw arm did.",
        lambda seen: seen.bit_identical,
    ),
    Caveat(
        "runtime-ended",
        "Ended, not wiped",
        "What ran was a project of the owner's, whose processes ended by themselves. They were reaped, the "
        "scratch folder was removed, and the package's memory was overwritten and read back. The memory that "
        "the project itself took went back to the kernel as it was: nobody overwrote it or read it back.",
        lambda seen: seen.job,
        since=OPEN,
    ),
    Caveat(
        "loss-unseen",
        "No loss was seen",
        "Nobody but the owner knows what the project computed. That a command ended with exit code 0 is all "
        "that this record says of its work, beside the steps that the project itself may have counted.",
        lambda seen: seen.job,
        since=OPEN,
    ),
    Caveat(
        "self-counted",
        "Steps by the project's own count",
        "The optimizer steps, and whether a sample of the weights changed, were reported by torch's hooks in "
        "the process that ran the owner's code, which could have made them come out as it liked. What trains "
        "without torch.optim, or in other processes, is not counted.",
        lambda seen: seen.self_counted,
        since=OPEN,
    ),
    Caveat(
        "checkpoints-missing",
        "Checkpoints are missing",
        "The job was to be sealed now and then while it went on. At least once that failed, or the process "
        "that does it was gone or hung, and was ended, and the job went on without. What came back at its "
        "end is not touched by that.",
        lambda seen: seen.checkpoints_missing,
        since=OPEN,
    ),
    Caveat(
        "network-open",
        "The job could reach the network",
        "The owner let the project reach the network, so what it held may have been sent anywhere, by it or "
        "by what it depends on.",
        lambda seen: seen.network_open,
        since=OPEN,
    ),
    Caveat(
        "reads-unconfined",
        "What the job could read was not confined",
        "The kernel offered nothing to keep the project from reading other files of the machine that its "
        "account may read.",
        lambda seen: seen.reads_unconfined,
        since=OPEN,
    ),
    Caveat(
        "exec-in-leg",
        "Programs were started in the leg",
        "The project started programs by itself, or nobody could see that it did not. A new program does not "
        "keep the closed memory of the process that started it: another process of the same account on the "
        "machine, or root, can read it without touching that process. It was held by the same barriers and "
        "ended with the job.",
        lambda seen: seen.exec_in_leg,
        since=OPEN,
    ),
)

_BY_CODE = {item.code: item for item in CAVEATS}
