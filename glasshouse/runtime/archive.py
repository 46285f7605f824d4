"""Build the archive that runs on the pod: a zip of a fixed list of modules, the same bytes each time.

Content-addressed: its SHA-256 names the file on the pod, is a reference value of the appraisal,
and depends on nothing but these sources.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import glasshouse
from glasshouse.canonical import sha256_hex

MODULES = (
    "__init__.py",
    "canonical.py",
    "codes.py",
    "errors.py",
    "attestation/__init__.py",
    "attestation/claims.py",
    "attestation/client.py",
    "attestation/evidence.py",
    "attestation/ticket.py",
    "attestation/tokens.py",
    "remote/__init__.py",
    "remote/sweep_script.py",
    "runtime/__init__.py",
    "runtime/blinding.py",
    "runtime/cadence.py",
    "runtime/channel.py",
    "runtime/checkpointing.py",
    "runtime/comes_back.py",
    "runtime/command.py",
    "runtime/confine.py",
    "runtime/custodian.py",
    "runtime/disclosure.py",
    "runtime/entry.py",
    "runtime/events.py",
    "runtime/exec_watch.py",
    "runtime/execs.py",
    "runtime/forecast.py",
    "runtime/freed.py",
    "runtime/gpus.py",
    "runtime/guard.py",
    "runtime/harness.py",
    "runtime/job_end.py",
    "runtime/jobs.py",
    "runtime/keeper.py",
    "runtime/kept.py",
    "runtime/leg.py",
    "runtime/linux.py",
    "runtime/looking.py",
    "runtime/machine.py",
    "runtime/namespaces.py",
    "runtime/noted.py",
    "runtime/offline.py",
    "runtime/on_import.py",
    "runtime/params.py",
    "runtime/peers.py",
    "runtime/project.py",
    "runtime/ranks.py",
    "runtime/randomness.py",
    "runtime/raw.py",
    "runtime/readable.py",
    "runtime/residue.py",
    "runtime/results.py",
    "runtime/resume.py",
    "runtime/ring.py",
    "runtime/run_command.py",
    "runtime/safetensors.py",
    "runtime/search.py",
    "runtime/seccomp.py",
    "runtime/sealer.py",
    "runtime/session.py",
    "runtime/session_end.py",
    "runtime/state.py",
    "runtime/steps.py",
    "runtime/strays.py",
    "runtime/supervisor.py",
    "runtime/trainer.py",
    "runtime/warmup.py",
    "runtime/watched.py",
    "runtime/wheel.py",
    "runtime/wipe.py",
    "sealing/__init__.py",
    "sealing/aegis.py",
    "sealing/container.py",
    "sealing/grant.py",
    "sealing/container_keys.py",
    "sealing/layout.py",
    "sealing/memory.py",
    "sealing/outputs.py",
    "sealing/packing.py",
    "sealing/padding.py",
    "sealing/tree.py",
    "sealing/tree_index.py",
    "sealing/tree_write.py",
)
_MAIN = "import sys\nfrom glasshouse.runtime.entry import main\nsys.exit(main(sys.argv))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build_archive() -> tuple[bytes, str]:
    """Return the archive's bytes and their SHA-256 in hex."""
    root = Path(glasshouse.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _MAIN)
        for name in MODULES:
            archive.writestr(zipfile.ZipInfo(f"glasshouse/{name}", _EPOCH), (root / name).read_bytes())
    data = buffer.getvalue()
    return data, sha256_hex(data)
