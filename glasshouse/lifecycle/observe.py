"""Reference values and facts about the pod, read by the controller over its own SSH session.

Plain system tools are used, never the runtime that is about to be attested; for what is installed, the
interpreter whose executable was hashed, in a process of its own (`-I`). What comes back was said by the
host all the same: it binds evidence to *this* session's machine and files, it does not make a lying host
honest (site/threat-model.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from glasshouse.attestation.evidence import container_id
from glasshouse.codes import Code
from glasshouse.errors import LegError, RemoteError
from glasshouse.remote.pod import Pod
from glasshouse.runtime.blinding import host_digest
from glasshouse.runtime.machine import distributions_digest
from glasshouse.schema import SeenMachine
from glasshouse.spec import RunSpec

POD_SCRIPT = r"""
set -eu
field() { printf '%s=%s\n' "$1" "$2"; }
python=$(command -v "$2") || { echo "no interpreter" >&2; exit 3; }
python=$(readlink -f "$python")
field archive "$(sha256sum < "$1" | cut -d' ' -f1)"
field interpreter "$(sha256sum < "$python" | cut -d' ' -f1)"
field boot "$(cat /proc/sys/kernel/random/boot_id)"
field pid "$(readlink /proc/self/ns/pid | tr -cd 0-9)"
field mnt "$(readlink /proc/self/ns/mnt | tr -cd 0-9)"
field host "$(cat /proc/sys/kernel/hostname)"
field uptime "$(cut -d' ' -f1 /proc/uptime)"
field kernel "$(uname -r)"
field cpus "$(getconf _NPROCESSORS_ONLN)"
if command -v nvidia-smi >/dev/null 2>&1; then
  if said=$(timeout 30 nvidia-smi --query-gpu=name,uuid,pci.bus_id,driver_version --format=csv,noheader 2>&1)
  then printf '%s\n' "$said" | while IFS= read -r line; do field gpu "$line"; done
  else field fault "exit $?: $(printf '%s' "$said" | head -n 1 | cut -c1-200)"
  fi
fi
"""
# What runtime/machine.py reads for the evidence, here by a process of our own on the same machine.
_INSTALLED = r"""
import hashlib, sys
from importlib import metadata
lines = [sys.version.split()[0]]
for item in metadata.distributions():
    name = str(item.metadata["Name"] or "").lower()
    record = hashlib.sha256((item.read_text("RECORD") or "").encode()).hexdigest()
    lines.append(f"{name}=={item.version} {record}")
sys.stdout.buffer.write("\n".join(lines).encode())
"""
_LINE = re.compile(r"([a-z]+)=(.{0,400})\Z")


@dataclass(frozen=True)
class Observed:
    """The pod as the controller saw it. Digests are hex; `gpus` holds (name, uuid, bus id, driver).

    gpu_fault: what the driver's tool said where it failed (exit 124: it hung), "" otherwise.
    """

    archive_sha256: str
    interpreter_sha256: str
    python_version: str
    distributions_sha256: str
    boot_id: str
    pid_namespace: str
    container_id: str
    hostname_digest: str
    uptime_sec: float
    kernel: str
    cpu_count: int
    gpus: tuple[tuple[str, str, str, str], ...]
    gpu_fault: str = ""

    def machine(self, allocation: str) -> SeenMachine:
        """The machine, which is compared with what the legs report. Raises pydantic's ValidationError where
        the pod said what no machine says.
        """
        return SeenMachine(
            boot_id=self.boot_id,
            hostname_digest=self.hostname_digest,
            allocation=allocation,
            gpu_names=tuple(gpu[0] for gpu in self.gpus),
            gpu_uuids=tuple(gpu[1] for gpu in self.gpus),
            pci_bus_ids=tuple(gpu[2] for gpu in self.gpus),
            driver=self.gpus[0][3] if self.gpus else "",
            uptime_sec=self.uptime_sec,
            cpu_count=self.cpu_count,
            kernel=self.kernel,
        )


def observe(pod: Pod, archive: str, python: str, salt: bytes) -> Observed:
    """Read hashes, namespaces, GPUs, and what is installed for `python` (0.2 s for 120 packages).

    salt: the run's, in which the host's name is hidden as the pod hides it.

    Raises RemoteError where a tool or file is missing.
    """
    said = pod.check(["sh", "-c", POD_SCRIPT, "sh", archive, python], "looking at the pod", timeout=60)
    fields: dict[str, str] = {}
    gpus = []
    for line in said.decode("utf-8", "replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, value = match.groups()
        if name == "gpu":
            parts = tuple(part.strip() for part in value.split(","))
            if len(parts) == 4:
                gpus.append((parts[0], parts[1], parts[2], parts[3]))
        else:
            fields[name] = value
    listed = pod.check([python, "-I", "-c", _INSTALLED], "listing what is installed", timeout=60)
    version, *installed = listed.decode("utf-8", "replace").split("\n")
    try:
        host = host_digest(fields["host"], salt)
        return Observed(
            archive_sha256=fields["archive"],
            interpreter_sha256=fields["interpreter"],
            python_version=version,
            distributions_sha256=distributions_digest(installed),
            boot_id=fields["boot"],
            pid_namespace=fields["pid"],
            container_id=container_id(fields["boot"], fields["pid"], fields["mnt"], host),
            hostname_digest=host,
            uptime_sec=float(fields["uptime"]),
            kernel=fields["kernel"],
            cpu_count=int(fields["cpus"]),
            gpus=tuple(gpus),
            gpu_fault=fields.get("fault", ""),
        )
    except (KeyError, ValueError) as error:
        raise RemoteError("the pod's description is incomplete", field="missing", value=error) from error


def check_gpu(spec: RunSpec, observed: Observed) -> str | None:
    """Return the GPU's name; raise LegError where it is not exactly the one asked for, or is sick.

    Names are compared whole, since MIG slices share prefixes. Codes: gpu-not-as-asked, gpu-probe-failed.
    """
    found = [gpu[0] for gpu in observed.gpus]
    lines = [", ".join(gpu) for gpu in observed.gpus]
    fault = observed.gpu_fault or next((line for line in lines if "ERR!" in line), "")
    if fault and spec.gpu.name != "cpu":
        # A hanging tool, "Driver/library version mismatch", a card that fell off the bus: CUDA will not open
        # either, so nothing is sealed.
        raise LegError(
            f"the machine's NVIDIA driver does not answer as it should ({fault})",
            code=Code.GPU_PROBE_FAILED,
            remedy="try again: another machine may do better"
            if spec.paid
            else "reboot the machine or take another; gpu=cpu leaves its GPUs alone",
        )
    if spec.gpu.name in ("auto", "cpu"):
        return found[0] if found and spec.gpu.name == "auto" else None
    names = spec.gpu.provider_names
    # A machine of one's own goes by any of the GPU's names; a provider by its own spelling or the driver's.
    if len(found) < spec.gpu.count or any(name not in names.values() for name in found):
        seen = ", ".join(found) or "no GPU"
        raise LegError(
            f"asked for {spec.gpu.name}, found {seen}",
            code=Code.GPU_NOT_AS_ASKED,
            remedy="the provider gave another GPU than it had listed: try again, or take another gpu="
            if spec.paid
            else "gpu=auto takes what is there, gpu=cpu none; provider=runpod or vastai rents one",
        )
    return found[0]
