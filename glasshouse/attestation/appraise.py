"""The Verifier: appraise evidence against reference values and a policy. Pure and total.

No I/O, no clock, no exception for any input that parsed as JSON: every failed check is listed, because
a refusal that names one of three reasons makes three runs of one mistake.

Each claim is either checked against something (a reference value, the policy, the challenge, or the only
value it may have) or stands in SELF_REPORTED, which says that it is believed by nobody. The table and its
completeness are tested claim by claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glasshouse import __version__
from glasshouse.attestation.claims import CLAIMS, Reference, is_kem_key
from glasshouse.attestation.evidence import AWAITING_RELEASE, EAT_PROFILE, composite_hash
from glasshouse.attestation.tokens import thumbprint
from glasshouse.canonical import CanonicalError, b64u_decode, canonical_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.spec import Policy

__all__ = ["Appraisal", "Check", "Reference", "appraise", "challenge_context", "policy_id", "refusal"]

# The profile whose claim names (`ear.status`, ...) the results use; its consumers read them as they are.
EAR_PROFILE = "tag:github.com,2023:veraison/ear"
MAX_AHEAD_SEC = 2  # the broker's own clock may be slewed between challenge and evidence


@dataclass(frozen=True)
class Check:
    """One check: its reason code when it fails; `source` is where the value compared with came from."""

    code: str
    ok: bool
    detail: str
    source: str


@dataclass(frozen=True)
class Appraisal:
    """Every check made, and the claims of the EAR that says so (no grant fields in them)."""

    checks: tuple[Check, ...]
    ok: bool
    ear_claims: dict[str, Any]

    @property
    def codes(self) -> tuple[str, ...]:
        """Reason codes of the failed checks, each once, in the order of the checks."""
        return tuple(dict.fromkeys(check.code for check in self.checks if not check.ok))


# Claims that must equal the reference value of the same name, and the reason code when they do not.
_REFERENCE_CODES: Mapping[str, Code] = {
    "run": Code.RUN_MISMATCH,
    "leg": Code.LEG_MISMATCH,
    "launch": Code.LAUNCH_MISMATCH,
    "allocation_id": Code.ALLOCATION_ID_MISMATCH,
    "container_id": Code.CONTAINER_ID_MISMATCH,
    "manifest_hash": Code.MANIFEST_HASH_MISMATCH,
    "runtime_sha256": Code.RUNTIME_HASH_MISMATCH,
    "interpreter_sha256": Code.INTERPRETER_HASH_MISMATCH,
    "boot_id": Code.BOOT_ID_MISMATCH,
    "pid_namespace": Code.PID_NAMESPACE_MISMATCH,
    "image_digest": Code.IMAGE_DIGEST_MISMATCH,
    "python_version": Code.PYTHON_VERSION_MISMATCH,
    "distributions_sha256": Code.DISTRIBUTIONS_MISMATCH,
}

# Claims that have one good value, whatever the run.
_FIXED: Mapping[str, tuple[Any, Code]] = {
    "eat_profile": (EAT_PROFILE, Code.EAT_PROFILE_MISMATCH),
    "runtime_state": (AWAITING_RELEASE, Code.RUNTIME_STATE_SPOOFED),
    "interpreter_isolated": (True, Code.INTERPRETER_NOT_ISOLATED),
    "hardening.dumpable": (0, Code.ANTI_DEBUG_DISABLED),
    "hardening.core_limit": (0, Code.CORE_DUMPS_ENABLED),
    "hardening.no_new_privs": (True, Code.NO_NEW_PRIVS_MISSING),
    "hardening.tracer_pid": (0, Code.DEBUGGER_ATTACHED),
    "hardening.subreaper": (True, Code.SUBREAPER_MISSING),
}

_PROFILES = ("standard", "strict")  # weakest first

# AR4SI trustworthiness claims that a failed check contraindicates; others touch instance-identity.
_CONFIGURATION = frozenset(
    {
        Code.ANTI_DEBUG_DISABLED,
        Code.ANTI_DEBUG_PROFILE_DOWNGRADE,
        Code.ANTI_DEBUG_PROFILE_MISMATCH,
        Code.CORE_DUMPS_ENABLED,
        Code.NO_NEW_PRIVS_MISSING,
        Code.DEBUGGER_ATTACHED,
        Code.SUBREAPER_MISSING,
        Code.LANDLOCK_MISSING,
        Code.LANDLOCK_CLAIM_INCONSISTENT,
        Code.MEMFD_SECRET_MISSING,
        Code.HOST_KEY_FIRST_USE,
        Code.INTERPRETER_NOT_ISOLATED,
    }
)
_EXECUTABLES = frozenset(
    {
        Code.RUNTIME_HASH_MISMATCH,
        Code.INTERPRETER_HASH_MISMATCH,
        Code.MANIFEST_HASH_MISMATCH,
        Code.IMAGE_DIGEST_MISMATCH,
        Code.PYTHON_VERSION_MISMATCH,
        Code.DISTRIBUTIONS_MISMATCH,
        Code.DISTRIBUTIONS_NOT_LISTED,
        Code.RUNTIME_STATE_SPOOFED,
    }
)


def challenge_context(
    challenge: Mapping[str, Any], launch: Mapping[str, Any] | None, received: int
) -> dict[str, Any]:
    """What `appraise` needs to know of the exchange: verified challenge claims, the verified claims of the
    launch token that came back with the evidence (None: it did not verify), when evidence came (Unix s)."""
    names = ("nonce", "iat", "exp")
    return {
        **{name: challenge[name] for name in names},
        "cnf": challenge.get("cnf"),
        "launch": None if launch is None else dict(launch),
        "received": received,
    }


def appraise(
    claims: Mapping[str, Any], reference: Reference, policy: Policy, challenge: Mapping[str, Any]
) -> Appraisal:
    """Appraise parsed evidence claims. Never raises for JSON data.

    `challenge` is `challenge_context(...)`. 1. form, 2. composite hash, 3. freshness, 4. launch token and
    event key, 5. reference values, 6. fixed values, 7. policy. All seven always run.
    """
    checks: list[Check] = []
    values = _flatten(claims)
    # 1. Each claim present, known, and of its type; the steps below skip what is not, so it is named once.
    good = _check_form(claims, values, checks)

    def compare(name: str, expected: Any, code: Code, source: str) -> None:
        if name in good:
            same = type(good[name]) is type(expected) and good[name] == expected
            detail = (
                f"{name} as expected" if same else f"{name} is {_show(good[name])}, not {_show(expected)}"
            )
            checks.append(Check(code, same, detail, source))

    # 2. The composite hash over all claims as sent.
    if "composite_hash" in good:
        try:
            composite = composite_hash(claims)
        except CanonicalError:
            composite = ""
        compare("composite_hash", composite, Code.COMPOSITE_HASH_MISMATCH, "broker")
    # 3. Freshness, by the broker's clock only.
    compare("eat_nonce", challenge["nonce"], Code.NONCE_MISMATCH, "broker")
    _check_freshness(good, policy, challenge, checks)
    # 4. The launch token that came back is the one issued for this launch, and the key the one it was for.
    _check_launch_token(reference, challenge, checks)
    _check_event_key(good, challenge, checks)
    # 5. Reference values.
    for name, code in _REFERENCE_CODES.items():
        expected = getattr(reference, name)
        if expected is not None:
            compare(name, expected, code, reference.sources.get(name, "controller-observed"))
    if reference.gpu_name is not None and "gpu" in good:
        names = good["gpu"].get("names", [])
        same = bool(names) and all(name == reference.gpu_name for name in names)
        detail = "gpu as expected" if same else f"gpu is {_show(names)}, not {_show(reference.gpu_name)}"
        checks.append(
            Check(Code.GPU_MISMATCH, same, detail, reference.sources.get("gpu", "provider-declared"))
        )
    # 6. Values that are the same for every run.
    for name, (expected, code) in _FIXED.items():
        compare(name, expected, code, "self-reported")
    if "kem_key" in good:
        usable = is_kem_key(good["kem_key"])
        detail = "kem_key can be wrapped to" if usable else "kem_key is no X-Wing public key"
        checks.append(Check(Code.KEM_KEY_INVALID, usable, detail, "self-reported"))
    # 7. What the policy demands.
    weak = _check_policy(good, reference, policy, checks)
    ok = all(check.ok for check in checks)
    return Appraisal(tuple(checks), ok, _ear_claims(checks, weak, reference, policy, str(challenge["nonce"])))


def refusal(
    codes: tuple[str, ...], reference: Reference, policy: Policy, challenge: Mapping[str, Any]
) -> Appraisal:
    """The appraisal of evidence that could not be read or was not signed by its own key."""
    checks = tuple(Check(code, False, "refused before its claims were read", "broker") for code in codes)
    return Appraisal(checks, False, _ear_claims(checks, [], reference, policy, str(challenge["nonce"])))


def _flatten(claims: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(claims)
    hardening = claims.get("hardening")
    if isinstance(hardening, Mapping):
        values.update({f"hardening.{name}": value for name, value in hardening.items()})
    return values


def _check_form(claims: Mapping[str, Any], values: dict[str, Any], checks: list[Check]) -> dict[str, Any]:
    good: dict[str, Any] = {}
    # A dotted name at the top level would pass for a nested one.
    unknown = sorted((set(values) - set(CLAIMS)) | {name for name in claims if "." in name})
    checks += [Check(Code.CLAIM_UNKNOWN, False, f"unknown claim {_show(name)}", "broker") for name in unknown]
    for name, is_type in CLAIMS.items():
        if name not in values:
            checks.append(Check(Code.CLAIM_MISSING, False, f"no claim {name}", "broker"))
        elif not is_type(values[name]):
            checks.append(Check(Code.CLAIM_MALFORMED, False, f"claim {name} is not of its type", "broker"))
        else:
            good[name] = values[name]
    if not unknown and len(good) == len(CLAIMS):
        checks.append(
            Check(Code.CLAIM_MALFORMED, True, f"all {len(CLAIMS)} claims present and of their type", "broker")
        )
    return good


def _check_freshness(
    good: Mapping[str, Any], policy: Policy, challenge: Mapping[str, Any], checks: list[Check]
) -> None:
    received = challenge["received"]
    in_time = received < challenge["exp"]
    detail = "within the challenge's lifetime" if in_time else "evidence came after the challenge expired"
    checks.append(Check(Code.CHALLENGE_EXPIRED, in_time, detail, "broker"))
    if "iat" not in good:
        return
    iat = good["iat"]
    fresh = iat >= challenge["iat"] and received - iat <= policy.freshness_sec
    detail = "iat is fresh" if fresh else f"iat is {received - iat} s old, or before its challenge"
    checks.append(Check(Code.STALE_TIMESTAMP, fresh, detail, "broker"))
    reached = iat <= received + MAX_AHEAD_SEC
    detail = "iat is not ahead" if reached else f"iat is {iat - received} s ahead"
    checks.append(Check(Code.FUTURE_TIMESTAMP, reached, detail, "broker"))


def _check_launch_token(reference: Reference, challenge: Mapping[str, Any], checks: list[Check]) -> None:
    launch = challenge["launch"]
    bound = {
        "run": reference.run,
        "leg": reference.leg,
        "launch": reference.launch,
        "allocation_id": reference.allocation_id,
        "manifest_hash": reference.manifest_hash,
        "nonce": challenge["nonce"],
        "cnf": challenge["cnf"],
    }
    if launch is None:
        wrong = ["signature"]
    else:
        wrong = [name for name, value in bound.items() if launch.get(name) != value]
    detail = f"launch token differs in {', '.join(wrong)}" if wrong else "launch token is the one issued"
    checks.append(Check(Code.JWT_CLAIM_MISMATCH, not wrong, detail, "broker"))


def _check_event_key(good: Mapping[str, Any], challenge: Mapping[str, Any], checks: list[Check]) -> None:
    # A broker names the key in every challenge that it signs. One without comes from a recorded exchange of
    # before it did, and is appraised as it was then: no part of a record but the challenge itself says which
    # protocol it was, and nobody else can have taken the claim out of what the broker signed.
    if challenge["cnf"] is None or "event_key" not in good:
        return
    same = challenge["cnf"] == {"jkt": thumbprint(b64u_decode(good["event_key"]))}
    detail = "event_key is the one that asked" if same else "event_key is not the one that asked"
    checks.append(Check(Code.EVENT_KEY_MISMATCH, same, detail, "broker"))


def _check_policy(
    good: Mapping[str, Any], reference: Reference, policy: Policy, checks: list[Check]
) -> list[str]:
    """Append the policy's checks; return what is weaker than we can do, for status `warning`."""
    weak: list[str] = []

    def require(code: Code, ok: bool, detail: str, source: str = "self-reported") -> None:
        checks.append(Check(code, ok, detail if not ok else f"{detail}: no", source))

    if "anti_debug_profile" in good:
        claimed, demanded = good["anti_debug_profile"], policy.anti_debug_profile
        rank = _PROFILES.index(claimed) if claimed in _PROFILES else -1
        downgrade = rank < _PROFILES.index(demanded)
        require(Code.ANTI_DEBUG_PROFILE_DOWNGRADE, not downgrade, f"profile below {demanded}")
        if not downgrade:
            # The launch was started with the policy's profile; another one is another launch.
            require(Code.ANTI_DEBUG_PROFILE_MISMATCH, claimed == demanded, f"profile is not {demanded}")
    if "fs" in good:
        landlock = good["fs"] == "landlock"
        if good["fs"] not in ("landlock", "none"):
            require(Code.CLAIM_MALFORMED, False, "claim fs is neither landlock nor none", "broker")
        elif policy.require_landlock:
            require(Code.LANDLOCK_MISSING, landlock, "no landlock")
        elif not landlock:
            weak.append("no landlock")
        if landlock and "hardening.landlock_abi" in good:
            consistent = good["hardening.landlock_abi"] >= 1
            require(Code.LANDLOCK_CLAIM_INCONSISTENT, consistent, "landlock without an ABI")
    if "hardening.memfd_secret" in good:
        if policy.require_memfd_secret:
            require(Code.MEMFD_SECRET_MISSING, good["hardening.memfd_secret"], "no memfd_secret")
        elif not good["hardening.memfd_secret"]:
            weak.append("no memfd_secret")
    if policy.require_distributions:
        listed = reference.distributions_sha256 is not None
        source = reference.sources.get("distributions_sha256", "controller-observed")
        require(
            Code.DISTRIBUTIONS_NOT_LISTED, listed, "installed distributions not listed beforehand", source
        )
    first_use = reference.host_key_source not in ("created", "pinned", "provider-log")
    if not policy.allow_host_key_first_use:
        source = reference.sources.get("host_key_source", "controller-observed")
        require(Code.HOST_KEY_FIRST_USE, not first_use, "host key trusted on first use", source)
    elif first_use:
        weak.append("host key trusted on first use")
    return weak


