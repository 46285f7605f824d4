"""The supervisor: does a protected leg on the pod.

Below the guard, which cleans up where this one is killed. Subreaper of custodian, trainer and sealer; holds
the event key; gathers evidence; signs events; scans the others' memory; ends the leg whatever happens. No
torch, no payload key.

    ticket (stdin) -> custodian, request -> challenge -> evidence -> grant -> unseal -> fork trainer
    -> train -> seal outputs -> needles, wipe, scan -> reap -> last event -> result file
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.claims import Claims, Hardening
from glasshouse.attestation.client import Challenge, Released, fetch_challenge, submit_evidence
from glasshouse.attestation.evidence import make_evidence
from glasshouse.attestation.ticket import sign_request
from glasshouse.attestation.tokens import key_id, public_bytes_of
from glasshouse.canonical import b64u, b64u_decode
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, LegError, SealError
from glasshouse.remote.sweep_script import remove
from glasshouse.runtime import custodian, machine
from glasshouse.runtime.channel import Channel, ChannelClosedError, channel_pair, failure_code
from glasshouse.runtime.events import EventWriter
from glasshouse.runtime.exec_watch import ExecWatch
from glasshouse.runtime.job_end import JobEnd
from glasshouse.runtime.keeper import Ends
from glasshouse.runtime.kept import Kept
from glasshouse.runtime.leg import LegState, OutputDrain, drain_log, end
from glasshouse.runtime.linux import (
    PR_SET_CHILD_SUBREAPER,
    harden,
    hardening_state,
    landlock_abi,
    prctl,
    secret_memory,
)
from glasshouse.runtime.params import END_FILE, LaunchParams
from glasshouse.runtime.peers import PeerDiedError
from glasshouse.runtime.residue import Needle, Scannable, ScannedProcess, ServingProcess
from glasshouse.runtime.results import NeedleReport, Zeroized
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.strays import kill_strays
from glasshouse.runtime.trainer import Plumbing
from glasshouse.runtime.watched import LOG_RING_BYTES
from glasshouse.sealing.memory import overwrite

STEP_TIMEOUT_SEC = 120.0
MAX_NEEDLES = 64
MAX_EVENTS = 200_000  # the longest job has 6,000; the controller reads no more than 64 MiB of them


def supervise(launch: LaunchParams, folder: Path, guard: int) -> None:
    """Run one protected launch; everything it has to say is in `folder` when it returns.

    `guard`: pid of the parent, whose death ends the leg, like that of any role.
    """
    signal.signal(signal.SIGTERM, _terminated)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    leg = LegState(launch, folder)
    try:
        _lifecycle(leg, guard)
        leg.status, leg.code = "complete", None
    except AttestationError as error:
        leg.code = Code.ATTESTATION_REFUSED
        leg.reason_codes = list(error.codes)
    except SealError as error:
        leg.code = Code.UNSEAL_FAILED
        leg.reason_codes = list(error.codes)
    except LegError as error:
        late = error.code == Code.RUNTIME_TIMEOUT and time.monotonic() >= leg.deadline
        leg.code = Code.LEG_DEADLINE if late else error.code
    except (ChannelClosedError, PeerDiedError):
        leg.code = Code.PROCESS_DIED
    except OSError as error:
        leg.code = Code.RUNTIME_OS_ERROR
        print(f"os error {error.errno}", file=sys.stderr)  # noqa: T201 -- the plain log carries codes only
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        overwrite(launch.secret)  # where the leg ended before it could be used
        end(leg)


def _terminated(_signal: int, _frame: object) -> None:
    raise LegError("the leg was told to end", code=Code.TERMINATED)


def _lifecycle(leg: LegState, guard: int) -> None:
    launch = leg.launch
    leg.scratch.mkdir(mode=0o700)
    custodian_channel, custodian_end = channel_pair()
    trainer_channel, trainer_end = channel_pair()
    log_read, log_write = os.pipe()
    out_read, out_write = os.pipe()
    execs, execs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper, keeper_ends = _keeper_plumbing() if launch.keeps else (None, None)
    if launch.watch_sec:  # before the forks, which share it
        leg.log.ring = Ring(LOG_RING_BYTES)

    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        overwrite(launch.secret)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for descriptor in (log_read, out_read, leg.events_descriptor):
            os.close(descriptor)
        execs.close()
        custodian_channel.close()
        trainer_channel.close()
        if keeper is not None:
            keeper.close()
        plumbing = Plumbing(
            trainer_end, log_write, out_write, str(leg.scratch), execs_end.detach(), keeper_ends, supervisor,
            leg.log.ring,
        )  # fmt: skip
        custodian.main(custodian_end, launch, plumbing)
    leg.children.add(pid)
    # After the fork: no other role holds these.
    leg.peers.watch("guard", guard)
    leg.peers.watch("custodian", pid)
    if os.getppid() != guard:  # it died before it was watched
        raise PeerDiedError("guard")
    custodian_channel.peers = trainer_channel.peers = leg.peers
    custodian_end.close()
    trainer_end.close()
    execs_end.close()
    if keeper is not None and keeper_ends is not None:
        keeper_ends.close()
        leg.kept = Kept(keeper.channel, keeper.pipe, leg.folder, leg.event, leg.log.feed)
    os.close(log_write)
    os.close(out_write)

    # Made after the fork, so that only this process ever holds the event key.
    harden()
    leg.event_key = Ed25519PrivateKey.generate()
    leg.events = EventWriter(leg.events_descriptor, leg.event_key, leg.started)
    # At once, which wipes the ticket: what is sent later is of no use to anybody else.
    request = sign_request(
        launch.secret,
        launch.where,
        broker_id=key_id(launch.broker_public),
        event_key=public_bytes_of(leg.event_key),
    )
    log_drain = threading.Thread(target=drain_log, args=(log_read, leg.log), daemon=True)
    outputs = OutputDrain(out_read, leg.folder / "outputs.sealed")
    leg.drains = [log_drain, outputs]
    for drain in leg.drains:
        drain.start()
    if launch.job:
        leg.execs = ExecWatch(execs, refuse=launch.refuse_execs)
        leg.execs.start()

    scanned = _scanned("custodian", custodian_channel, leg)
    kem_public = b64u_decode(custodian_channel.expect("kem-key", STEP_TIMEOUT_SEC).body["public"])
    with leg.timed("attestSec"):
        released = _attest(leg, kem_public, request)
    leg.events.begin(released.grant)
    leg.event("released", {"run": launch.run, "leg": launch.leg, "launch": launch.launch})
    trainer_pid = _unseal(leg, custodian_channel, scanned, released)
    leg.exits["custodian"] = _reap(pid)
    leg.children.add(trainer_pid)
    leg.children.discard(pid)
    custodian_channel.close()

    # A session ends itself between two units, which may be long; the leg's deadline is its bound.
    ender = JobEnd(leg.folder / END_FILE, trainer_channel, trainer_pid, launch.job_sec, kills=launch.job)
    try:
        wiped, sealed, ended_before = _train(leg, trainer_channel, outputs, ender)
    except ChannelClosedError as error:
        if ender.gave_up:
            raise LegError("the trainer did not end its job", code=Code.PROCESS_STUCK) from error
        raise
    finally:
        ender.stop()
    leg.peers.forget("trainer")
    leg.exits["trainer"] = _reap(trainer_pid)
    leg.children.discard(trainer_pid)
    # Whatever the workload left running holds its data, too, and keeps the log open.
    strays = ended_before + kill_strays()
    log_drain.join(timeout=STEP_TIMEOUT_SEC)
    trainer_channel.close()
    removed = remove(leg.scratch)
    leg.count_execs()
    leg.event(
        "zeroized",
        Zeroized(
            buffers=wiped,
            outputs=sealed,
            needles=leg.needles,
            # A session's other ranks wiped and read back, but nobody looked at their memory from outside. A
            # job's have all ended by then, however many they were.
            residue="scanned" if leg.scanned and (launch.ranks == 1 or launch.job) else "not-scanned",
            scanned_by=leg.scanned_by,
            unscanned_regions=leg.unscanned,
            custodian_exit=leg.exits.get("custodian", -1),
            trainer_exit=leg.exits.get("trainer", -1),
            strays_killed=strays,
            tmpfs_removed=removed,
            runtime_state="ended" if launch.job else None,
            keeper=leg.keeping,
        ),
    )


def _keeper_plumbing() -> tuple[Ends, Ends]:
    """The supervisor's ends of what connects it with the keeper, and the keeper's."""
    ours, theirs = channel_pair()
    read_end, write_end = os.pipe()
    return Ends(ours, read_end), Ends(theirs, write_end)


def _end_keeper(leg: LegState, *, one_more: bool) -> None:
    """Nothing but the outputs is sealed from here on."""
    kept, leg.kept = leg.kept, None
    if kept is None:
        return
    leg.keeping, found, unread = kept.end(leg.live_needles, one_more=one_more)
    if found and kept.how is not None:
        leg.scanned_by["keeper"] = kept.how
    leg.unscanned += unread
    leg.needles += [
        replace(_summary(found, klass), where="keeper")
        for klass in dict.fromkeys(needle.klass for needle in found)
    ]


def _scanned(role: str, channel: Channel, leg: LegState) -> Scannable | None:
    descriptors = channel.receive_descriptors(STEP_TIMEOUT_SEC)
    if len(descriptors) == 2:
        leg.scanned_by[role] = ScannedProcess.how
        return ScannedProcess(*descriptors)
    if role == "trainer":
        leg.scanned_by[role] = ServingProcess.how
        return ServingProcess(channel, leg.remaining)
    leg.scanned = False
    return None


def _attest(leg: LegState, kem_public: bytes, request: str) -> Released:
    launch = leg.launch
    assert leg.event_key is not None
    event_public = public_bytes_of(leg.event_key)
    challenge = leg.peers.during(
        lambda: fetch_challenge(
            launch.broker_port,
            request,
            launch.where,
            launch.broker_public,
            event_public,
            timeout=min(STEP_TIMEOUT_SEC, leg.remaining()),
        )
    )
    evidence = make_evidence(_claims(leg, kem_public, challenge).to_json(), leg.event_key)
    return leg.peers.during(
        lambda: submit_evidence(
            launch.broker_port,
            evidence,
            challenge,
            launch.broker_public,
            timeout=min(STEP_TIMEOUT_SEC, leg.remaining()),
        )
    )


def _claims(leg: LegState, kem_public: bytes, challenge: Challenge) -> Claims:
    """Everything evidence states about this launch."""
    launch = leg.launch
    assert leg.event_key is not None
    secret = secret_memory()
    if secret is not None:
        secret.close()
    landlock = landlock_abi()
    process = hardening_state()
    return Claims(
        eat_nonce=challenge.nonce,
        run=launch.run,
        leg=launch.leg,
        launch=launch.launch,
        allocation_id=launch.allocation_id,
        container_id=machine.own_container_id(launch.salt),
        manifest_hash=launch.manifest_hash,
        runtime_sha256=machine.file_sha256(Path(sys.argv[0])),
        interpreter_sha256=machine.interpreter_sha256(),
        interpreter_isolated=bool(sys.flags.isolated),
        python_version=sys.version.split()[0],
        distributions_sha256=machine.distributions_sha256(),
        boot_id=machine.boot_id(),
        pid_namespace=machine.namespace("pid"),
        image_digest=launch.image_digest,
        event_key=b64u(leg.event_key.public_key().public_bytes_raw()),
        kem_key=b64u(kem_public),
        anti_debug_profile=launch.anti_debug_profile,
        hardening=Hardening(
            dumpable=process.dumpable,
            core_limit=process.core_limit,
            no_new_privs=process.no_new_privs,
            tracer_pid=process.tracer_pid,
            landlock_abi=landlock,
            memfd_secret=secret is not None,
            swap_total_kib=machine.swap_total_kib(),
            subreaper=True,
        ),
        fs="landlock" if landlock else "none",
        gpu=machine.gpu_claim(),
        # Last: both are the time at which the rest was found.
        clock_skew_sec=challenge.clock_skew_sec(),
        iat=challenge.iat(),
    )


class _Trained(NamedTuple):
    """What a trainer said it overwrote, and which outputs it had sealed: JSON objects, as it said them.

    strays: how many processes that its job left running it had ended.
    """

    wiped: dict[str, Any]
    sealed: dict[str, Any]
    strays: int


def _unseal(leg: LegState, channel: Channel, scanned: Scannable | None, released: Released) -> int:
    """Hand the grant to the custodian, scan it around the unsealing, return the trainer's pid."""
    grant = {"ciphertext": b64u(released.ciphertext), "info": b64u(released.info)}
    began = time.monotonic()
    channel.send("grant", grant)
    key_prefix = channel.expect("key-live", STEP_TIMEOUT_SEC).raw
    waited = time.monotonic() - began  # for memory that was not taken by then, and for the key
    kem_prefix = channel.expect("kem-live", STEP_TIMEOUT_SEC).raw
    keys = [Needle("payload-key-prefix", key_prefix), Needle("kem-seed-prefix", kem_prefix)]
    if scanned:
        for needle, count in zip(keys, scanned.scan(keys).counts, strict=True):
            needle.positive_control = count
    channel.send("continue")
    _, body, marker = channel.expect("unsealed", leg.remaining())
    leg.owner_public = b64u_decode(body.pop("ownerPublicKey"))
    package_marker = Needle("package-marker", marker)
    needles = [*keys, package_marker]
    leg.timings["unsealSec"] = body["unsealSec"] = round(waited + body["unsealSec"], 6)
    if scanned:
        scan = scanned.scan(needles)
        for needle, count in zip(keys, scan.counts, strict=False):
            needle.after = count
        package_marker.positive_control = scan.counts[-1]
        leg.unscanned += scan.unreadable_regions
        scanned.close()
    leg.needles = [replace(_summary(keys, needle.klass), where="custodian") for needle in keys]
    leg.event("unsealed", {**body, "keyResidue": leg.needles})
    channel.send("continue")
    trainer_pid = int(channel.expect("forked", STEP_TIMEOUT_SEC).body["pid"])
    leg.peers.forget("custodian")  # it exits
    leg.peers.watch("trainer", trainer_pid)
    # Kept for the trainer's scan: it inherited whatever the custodian left behind.
    leg.live_needles = needles
    return trainer_pid


