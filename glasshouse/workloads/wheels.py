"""The wheels that a project needs on the rented machine, resolved and fetched here by pip.

What the machine has already (torch, and what came with it) is shown to pip as empty wheels of the same
versions: it limits the others, and is not fetched. Where the requirements cannot be met by that version,
another one is brought along; but never of torch, nor of what the runtime itself is running with. pip asks a
requirement's markers of the Python that runs it; so what its answer says that a package needs is asked again
here, of the machine's Python.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from glasshouse.errors import UsageError
from glasshouse.workloads.dependencies import FIELD, Dependencies
from glasshouse.workloads.pip import ConflictError, Package, Pip, Target, without_marker
from glasshouse.workloads.requirement import for_extras, holds

__all__ = ["Target", "check_machine", "fetch", "has_already"]

MAX_WHEELS: Final = 1000
MAX_WHEELS_BYTES: Final = 2 << 30  # of all: what is larger came by accident, or belongs into the image
MAX_ROUNDS: Final = 10
MAX_EXTRAS: Final = 1000  # of what the machine has, looked at for one requirement; beyond, pip is asked
_LOCAL: Final = "+image"
_TORCH: Final = "torch"
# What torch's wheels bring along for CUDA.
_WITH_TORCH: Final = re.compile(r"(?:nvidia-.*-cu\d+|cuda-.*|triton|pytorch-triton)\Z")
# Loaded by the process that becomes the project's (locks/, `run` extra): another version would not be.
_RUNS_WITH: Final = frozenset({"cryptography", "cffi", "pycparser", "pynacl", "pyjwt"})


def fetch(
    dependencies: Dependencies,
    target: Target,
    folder: Path,
    *,
    provided: Mapping[str, str] | None = None,
    extras: Mapping[str, Sequence[str]] | None = None,
    say: Callable[[str], None] = lambda _: None,
    say_named: Callable[[Sequence[str]], None] = lambda _: None,
    timeout_sec: float = 1800.0,
) -> tuple[Path, ...]:
    """Fetch the wheels into `folder`, which is empty, and return them, sorted by name.

    provided: distributions that the machine has, with their versions; with torch among them, its CUDA wheels
    and triton are the machine's too. extras: of some of them, what they need for an extra (Requires-Dist).
    They are the machine's word: they count for the extras that the project, or a wheel that is fetched, asks
    for. say: takes a line on what is done; say_named: the names, if any, that nobody but the machine asks
    for, before they are fetched. Raises UsageError, of `dependencies`, that names a requirement for which no
    wheel fits; GlasshouseError where pip or the index cannot be asked.
    """
    wanted, have = check_machine(dependencies, target, provided or {})
    if not wanted:
        return ()
    limits = [item for item in dependencies.constraints if _applies(Requirement(item), target, frozenset())]
    for item in map(Requirement, limits):
        name = canonicalize_name(item.name)
        if name in have and not _stays(name, have) and not _meets(item, have[name]):
            del have[name]  # a lock is held to, but for what is never sent
    if not _lacking(wanted, target, have, extras or {}):
        return ()
    with tempfile.TemporaryDirectory(prefix="glasshouse-wheels-") as place:
        lines = {without_marker(item): where for item, where in dependencies.lines.items()}
        pip = Pip(Path(place), target, dependencies.places, timeout_sec, lines)
        count = _count(len(wanted), "requirement")
        say(f"resolving {count} of {dependencies.source} for Python {target.python}")
        packages, named = _fitting(pip, wanted, limits, have=have, extras=extras or {})
        _check_hashes(packages, dependencies.hashes)
        if len(packages) > MAX_WHEELS:
            raise UsageError(
                f"{len(packages)} wheels would be needed", field=FIELD, value=dependencies.source,
                remedy=f"at most {MAX_WHEELS}",
            )  # fmt: skip
        if any(package.name == _TORCH for package in packages):
            raise _no_torch()
        if packages:
            if named:
                say_named(named)
            say(f"fetching {_count(len(packages), 'wheel')}")
            pip.download([package for package in packages if package.path is None], folder)
            _copy([package for package in packages if package.path is not None], folder)
    found = tuple(sorted(folder.glob("*.whl")))
    _check_size(found)
    return found


def check_machine(
    dependencies: Dependencies, target: Target, provided: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the requirements that apply on a machine, and what of `provided` meets those that name it, by
    normalised name. Raises UsageError for one that asks for another version of what is never sent.
    """
    have: dict[str, str] = {
        canonicalize_name(name): _as_provided(version) for name, version in provided.items()
    }
    wanted = [item for item in dependencies.requirements if _applies(Requirement(item), target, frozenset())]
    for item in map(Requirement, wanted):
        name = canonicalize_name(item.name)
        version = have.get(name)
        if version is None or _is_met(dependencies, item, version):
            continue
        if not _stays(name, have):
            del have[name]
        elif item.url is not None or not _meets(item, version):
            where = dependencies.lines.get(str(item), "")
            there = f"{item.name} {version.removesuffix(_LOCAL)}"
            raise UsageError(
                f"{where}{': ' if where else ''}the machine has {there}, and no other is sent",
                field=FIELD, value=_without_place(item),
                remedy="ask for that version, or for a range that holds it",
            )  # fmt: skip
    if _TORCH not in have and _TORCH in map(_name, wanted):
        raise _no_torch()
    return wanted, have


