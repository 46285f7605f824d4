"""The claims that evidence holds, their types, and the reference values they are held against."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from glasshouse.canonical import CanonicalError, b64u_decode

Source = Literal["controller-observed", "provider-declared", "self-reported", "broker"]

KEM_PUBLIC_BYTES = 1216  # X-Wing: ML-KEM-768 encapsulation key (1184) and X25519 public key (32)

# Claims that may stand without a value to compare them with (the reference values may hold one for some):
# then reported, of the right type, and relied on by no check.
SELF_REPORTED = (
    "clock_skew_sec",
    "python_version",
    "distributions_sha256",
    "hardening.landlock_abi",
    "hardening.memfd_secret",
    "hardening.swap_total_kib",
    "fs",
    "gpu",
)

DEFAULT_SOURCES: Mapping[str, Source] = {
    "run": "controller-observed",
    "leg": "controller-observed",
    "launch": "controller-observed",
    "allocation_id": "provider-declared",
    "container_id": "controller-observed",
    "manifest_hash": "controller-observed",
    "runtime_sha256": "controller-observed",
    "interpreter_sha256": "controller-observed",
    "boot_id": "controller-observed",
    "pid_namespace": "controller-observed",
    "image_digest": "provider-declared",
    "gpu": "provider-declared",
    "python_version": "controller-observed",
    "distributions_sha256": "controller-observed",
    "host_key_source": "controller-observed",
}


@dataclass(frozen=True)
class Reference:
    """Reference values of one launch; none of them comes from the attester.

    The digests are 64 hex digits. gpu_name, python_version and distributions_sha256 may be None: then the
    claim is self-reported. host_key_source: created | pinned | provider-log | first-use.
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
    gpu_name: str | None = None
    python_version: str | None = None
    distributions_sha256: str | None = None
    host_key_source: str = "first-use"
    sources: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_SOURCES))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "sources": dict(self.sources)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reference:
        """Inverse of to_dict; raises TypeError for unknown or missing names."""
        return cls(**dict(data))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 512


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_bytes(size: int) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        try:
            b64u_decode(value, size=size)
        except CanonicalError:
            return False
        return True

    return check


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


def _is_gpu(value: Any) -> bool:
    if value == {} and isinstance(value, dict):
        return True
    if not isinstance(value, dict) or set(value) != {"names", "uuids", "driver"}:
        return False
    lists = (value["names"], value["uuids"])
    return _is_text(value["driver"]) and all(
        isinstance(items, list) and len(items) <= 64 and all(map(_is_text, items)) for items in lists
    )


_HARDENING: Mapping[str, Callable[[Any], bool]] = {
    "dumpable": _is_int,
    "core_limit": _is_int,
    "no_new_privs": _is_bool,
    "tracer_pid": _is_int,
    "landlock_abi": _is_int,
    "memfd_secret": _is_bool,
    "swap_total_kib": _is_int,
    "subreaper": _is_bool,
}

# Every claim there is, and its type. A claim not in this table is refused.
CLAIMS: Mapping[str, Callable[[Any], bool]] = {
    "eat_profile": _is_text,
    "eat_nonce": _is_bytes(32),
    "iat": _is_int,
    "run": _is_text,
    "leg": _is_text,
    "launch": _is_int,
    "allocation_id": _is_text,
    "container_id": _is_digest,
    "manifest_hash": _is_digest,
    "runtime_sha256": _is_digest,
    "interpreter_sha256": _is_digest,
    "interpreter_isolated": _is_bool,
    "python_version": _is_text,
    "distributions_sha256": _is_digest,
    "boot_id": _is_text,
    "pid_namespace": _is_text,
    "image_digest": _is_text,
    "event_key": _is_bytes(32),
    "kem_key": _is_bytes(KEM_PUBLIC_BYTES),
    "runtime_state": _is_text,
    "anti_debug_profile": _is_text,
    "hardening": lambda value: isinstance(value, dict),
    "fs": _is_text,
    "gpu": _is_gpu,
    "clock_skew_sec": _is_int,
    "composite_hash": _is_text,
    **{f"hardening.{name}": check for name, check in _HARDENING.items()},
}


_BY_BROKER = ("eat_nonce", "iat", "event_key", "composite_hash")


def claim_sources(reference: Reference) -> dict[str, str]:
    """Where the value that each claim was held against comes from; `self-reported`: nothing but the claim."""
    sources: dict[str, str] = {}
    for name in CLAIMS:
        compared = name in {item.name for item in fields(reference)} and getattr(reference, name) is not None
        if name == "gpu":
            compared = reference.gpu_name is not None
        if compared:
            sources[name] = reference.sources.get(name, "controller-observed")
        else:
            sources[name] = "broker" if name in _BY_BROKER else "self-reported"
    return sources
