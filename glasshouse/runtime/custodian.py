"""The custodian: holds the KEM key, unwraps, unseals, wipes, is scanned, forks the trainer, exits.

It imports no torch and runs no workload code. The trainer is forked without exec, so it inherits
the unsealed memory without a copy; once the custodian is gone the pages are the trainer's alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from pathlib import Path

from glasshouse.canonical import b64u, b64u_decode
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, SealError
from glasshouse.runtime import residue, trainer
from glasshouse.runtime.channel import Channel, ChannelClosedError
from glasshouse.runtime.linux import (
    CORE_LIMIT_PAST_EXEC,
    PR_SET_PDEATHSIG,
    harden,
    key_memory,
    prctl,
)
from glasshouse.runtime.params import MARKER_BYTES, MARKER_FILE, LaunchParams
from glasshouse.runtime.results import Unsealed
from glasshouse.sealing.container import OpenedPackage, open_package, reserve
from glasshouse.sealing.grant import generate_kem_key, kem_private_bytes, kem_public_bytes, unwrap_key
from glasshouse.sealing.memory import overwrite

NEEDLE_BYTES = 8


def main(channel: Channel, launch: LaunchParams, plumbing: trainer.Plumbing) -> None:
    """Run the custodian to its exit; never returns."""
    code = 1
    try:
        # Nothing of this process may print: tracebacks hold data.
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != plumbing.supervisor:  # it died before the line above
            os._exit(code)
        channel.send_descriptors(residue.open_self())
        harden(CORE_LIMIT_PAST_EXEC if launch.job else 0)  # as the trainer, which inherits it
        _serve(channel, launch, plumbing)
        code = 0
    except SealError as error:
        _failed(channel, error.code or Code.UNSEAL_FAILED)
    except GlasshouseError:
        _failed(channel, Code.UNSEAL_FAILED)
    except (ChannelClosedError, OSError):
        pass
    except BaseException:  # noqa: BLE001 -- a forked role must never unwind into the supervisor's frames
        traceback.clear_frames(None)
        _failed(channel, Code.RUNTIME_ERROR)
    finally:
        os._exit(code)


def _failed(channel: Channel, code: Code) -> None:
    with contextlib.suppress(ChannelClosedError):
        channel.send("failed", {"code": code})


def _serve(channel: Channel, launch: LaunchParams, plumbing: trainer.Plumbing) -> None:
    kem_key = generate_kem_key()
    channel.send("kem-key", {"public": b64u(kem_public_bytes(kem_key))})
    reserved = reserve(launch.package)  # while the broker decides
    body = channel.expect("grant").body
    heap_key = unwrap_key(b64u_decode(body["ciphertext"]), kem_key, b64u_decode(body["info"]))

    # Positive control: while the keys are live on the heap, the supervisor's scan must find them.
    for kind, secret_key in (("key-live", heap_key), ("kem-live", kem_private_bytes(kem_key))):
        prefix = secret_key[:NEEDLE_BYTES]
        channel.send(kind, raw=prefix)
        overwrite(prefix)
        if secret_key is not heap_key:
            overwrite(secret_key)
    channel.expect("continue")
    # With the grant, which is no secret, this key opens the payload key: the trainer inherits neither.
    kem_key.wipe()
    del kem_key, secret_key, prefix
    secret, at_rest = key_memory()
    if secret is not None:
        secret[: len(heap_key)] = bytes(len(heap_key))
        memoryview(secret)[: len(heap_key)] = heap_key
        overwrite(heap_key)
        key_view = memoryview(secret)[:32]
    else:
        key_view = memoryview(heap_key)

    began = time.monotonic()
    source = reserved or launch.package
    markers = open_package(launch.markers, payload_key=key_view, manifest_hash=launch.markers_hash)
    package = open_package(source, payload_key=key_view, manifest_hash=launch.manifest_hash)
    package.beside = markers
    del source, reserved
    unseal_sec = time.monotonic() - began
    overwrite(key_view)
    key_view.release()
    if secret is not None:
        secret.close()
    channel.send("unsealed", _describe(package, unseal_sec, at_rest), raw=_marker(package))
    channel.expect("continue")

    # No thread is running here: open_package joined its own. Fork without exec.
    pid = os.fork()
    if pid == 0:
        channel.close()
        trainer.main(plumbing, launch, package)
    plumbing.trainer.close()
    if plumbing.keeper is not None:
        plumbing.keeper.close()
    channel.send("forked", {"pid": pid})


def _marker(package: OpenedPackage) -> bytearray:
    files = {} if package.beside is None else package.beside.files
    return bytearray(files[MARKER_FILE][:MARKER_BYTES]) if MARKER_FILE in files else bytearray()


def _describe(package: OpenedPackage, unseal_sec: float, at_rest: str) -> Unsealed:
    held_kib, peak_rss_kib = _memory()
    return Unsealed(
        tensors=len(package.tensors),
        files=len(package.files),
        bytes=len(package.region) if package.region is not None else 0,
        unseal_sec=round(unseal_sec, 6),
        key_at_rest=at_rest,
        held_kib=held_kib,
        peak_rss_kib=peak_rss_kib,
        owner_public_key=package.extra.get("ownerPublicKey", ""),
    )


def _memory() -> tuple[int, int]:
    """Memory of this process in KiB: private and shared pages held now, and the peak of its resident set.

    What is held (anonymous PSS and shmem) is at its highest now, with the package whole. The resident peak
    also counts pages of the mapped ciphertext and of libraries, which the kernel can drop at will.
    """
    held = peak = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                held += int(line.split()[1])
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM:"))
    return held, peak
