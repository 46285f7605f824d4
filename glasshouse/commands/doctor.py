"""What this machine, its credentials and, for provider=ssh, that machine can and cannot do.

  glasshouse doctor
  glasshouse doctor provider=ssh provider.host=box.example provider.user=me provider.key=~/.ssh/id_ed25519
  glasshouse doctor model=project model.folder=DIR -- python train.py

Each line that is not ok ends with its remedy. A provider's key that is set is tried by reading the list of
machines, and never shown. The exit code is 1 when a run with the given settings could not start, else 0.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from glasshouse import config, host, paths
from glasshouse.codes import Code
from glasshouse.commands.needed import needed
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import ProviderError, UsageError
from glasshouse.extras import install_line, missing
from glasshouse.providers.money import CAP_VARIABLE, parse_usd
from glasshouse.providers.registry import KEY_VARIABLES, open_provider
from glasshouse.runtime import linux
from glasshouse.spec import CloudProvider, RunSpec, SshProvider

SSH_TIMEOUT_SEC = 5.0
KEY_SEC = 5.0  # for trying a provider's key


@dataclass(frozen=True)
class Finding:
    """One line. state: ok, limited (works, with less), missing (a run with these settings cannot start)."""

    what: str
    state: Literal["ok", "limited", "missing"]
    detail: str
    remedy: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="as for the run you have in mind")


def run(args: argparse.Namespace) -> int:
    """Print every finding."""
    conf = args.workspace.conf
    findings = list(examine(config.load(args.overrides, conf=conf), conf))
    good = all(item.state != "missing" for item in findings)
    if args.json:
        emit({"ok": good, "findings": [asdict(item) for item in findings]})
    else:
        say(table(["", "what", "found", "remedy"], [[f.state, f.what, f.detail, f.remedy] for f in findings]))
    return 0 if good else 1


def examine(spec: RunSpec, conf: Path) -> Iterator[Finding]:
    """Yield the findings for a run of `spec` from this machine. `conf`: where settings of providers are."""
    yield _platform(spec)
    yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))
    yield from _extras()
    yield from _trains(spec)
    yield from _needs(spec, conf)
    if sys.platform == "linux":
        yield from _hardening(spec)
        yield from _memory()
    yield Finding("processors", "ok", f"{os.cpu_count()} cores")
    yield from _store()
    yield from _rents(spec, conf)
    if isinstance(spec.provider, SshProvider):
        yield _reaches(spec.provider)
        yield _key_file(Path(spec.provider.key).expanduser())


def _extras() -> Iterator[Finding]:
    """What the installation can do: without `run` no run starts, without `site` there are no pages."""
    lacks: dict[str, Literal["missing", "limited"]] = {"run": "missing", "site": "limited"}
    for extra, state in lacks.items():
        names = ", ".join(missing(extra))
        if names:
            yield Finding(f"extra {extra}", state, f"not installed: {names}", install_line(extra))
        else:
            yield Finding(f"extra {extra}", "ok", "installed")


def _platform(spec: RunSpec) -> Finding:
    try:
        host.need_linux("provider=local")
    except UsageError as error:
        needed = spec.provider.kind == "local"
        return Finding(
            "platform", "missing" if needed else "limited", f"{sys.platform}: {error.what}", error.remedy
        )
    return Finding("platform", "ok", sys.platform)


def _trains(spec: RunSpec) -> Iterator[Finding]:
    local = spec.provider.kind == "local"
    wanted = ["torch"] + (["transformers", "peft"] if spec.model.kind == "lora" else [])
    for name in wanted:
        # Looked for, not imported: torch takes seconds.
        if importlib.util.find_spec(name) is None:
            yield Finding(
                name,
                "missing" if local else "limited",
                "not installed here",
                install_line("train"),
            )
        else:
            yield Finding(name, "ok", importlib.metadata.version(name))
    gpus, fault = _gpus()
    if fault:
        yield Finding("gpu", "missing" if local else "limited", fault, "mend the driver (reboot), or gpu=cpu")
    elif gpus:
        yield Finding("gpu", "ok", ", ".join(gpus))
    else:
        wants = local and spec.gpu.name not in ("auto", "cpu")
        yield Finding(
            "gpu", "missing" if wants else "limited", "none here", "rent one: gpu=a4000, or give provider=ssh"
        )


def _needs(spec: RunSpec, conf: Path) -> Iterator[Finding]:
    """What a project asks for and imports, and whether the machine has it."""
    try:
        found = needed(spec, conf)
    except UsageError as error:
        where = f" ({error.field}={error.value})" if error.field else ""
        yield Finding("project", "missing", f"{error.what}{where}", error.remedy)
        return
    if found is None:
        return
    first, *more = found.lines()
    name, _, words = first.partition(": ")
    if found.to_send and missing_pip():
        yield Finding(
            name, "missing", f"{words}; this Python has no pip to fetch them", "python -m ensurepip"
        )
    else:
        yield Finding(
            name, "ok" if found.known else "limited", words, "" if found.known else "see what a run says"
        )
    for line in more:
        what, _, modules = line.partition(": ")
        yield Finding("imports", "limited", f"{what}: {modules}", "name what brings it in requirements.txt")


def missing_pip() -> bool:
    """Whether there is no pip beside this program."""
    return importlib.util.find_spec("pip") is None


def _gpus() -> tuple[list[str], str]:
    """(each GPU with its driver, what is wrong with the driver or "")."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return [], "nvidia-smi does not answer"
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode != 0 or any("ERR!" in line for line in said):
        return [], said[0][:120] if said else f"nvidia-smi ends with {done.returncode}"
    return said, ""