def policy_id(policy: Policy) -> str:
    """URI of a policy: its name and a digest of everything it demands."""
    demands = policy.model_dump(mode="json")
    if not policy.require_distributions:
        # Younger than results that are recorded, and appraised again by their verifiers: their ids stay.
        del demands["require_distributions"]
    digest = sha256_hex(canonical_json(demands))
    return f"tag:glasshouse,2026:policy/{policy.name}#{digest[:16]}"


def _ear_claims(
    checks: tuple[Check, ...] | list[Check],
    weak: list[str],
    reference: Reference,
    policy: Policy,
    nonce: str,
) -> dict[str, Any]:
    failed = list(dict.fromkeys(check.code for check in checks if not check.ok))
    # AR4SI tiers: 0 no claim, 2 affirming, 32 warning, 96 contraindicated, 97 instance not recognised.
    vector = {
        "instance-identity": 97 if set(failed) - _CONFIGURATION - _EXECUTABLES else 2,
        "configuration": 96 if set(failed) & _CONFIGURATION else 32 if weak else 2,
        "executables": 96 if set(failed) & _EXECUTABLES else 2,
        "file-system": 0,
        "hardware": 0,  # there is no hardware root of trust here, and no policy can claim one
        "runtime-opaque": 0,
        "storage-opaque": 0,
        "sourced-data": 0,
    }
    worst = max(vector.values())
    status = "contraindicated" if worst >= 96 else "warning" if worst >= 32 else "affirming"
    return {
        "eat_profile": EAR_PROFILE,
        "eat_nonce": nonce,
        "ear.verifier-id": {"developer": "glasshouse", "build": f"glasshouse {__version__}"},
        "submods": {
            "runtime": {
                "ear.status": status,
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": policy_id(policy),
                "ear.glasshouse.reason-codes": failed,
                "ear.glasshouse.weaknesses": weak,
            }
        },
        "ear.glasshouse.run": reference.run,
        "ear.glasshouse.leg": reference.leg,
        "ear.glasshouse.launch": reference.launch,
    }


def _show(value: Any) -> str:
    return repr(value)[:80]