def _lacking(
    wanted: Sequence[str], target: Target, have: Mapping[str, str], extras: Mapping[str, Sequence[str]]
) -> list[str]:
    """Those that the machine has not, or not with what their extras need. What else the machine's packages
    need is the machine's own.
    """
    extras = for_extras(map(Requirement, wanted), extras, target.environment)
    return [item for item in wanted if not _is_whole(Requirement(item), target, have, extras)]


def _is_whole(
    item: Requirement, target: Target, have: Mapping[str, str], extras: Mapping[str, Sequence[str]]
) -> bool:
    left, seen = [item], set[tuple[str, str]]()
    while left and len(seen) <= MAX_EXTRAS:
        item = left.pop()
        name = canonicalize_name(item.name)
        if name not in have or not _meets(item, have[name]):
            return False
        new = {extra for extra in item.extras if (name, extra) not in seen}
        seen |= {(name, extra) for extra in new}
        needs = map(Requirement, extras.get(name, ()) if new else ())
        left += [need for need in needs if _applies(need, target, frozenset(new))]
    return not left


def _no_torch() -> UsageError:
    return UsageError(
        "the machine has no torch, and none is sent: with what it needs it is gigabytes",
        field=FIELD, value=_TORCH, remedy="give an image, or an interpreter, that has it",
    )  # fmt: skip


def _fitting(
    pip: Pip,
    wanted: Sequence[str],
    constraints: Sequence[str],
    *,
    have: dict[str, str],
    extras: Mapping[str, Sequence[str]],
) -> tuple[list[Package], list[str]]:
    """What goes together, and the names in it that nobody but the machine asks for. Versions of the machine's
    that stand in the way are no longer counted on, in `have` too; those that stay are.
    """
    stays = {name for name in have if _stays(name, have)}
    while True:
        roots = _lacking(wanted, pip.target, have, extras)
        limits = [f"{name}=={version}" for name, version in have.items()]
        limits += [item for item in constraints if _name(item) not in have]
        try:
            return _resolved(pip, roots, limits, have, wanted=wanted, extras=extras)
        except ConflictError as conflict:
            free = (conflict.locked & have.keys()) - stays
            if not free:
                raise
            for name in free:
                del have[name]