def _hardening(spec: RunSpec) -> Iterator[Finding]:
    """What a protected leg on this machine (provider=local) could use."""
    strict = spec.provider.kind == "local"
    abi = linux.landlock_abi()
    lacks: Literal["missing", "limited"] = "missing" if strict and spec.policy.require_landlock else "limited"
    yield Finding(
        "landlock",
        "ok" if abi > 0 else lacks,
        f"ABI {abi}" if abi > 0 else "not available",
        "" if abi > 0 else "boot with Landlock in lsm=; without it rows say fs: none",
    )
    page = linux.secret_memory()
    lacks = "missing" if strict and spec.policy.require_memfd_secret else "limited"
    if page is None:
        yield Finding(
            "memfd_secret",
            lacks,
            "not available",
            "boot with secretmem.enable=1; else keys rest in locked memory",
        )
    else:
        page.close()
        yield Finding("memfd_secret", "ok", "available")


def _memory() -> Iterator[Finding]:
    huge = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    off = "[never]" in huge or not huge
    yield Finding(
        "huge pages",
        "limited" if off else "ok",
        huge or "unknown",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; sealed loads are several times faster"
        if off
        else "",
    )
    swap = next(
        (line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("SwapTotal")), "0"
    )
    yield Finding(
        "swap",
        "ok" if swap == "0" else "limited",
        "none" if swap == "0" else f"{int(swap) // 1024} MiB",
        "" if swap == "0" else "swapoff -a, or read rows with it in mind: memory may reach the disk",
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _store() -> Iterator[Finding]:
    folder = paths.keys_dir()
    loose = folder.stat().st_mode & 0o077
    made = any(folder.glob("*.pem"))
    yield Finding(
        "keys folder",
        "limited" if loose else "ok",
        ("readable by others" if loose else "private")
        + ("" if made else ", empty: a first run makes the keys"),
        "chmod 700 the keys folder under GLASSHOUSE_HOME" if loose else "",
    )
    if missing("run", only=("sqlalchemy",)):
        return  # said above
    from glasshouse.lifecycle import strays  # noqa: PLC0415  the base install has a doctor, too
    from glasshouse.providers import accounts  # noqa: PLC0415
    from glasshouse.providers.journal import Journal  # noqa: PLC0415

    try:
        with Journal() as journal:
            left, places = journal.open_entries(), strays.lately(journal)
            (count, _), where = journal.extent(), journal.where
        there = strays.find(places)
    except UsageError as error:
        yield Finding("state store", "missing", error.what, error.remedy)
        return
    yield Finding(
        "state store",
        "limited" if left else "ok",
        f"{len(left)} of {count} allocations not proven gone ({where})",
        "glasshouse reap" if left else "",
    )
    for entry in left:
        if not entry.controller_alive and not accounts.same_key(entry):
            yield _another_key(entry.name, entry.provider)
    for stray in there:
        if stray.id is None:
            what, detail = f"machines at {stray.provider}", f"cannot be asked for: {stray.detail}"
        elif stray.ours:
            what, detail = f"machine at {stray.provider}", f"{stray.name} came after it was proven gone"
        else:
            continue
        yield Finding(what, "limited", detail, "glasshouse reap")


def _another_key(name: str, provider: str) -> Finding:
    """An allocation that is not proven gone, and of which the key in the environment can tell nothing."""
    variable = KEY_VARIABLES[provider]
    if not os.environ.get(variable):
        remedy = f"export {variable}, then glasshouse reap"
        return Finding(f"rented at {provider}", "limited", f"{name}: no key is set", remedy)
    return Finding(
        f"rented at {provider}",
        "limited",
        f"{name}: with another key than the one that is set",
        f"set {variable} to that account's, or glasshouse reap --other-key for a new key of the same account",
    )


def _rents(spec: RunSpec, conf: Path) -> Iterator[Finding]:
    for kind, variable in KEY_VARIABLES.items():
        needed = spec.provider.kind == kind
        lacks: Literal["missing", "limited"] = "missing" if needed else "limited"
        if not os.environ.get(variable):
            yield Finding(f"{kind} key", lacks, "not set", f"export {variable} to rent there")
        elif missing("run"):
            yield Finding(f"{kind} key", "limited", "set, not tried", install_line("run"))
        else:
            place = spec if needed else config.load([f"provider={kind}", "gpu=a4000"], conf=conf)
            assert isinstance(place.provider, CloudProvider)
            yield _tried(place.provider, lacks)
    text = os.environ.get(CAP_VARIABLE, "")
    try:
        cap = spec.spend.max_usd if not text else parse_usd(text)
    except UsageError as error:
        yield Finding("cost cap", "missing", error.what, error.remedy)
        return
    yield Finding(
        "cost cap",
        "ok" if cap else "missing" if spec.paid else "limited",
        f"{cap:.2f} USD" if cap else "none",
        "" if cap else f"export {CAP_VARIABLE} to rent anywhere",
    )


def _tried(provider: CloudProvider, lacks: Literal["missing", "limited"]) -> Finding:
    """Ask the provider for the list of machines, which any key that rents may read."""
    from glasshouse.providers.cloud import Cloud  # noqa: PLC0415  the base install has a doctor, too

    what, variable = f"{provider.kind} key", KEY_VARIABLES[provider.kind]
    try:
        with open_provider(provider) as cloud:
            assert isinstance(cloud, Cloud)
            with cloud.api.http.within(KEY_SEC):
                cloud.find_ours()
            return Finding(what, "ok", f"set, and {cloud.api.label} took it for reading the list of machines")
    except UsageError as error:
        return Finding(what, lacks, f"set, and cannot be used: {error.what}", error.remedy)
    except ProviderError as error:
        if error.code == Code.AUTH:
            return Finding(what, lacks, f"set, and refused: {error.what}", f"set {variable} to another")
        return Finding(what, "limited", f"set, not tried: {error.what}", "check the network, then again")


def _reaches(provider: SshProvider) -> Finding:
    name = f"sshd at {provider.host}:{provider.port}"
    try:
        with socket.create_connection((provider.host, provider.port), timeout=SSH_TIMEOUT_SEC) as peer:
            peer.settimeout(SSH_TIMEOUT_SEC)
            banner = peer.recv(255)
    except OSError as error:
        return Finding(name, "missing", error.strerror or "no answer", "check host, port and firewall")
    if not banner.startswith(b"SSH-2.0-"):
        return Finding(name, "missing", "answers, but not as an SSH server", "check provider.port")
    return Finding(name, "ok", banner.decode("ascii", "replace").strip()[:80])


def _key_file(path: Path) -> Finding:
    if path.stat().st_mode & 0o077:
        return Finding("ssh key", "limited", "readable by others", f"chmod 600 {path}")
    return Finding("ssh key", "ok", "private")