def _train(leg: LegState, channel: Channel, outputs: OutputDrain, ender: JobEnd) -> _Trained:
    scanned = _scanned("trainer", channel, leg)
    channel.send("go")
    body = channel.expect("hardened", STEP_TIMEOUT_SEC).body
    leg.event("trainer-hardened", body)
    landlocked = body["fs"] == "landlock" or not leg.launch.require_landlock
    if body["dumpable"] != 0 or not body["no_new_privs"] or not landlocked:
        raise LegError("the trainer did not harden", code=Code.TRAINER_NOT_HARDENED)
    sealed: dict[str, Any] = {}
    needles = leg.live_needles
    began = 0.0
    if leg.launch.job or leg.launch.private:
        ender.start()
    if leg.kept is not None:
        leg.kept.start()
    while True:
        kind, body, raw = channel.receive(leg.remaining())
        if kind in ("progress", "trained"):
            if leg.events is not None and leg.events.count >= MAX_EVENTS:
                raise LegError("the leg reports without end", code=Code.TOO_MANY_EVENTS)
            leg.event(kind, body)
            ender.begun()
            if kind == "trained":
                ender.stop()  # nobody else speaks to the trainer from here on, nor runs beside it
        elif kind == "training-over":
            _end_keeper(leg, one_more=body.get("oneMore") is True)
            channel.send("keeper-ended")
        elif kind == "sealed-outputs":
            began = time.monotonic()
            size, digest = int(body["bytes"]), str(body["ciphertextSha256"])
            leg.peers.during(partial(outputs.take, size, digest, STEP_TIMEOUT_SEC))
            leg.timings["sealOutputsSec"] = body.pop("sealSec")
            sealed = dict(body)
            leg.event(kind, body)
        elif kind == "needle" and len(needles) < MAX_NEEDLES:
            needles.append(Needle(f"{body['class']}@{body['where']}", raw))
        elif kind == "needles-done":
            strays = body.get("strays", 0)
            break
        elif kind == "failed":
            raise LegError("the trainer failed", code=failure_code(body))
        else:
            raise LegError("the trainer said something unknown", code=Code.RUNTIME_ERROR)
    if scanned:
        for needle, count in zip(needles, scanned.scan(needles).counts, strict=True):
            # The key must already be gone; for the rest this is the positive control.
            needle.positive_control = count
    channel.send("wipe")
    wiped = channel.expect("wiped", leg.remaining()).body
    if scanned:
        scan = scanned.scan(needles)
        leg.unscanned += scan.unreadable_regions
        for needle, count in zip(needles, scan.counts, strict=True):
            needle.after = count
        scanned.close()
    leg.needles += [_summary(needles, klass) for klass in dict.fromkeys(needle.klass for needle in needles)]
    channel.send("exit")
    leg.timings["zeroizeSec"] = round(time.monotonic() - began, 6)
    return _Trained(wiped, sealed, strays if type(strays) is int and strays > 0 else 0)


def _summary(needles: list[Needle], klass: str) -> NeedleReport:
    chosen = [needle for needle in needles if needle.klass == klass]
    return NeedleReport(
        klass=klass.partition("@")[0],
        where="trainer" + (f"/{klass.partition('@')[2]}" if "@" in klass else ""),
        needles=len(chosen),
        positive_control=sum(needle.positive_control for needle in chosen),
        after=sum(needle.after for needle in chosen),
    )


def _reap(pid: int) -> int:
    """Wait for a child to end; its exit code, negative for a signal."""
    deadline = time.monotonic() + STEP_TIMEOUT_SEC
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    raise LegError("a process did not end", code=Code.PROCESS_STUCK)