def _resolved(
    pip: Pip,
    lacking: Sequence[str],
    limits: Sequence[str],
    have: Mapping[str, str],
    *,
    wanted: Sequence[str],
    extras: Mapping[str, Sequence[str]],
) -> tuple[list[Package], list[str]]:
    roots, direct, missing = list(lacking), {_name(item) for item in wanted}, list[str]()
    asking = list(map(Requirement, wanted))
    shown = for_extras(asking, extras, pip.target.environment)
    pip.show(have, shown)
    for _ in range(MAX_ROUNDS):
        found = {package.name: package for package in pip.resolve(roots, limits)}
        needs = {
            package.name: [need for need in package.needs if _needs(package, need, pip.target)]
            for package in found.values()
        }
        missing = [
            need
            for name, listed in needs.items()
            if name in have or not _is_provided(name, have, direct)
            for need in listed
            if not _is_provided(_name(need), have, direct) and _name(need) not in found
        ]
        sent = [name for name in needs if not _is_provided(name, have, direct)]
        fetched = [need for name in sent for need in needs[name]]
        asking = [*map(Requirement, wanted), *map(Requirement, fetched)]
        asked = for_extras(asking, extras, pip.target.environment)
        if not missing and asked == shown:
            packages = [found[name] for name in sorted(sent)]
            named = {_name(need) for listed in asked.values() for need in listed}
            named -= {canonicalize_name(item.name) for item in asking}
            return packages, sorted(named & set(sent))
        if asked != shown:  # what is fetched asks for an extra of what the machine has
            shown = asked
            pip.show(have, shown)
        roots += [without_marker(need) for need in dict.fromkeys(missing)]
    raise UsageError(
        "the requirements were not resolved",
        field=FIELD,
        value=missing[0] if missing else lacking[0],
        remedy="pin it in requirements.txt",
    )


def _needs(package: Package, need: str, target: Target) -> bool:
    return _applies(Requirement(need), target, package.extras)


def _is_provided(name: str, have: Mapping[str, str], direct: Collection[str]) -> bool:
    return name in have or (name not in direct and _TORCH in have and _WITH_TORCH.match(name) is not None)


def _stays(name: str, have: Mapping[str, str]) -> bool:
    return name == _TORCH or name in _RUNS_WITH or (_TORCH in have and _WITH_TORCH.match(name) is not None)


def has_already(dependencies: Dependencies, item: Requirement, packages: Mapping[str, str]) -> bool:
    """Whether what a machine has is what a requirement asks for, so that nothing is sent for it."""
    name = canonicalize_name(item.name)
    if name not in packages:
        return False
    version = _as_provided(packages[name])
    return _is_met(dependencies, item, version) or (_stays(name, packages) and _meets(item, version))


def _is_met(dependencies: Dependencies, item: Requirement, version: str) -> bool:
    # A digest says which file is meant, and of what is installed there is none.
    known = canonicalize_name(item.name) in dependencies.hashes
    return item.url is None and not known and _meets(item, version)


def _meets(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def _without_place(requirement: Requirement) -> str:
    return requirement.name if requirement.url is not None else str(requirement)


def _applies(requirement: Requirement, target: Target, extras: frozenset[str]) -> bool:
    try:
        return any(holds(requirement, target.environment, extra) for extra in ("", *extras))
    except InvalidRequirement:  # of metadata: what a project says was asked when it was read
        return False


def _check_hashes(packages: Sequence[Package], hashes: Mapping[str, frozenset[str]]) -> None:
    for package in packages:
        known = hashes.get(package.name)
        if known is not None and package.sha256 not in known:
            raise UsageError(
                "the wheel that fits has none of the hashes",
                field=FIELD, value=f"{package.name}=={package.version}",
                remedy="add its wheel's hash, or leave hashes out",
            )  # fmt: skip


def _copy(packages: Sequence[Package], folder: Path) -> None:
    """Take wheels that lie on this machine, if they are what pip looked at."""
    for package in packages:
        assert package.path is not None
        try:
            taken = Path(shutil.copyfile(package.path, folder / package.path.name))
            with taken.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(
                f"cannot read a wheel: {error.strerror}",
                field=FIELD,
                value=package.path.name,
                remedy="mend it",
            ) from error
        if package.sha256 and not hmac.compare_digest(package.sha256, digest):
            raise UsageError(
                "a wheel changed while it was read", field=FIELD, value=package.path.name, remedy="try again"
            )


def _check_size(wheels: Sequence[Path]) -> None:
    sizes = {wheel: wheel.stat().st_size for wheel in wheels}
    total = sum(sizes.values())
    if total > MAX_WHEELS_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise UsageError(
            f"{total / 1e9:.1f} GB of wheels would be sent, {sizes[largest] / 1e9:.1f} GB of it one",
            field=FIELD, value="-".join(largest.name.split("-")[:2]),
            remedy="give an image, or an interpreter, that has it",
        )  # fmt: skip


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _as_provided(version: str) -> str:
    """A version that the index has not under the same name: it satisfies what the plain one does."""
    return version if "+" in version else f"{version}{_LOCAL}"


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
