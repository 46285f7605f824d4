"""The claims that evidence holds: each declared once, with its type and how it is appraised.

A new claim is a field of `Claims` (or `Hardening`): its declaration says which values have its type, what it
must equal and with which reason code it is refused otherwise, and where that value comes from. The runtime
builds its evidence from these fields, the Verifier's table (`CLAIMS`) is made of them, and a claim that must
equal what somebody else saw has a field of the same name in `Reference`.

Part of the archive that runs on the pod: standard library and cryptography only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from glasshouse.attestation.evidence import AWAITING_RELEASE, EAT_PROFILE
from glasshouse.canonical import CanonicalError, b64u_decode
from glasshouse.codes import Code

Source = Literal["controller-observed", "provider-declared", "self-reported", "broker"]
# The AR4SI trustworthiness claim that a value which is not as it must be contraindicates.
Part = Literal["instance-identity", "configuration", "executables"]
SEEN: Final = "controller-observed"
DECLARED: Final = "provider-declared"
CONFIGURATION: Final = "configuration"
EXECUTABLES: Final = "executables"

KEM_PUBLIC_BYTES = 1216  # X-Wing: ML-KEM-768 encapsulation key (1184) and X25519 public key (32)
MAX_GPUS = 64


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 512


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_bytes(size: int) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        try:
            b64u_decode(value if isinstance(value, str) else "!", size=size)
        except CanonicalError:
            return False
        return True

    return check


def _is_gpu(value: object) -> bool:
    if value == {} and isinstance(value, dict):
        return True
    if not isinstance(value, dict) or set(value) != {"names", "uuids", "driver"}:
        return False
    lists = (value["names"], value["uuids"])
    return _is_text(value["driver"]) and all(
        isinstance(items, list) and len(items) <= MAX_GPUS and all(map(_is_text, items)) for items in lists
    )


@dataclass(frozen=True)
class Claim:
    """How one claim is read and appraised.

    is_type: whether a JSON value has the claim's type. code: the reason code of a value that is not as it
    must be. must_be: the only good value, whatever the run; None: there is none, or it is the reference
    value's. source: who says what the claim is held against; `self-reported`: nobody but the claim. part:
    what a wrong value contraindicates. alone: the claim may stand without a value to compare it with, and no
    check relies on it then.
    """

    is_type: Callable[[object], bool]
    code: str = ""
    must_be: object = None
    source: Source = "self-reported"
    part: Part = "instance-identity"
    alone: bool = False


def _claim(is_type: Callable[[object], bool], code: str = "", **how: Any) -> Mapping[str, Claim]:
    """The declaration of a claim, as the metadata of its field."""
    return {"claim": Claim(is_type, code, **how)}


@dataclass(frozen=True, kw_only=True)
class Hardening:
    """What the runtime says about its own process: integers and booleans, read back from the kernel."""

    dumpable: int = field(metadata=_claim(_is_int, Code.ANTI_DEBUG_DISABLED, must_be=0, part=CONFIGURATION))
    core_limit: int = field(metadata=_claim(_is_int, Code.CORE_DUMPS_ENABLED, must_be=0, part=CONFIGURATION))
    no_new_privs: bool = field(
        metadata=_claim(_is_bool, Code.NO_NEW_PRIVS_MISSING, must_be=True, part=CONFIGURATION)
    )
    tracer_pid: int = field(metadata=_claim(_is_int, Code.DEBUGGER_ATTACHED, must_be=0, part=CONFIGURATION))
    landlock_abi: int = field(metadata=_claim(_is_int, alone=True))
    memfd_secret: bool = field(metadata=_claim(_is_bool, alone=True))
    swap_total_kib: int = field(metadata=_claim(_is_int, alone=True))
    subreaper: bool = field(
        metadata=_claim(_is_bool, Code.SUBREAPER_MISSING, must_be=True, part=CONFIGURATION)
    )


@dataclass(frozen=True)
class GpuClaim:
    """The GPUs that the runtime sees; none of them is {} in the evidence."""

    names: list[str]
    uuids: list[str]
    driver: str


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Everything that evidence states. nonce and keys base64url, digests hex, iat in Unix s, skew in s.

    event_key and composite_hash follow from what signs the rest, and are added then (evidence.py).
    """

    eat_profile: str = field(
        default=EAT_PROFILE, metadata=_claim(_is_text, Code.EAT_PROFILE_MISMATCH, must_be=EAT_PROFILE)
    )
    eat_nonce: str = field(metadata=_claim(_is_bytes(32), Code.NONCE_MISMATCH, source="broker"))
    iat: int = field(metadata=_claim(_is_int, source="broker"))
    run: str = field(metadata=_claim(_is_text, Code.RUN_MISMATCH, source=SEEN))
    leg: str = field(metadata=_claim(_is_text, Code.LEG_MISMATCH, source=SEEN))
    launch: int = field(metadata=_claim(_is_int, Code.LAUNCH_MISMATCH, source=SEEN))
    allocation_id: str = field(metadata=_claim(_is_text, Code.ALLOCATION_ID_MISMATCH, source=DECLARED))
    container_id: str = field(metadata=_claim(_is_digest, Code.CONTAINER_ID_MISMATCH, source=SEEN))
    manifest_hash: str = field(
        metadata=_claim(_is_digest, Code.MANIFEST_HASH_MISMATCH, source=SEEN, part=EXECUTABLES)
    )
    runtime_sha256: str = field(
        metadata=_claim(_is_digest, Code.RUNTIME_HASH_MISMATCH, source=SEEN, part=EXECUTABLES)
    )
    interpreter_sha256: str = field(
        metadata=_claim(_is_digest, Code.INTERPRETER_HASH_MISMATCH, source=SEEN, part=EXECUTABLES)
    )
    runtime_state: str = field(
        default=AWAITING_RELEASE,
        metadata=_claim(_is_text, Code.RUNTIME_STATE_SPOOFED, must_be=AWAITING_RELEASE, part=EXECUTABLES),
    )
    interpreter_isolated: bool = field(
        metadata=_claim(_is_bool, Code.INTERPRETER_NOT_ISOLATED, must_be=True, part=CONFIGURATION)
    )
    python_version: str = field(
        metadata=_claim(_is_text, Code.PYTHON_VERSION_MISMATCH, source=SEEN, part=EXECUTABLES, alone=True)
    )
    distributions_sha256: str = field(
        metadata=_claim(_is_digest, Code.DISTRIBUTIONS_MISMATCH, source=SEEN, part=EXECUTABLES, alone=True)
    )
    boot_id: str = field(metadata=_claim(_is_text, Code.BOOT_ID_MISMATCH, source=SEEN))
    pid_namespace: str = field(metadata=_claim(_is_text, Code.PID_NAMESPACE_MISMATCH, source=SEEN))
    image_digest: str = field(
        metadata=_claim(_is_text, Code.IMAGE_DIGEST_MISMATCH, source=DECLARED, part=EXECUTABLES)
    )
    event_key: str | None = field(
        default=None, metadata=_claim(_is_bytes(32), Code.EVENT_KEY_MISMATCH, source="broker")
    )
    kem_key: str = field(metadata=_claim(_is_bytes(KEM_PUBLIC_BYTES), Code.KEM_KEY_INVALID))
    anti_debug_profile: str = field(metadata=_claim(_is_text))
    hardening: Hardening = field(metadata=_claim(_is_object))
    fs: str = field(metadata=_claim(_is_text, alone=True))
    gpu: GpuClaim | None = field(metadata=_claim(_is_gpu, Code.GPU_MISMATCH, source=DECLARED, alone=True))
    clock_skew_sec: int = field(metadata=_claim(_is_int, alone=True))
    composite_hash: str | None = field(
        default=None, metadata=_claim(_is_text, Code.COMPOSITE_HASH_MISMATCH, source="broker")
    )

    def to_json(self) -> dict[str, Any]:
        """The claims as evidence spells them, without what is added when it is signed."""
        found = asdict(self)
        for added in ("event_key", "composite_hash"):
            if found[added] is None:
                del found[added]
        return {**found, "gpu": found["gpu"] or {}}


def _declared(model: type, prefix: str = "") -> dict[str, Claim]:
    return {prefix + item.name: item.metadata["claim"] for item in fields(model)}


# Every claim there is. A claim not in this table is refused.
CLAIMS: Mapping[str, Claim] = {**_declared(Claims), **_declared(Hardening, "hardening.")}

# Claims that may stand without a value to compare them with (the reference values may hold one for some):
# then reported, of the right type, and relied on by no check.
SELF_REPORTED = tuple(name for name, claim in CLAIMS.items() if claim.alone)

VOUCHED_HOST_KEYS = ("created", "pinned", "provider-log")
_HOST_KEY = "host_key_source"  # as JSON spells it


@dataclass(frozen=True)
class Reference:
    """Reference values of one launch; none of them comes from the attester.

    The digests are 64 hex digits. python_version, distributions_sha256 and gpu_name may be None: then the
    claim is self-reported. host_key says who vouches for the pod's host key: created | pinned |
    provider-log | first-use (nobody). sources: who says each value, by the claim's name.
    """

    run: str
    leg: str
    launch: int
    allocation_id: str
    container_id: str
    manifest_hash: str
    runtime_sha256: str
    interpreter_sha256: str
    boot_id: str
    pid_namespace: str
    image_digest: str = ""
    python_version: str | None = None
    distributions_sha256: str | None = None
    gpu_name: str | None = None
    host_key: str = "first-use"
    sources: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_SOURCES))

    @property
    def where(self) -> tuple[str, str, int]:
        """Run, leg and launch number."""
        return self.run, self.leg, self.launch

    @property
    def host_key_vouched(self) -> bool:
        """Whether anybody vouched for the pod's host key before it was first used."""
        return self.host_key in VOUCHED_HOST_KEYS

    @property
    def host_key_told_by(self) -> str:
        """Who says where trust in the host key comes from."""
        return self.source(_HOST_KEY)

    def source(self, name: str) -> str:
        """Who says the value that the claim of this name is held against."""
        return self.sources.get(name, DEFAULT_SOURCES.get(name, "controller-observed"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        found = {**asdict(self), "sources": dict(self.sources)}
        found[_HOST_KEY] = found.pop("host_key")
        return found

    @classmethod
    def from_dict(cls, data: object) -> Reference:
        """Inverse of to_dict; raises TypeError for unknown or missing names and values of other types."""
        if not isinstance(data, dict) or "host_key" in data:
            raise TypeError("reference values are no object, or have other names")
        found = dict(data)
        if _HOST_KEY in found:
            found["host_key"] = found.pop(_HOST_KEY)
        made = cls(**found)
        for item in fields(cls):
            if not _REFERENCE_TYPES[str(item.type)](getattr(made, item.name)):
                raise TypeError(f"reference value {item.name} is not of its type")
        return made


DEFAULT_SOURCES: Mapping[str, Source] = {
    **{
        name: claim.source
        for name, claim in CLAIMS.items()
        if claim.source in ("controller-observed", "provider-declared")
    },
    _HOST_KEY: "controller-observed",
}

_REFERENCE_TYPES: Mapping[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": _is_int,
    "Mapping[str, str]": lambda value: (
        isinstance(value, dict) and all(isinstance(each, str) for each in (*value, *value.values()))
    ),
}

# Claims that must equal the reference value of the same name, in the order of Reference.
REFERENCED = tuple(item.name for item in fields(Reference) if item.name in CLAIMS)
# Claims that have one good value, whatever the run.
FIXED = tuple(name for name, claim in CLAIMS.items() if claim.must_be is not None)


def claim_sources(reference: Reference) -> dict[str, str]:
    """Where the value that each claim was held against comes from; `self-reported`: nothing but the claim."""
    sources: dict[str, str] = {}
    for name, claim in CLAIMS.items():
        expected = reference.gpu_name if name == "gpu" else getattr(reference, name, None)
        if expected is not None:
            sources[name] = reference.source(name)
        else:
            sources[name] = "broker" if claim.source == "broker" else "self-reported"
    return sources


def is_kem_key(value: str) -> bool:
    """Whether base64url text of 1216 bytes is an X-Wing public key that can be wrapped to.

    ML-KEM's check of the encapsulation key (FIPS 203 section 7.2), done here so that whoever verifies needs
    no library that has ML-KEM; and no X25519 point of low order: it is tried with a fixed scalar, so that the
    answer is the same whenever an exchange is appraised again.
    """
    raw = b64u_decode(value)
    if len(raw) != KEM_PUBLIC_BYTES or not _is_encapsulation_key(raw[:1184]):
        return False
    try:
        X25519PrivateKey.from_private_bytes(b"\x01" * 32).exchange(
            X25519PublicKey.from_public_bytes(raw[1184:])
        )
    except ValueError:
        return False
    return True


def _is_encapsulation_key(raw: bytes) -> bool:
    """The modulus check: 768 coefficients of 12 bits, each below 3329; the 32 bytes after them are a seed."""
    packed = (int.from_bytes(raw[at : at + 3], "little") for at in range(0, 1152, 3))
    return all(pair & 0xFFF < 3329 and pair >> 12 < 3329 for pair in packed)
