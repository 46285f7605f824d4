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
from glasshouse.attestation.claims import CLAIMS, FIXED, REFERENCED, Reference, is_kem_key
from glasshouse.attestation.evidence import composite_hash
from glasshouse.attestation.tokens import Challenge, LaunchToken, thumbprint
from glasshouse.canonical import CanonicalError, b64u_decode, canonical_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.spec import Policy

__all__ = ["Answer", "Appraisal", "ClaimCheck", "Reference", "appraise", "policy_id", "refusal"]

# The profile whose claim names (`ear.status`, ...) the results use; its consumers read them as they are.
EAR_PROFILE = "tag:github.com,2023:veraison/ear"
MAX_AHEAD_SEC = 2  # the broker's own clock may be slewed between challenge and evidence


@dataclass(frozen=True)
class ClaimCheck:
    """One check: its reason code when it fails; `source` is where the value compared with came from."""

    code: str
    ok: bool
    detail: str
    source: str


@dataclass(frozen=True)
class Appraisal:
    """Every check made, and the claims of the EAR that says so (no grant fields in them)."""

    checks: tuple[ClaimCheck, ...]
    ok: bool
    ear_claims: dict[str, Any]

    @property
    def codes(self) -> tuple[str, ...]:
        """Reason codes of the failed checks, each once, in the order of the checks."""
        return tuple(dict.fromkeys(check.code for check in self.checks if not check.ok))


_PROFILES = ("standard", "strict")  # weakest first

# Reason codes of what the policy demands, beside those that the claims declare. AR4SI trustworthiness claims
# that a failed check contraindicates; all others touch instance-identity.
_CONFIGURATION = frozenset(
    {
        Code.ANTI_DEBUG_PROFILE_DOWNGRADE,
        Code.ANTI_DEBUG_PROFILE_MISMATCH,
        Code.LANDLOCK_MISSING,
        Code.LANDLOCK_CLAIM_INCONSISTENT,
        Code.MEMFD_SECRET_MISSING,
        Code.HOST_KEY_FIRST_USE,
        *(claim.code for claim in CLAIMS.values() if claim.part == "configuration"),
    }
)
_EXECUTABLES = frozenset(
    {
        Code.DISTRIBUTIONS_NOT_LISTED,
        *(claim.code for claim in CLAIMS.values() if claim.part == "executables"),
    }
)


@dataclass(frozen=True)
class Answer:
    """What evidence answers, and with what it came back.

    launch: the launch token that came with it (None: it did not verify); received: when it came, Unix s.
    """

    challenge: Challenge
    launch: LaunchToken | None
    received: int


def appraise(claims: Mapping[str, Any], reference: Reference, policy: Policy, answer: Answer) -> Appraisal:
    """Appraise parsed evidence claims. Never raises for JSON data.

    1. form, 2. composite hash, 3. freshness, 4. launch token and event key, 5. reference values, 6. fixed
    values, 7. policy. All seven always run.
    """
    # 1. Each claim present, known, and of its type; the steps below skip what is not, so it is named once.
    said = _Said(claims)
    nonce = answer.challenge.binding.nonce
    # 2. The composite hash over all claims as sent.
    if "composite_hash" in said.good:
        try:
            composite = composite_hash(claims)
        except CanonicalError:
            composite = ""
        said.compare("composite_hash", composite, "broker")
    # 3. Freshness, by the broker's clock only.
    said.compare("eat_nonce", nonce, "broker")
    _check_freshness(said, policy, answer)
    # 4. The launch token that came back is the one issued for this launch, and the key the one it was for.
    _check_launch_token(said, reference, answer)
    _check_event_key(said, answer.challenge)
    # 5. Reference values.
    for name in REFERENCED:
        expected = getattr(reference, name)
        if expected is not None:
            said.compare(name, expected, reference.source(name))
    _check_gpu(said, reference)
    # 6. Values that are the same for every run.
    for name in FIXED:
        said.compare(name, CLAIMS[name].must_be, "self-reported")
    if "kem_key" in said.good:
        usable = is_kem_key(said.good["kem_key"])
        detail = "kem_key can be wrapped to" if usable else "kem_key is no X-Wing public key"
        said.check(CLAIMS["kem_key"].code, usable, detail, "self-reported")
    # 7. What the policy demands.
    weak = _check_policy(said, reference, policy)
    ok = all(check.ok for check in said.checks)
    return Appraisal(tuple(said.checks), ok, _ear_claims(said.checks, weak, reference, policy, nonce))


def refusal(codes: tuple[str, ...], reference: Reference, policy: Policy, answer: Answer) -> Appraisal:
    """The appraisal of evidence that could not be read or was not signed by its own key."""
    checks = [ClaimCheck(code, False, "refused before its claims were read", "broker") for code in codes]
    ear = _ear_claims(checks, [], reference, policy, answer.challenge.binding.nonce)
    return Appraisal(tuple(checks), False, ear)


class _Said:
    """What evidence says: its claims of their declared types, by name, and the checks made so far."""

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self.checks: list[ClaimCheck] = []
        self.good: dict[str, Any] = {}
        values = dict(claims)
        hardening = claims.get("hardening")
        if isinstance(hardening, Mapping):
            values.update({f"hardening.{name}": value for name, value in hardening.items()})
        # A dotted name at the top level would pass for a nested one.
        unknown = sorted((set(values) - set(CLAIMS)) | {name for name in claims if "." in name})
        for name in unknown:
            self.check(Code.CLAIM_UNKNOWN, False, f"unknown claim {_show(name)}", "broker")
        for name, claim in CLAIMS.items():
            if name not in values:
                self.check(Code.CLAIM_MISSING, False, f"no claim {name}", "broker")
            elif not claim.is_type(values[name]):
                self.check(Code.CLAIM_MALFORMED, False, f"claim {name} is not of its type", "broker")
            else:
                self.good[name] = values[name]
        if not unknown and len(self.good) == len(CLAIMS):
            detail = f"all {len(CLAIMS)} claims present and of their type"
            self.check(Code.CLAIM_MALFORMED, True, detail, "broker")

    def check(self, code: str, ok: bool, detail: str, source: str) -> None:
        """Note a check."""
        self.checks.append(ClaimCheck(code, ok, detail, source))

    def compare(self, name: str, expected: object, source: str) -> None:
        """Hold a claim against the value that it must equal, of the same type, too."""
        if name in self.good:
            found = self.good[name]
            same = type(found) is type(expected) and found == expected
            detail = f"{name} as expected" if same else f"{name} is {_show(found)}, not {_show(expected)}"
            self.check(CLAIMS[name].code, same, detail, source)


def _check_gpu(said: _Said, reference: Reference) -> None:
    if reference.gpu_name is None or "gpu" not in said.good:
        return
    names = said.good["gpu"].get("names", [])
    same = bool(names) and all(name == reference.gpu_name for name in names)
    detail = "gpu as expected" if same else f"gpu is {_show(names)}, not {_show(reference.gpu_name)}"
    said.check(CLAIMS["gpu"].code, same, detail, reference.source("gpu"))


def _check_freshness(said: _Said, policy: Policy, answer: Answer) -> None:
    received, times = answer.received, answer.challenge.token.times
    in_time = received < times.exp
    detail = "within the challenge's lifetime" if in_time else "evidence came after the challenge expired"
    said.check(Code.CHALLENGE_EXPIRED, in_time, detail, "broker")
    if "iat" not in said.good:
        return
    iat = said.good["iat"]
    fresh = iat >= times.iat and received - iat <= policy.freshness_sec
    detail = "iat is fresh" if fresh else f"iat is {received - iat} s old, or before its challenge"
    said.check(Code.STALE_TIMESTAMP, fresh, detail, "broker")
    reached = iat <= received + MAX_AHEAD_SEC
    detail = "iat is not ahead" if reached else f"iat is {iat - received} s ahead"
    said.check(Code.FUTURE_TIMESTAMP, reached, detail, "broker")


def _check_launch_token(said: _Said, reference: Reference, answer: Answer) -> None:
    asked, launch = answer.challenge.binding, answer.launch
    if launch is None:
        wrong = ["signature"]
    else:
        found = launch.binding
        same = {
            "run": found.run == reference.run,
            "leg": found.leg == reference.leg,
            "launch": found.launch == reference.launch,
            "allocation_id": launch.allocation_id == reference.allocation_id,
            "manifest_hash": launch.manifest_hash == reference.manifest_hash,
            "nonce": found.nonce == asked.nonce,
            "cnf": found.cnf == asked.cnf,
        }
        wrong = [name for name, as_issued in same.items() if not as_issued]
    detail = f"launch token differs in {', '.join(wrong)}" if wrong else "launch token is the one issued"
    said.check(Code.JWT_CLAIM_MISMATCH, not wrong, detail, "broker")


def _check_event_key(said: _Said, challenge: Challenge) -> None:
    # A broker names the key in every challenge that it signs. One without comes from a recorded exchange of
    # before it did, and is appraised as it was then: no part of a record but the challenge itself says which
    # protocol it was, and nobody else can have taken the claim out of what the broker signed.
    named = challenge.binding.cnf
    if named is None or "event_key" not in said.good:
        return
    same = named == {"jkt": thumbprint(b64u_decode(said.good["event_key"]))}
    detail = "event_key is the one that asked" if same else "event_key is not the one that asked"
    said.check(CLAIMS["event_key"].code, same, detail, "broker")


def _check_policy(said: _Said, reference: Reference, policy: Policy) -> list[str]:
    """Append the policy's checks; return what is weaker than we can do, for status `warning`."""
    good, weak = said.good, list[str]()

    def require(code: str, ok: bool, detail: str, source: str = "self-reported") -> None:
        said.check(code, ok, detail if not ok else f"{detail}: no", source)

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
        source = reference.source("distributions_sha256")
        require(
            Code.DISTRIBUTIONS_NOT_LISTED, listed, "installed distributions not listed beforehand", source
        )
    vouched = reference.host_key_vouched
    if not policy.allow_host_key_first_use:
        told_by = reference.host_key_told_by
        require(Code.HOST_KEY_FIRST_USE, vouched, "host key trusted on first use", told_by)
    elif not vouched:
        weak.append("host key trusted on first use")
    return weak


def policy_id(policy: Policy) -> str:
    """URI of a policy: its name and a digest of everything it demands."""
    demands = policy.model_dump(mode="json")
    for younger in (
        "require_distributions",
        "require_confined_reads",
        "refuse_execs",
        "require_witnessed_checkpoints",
    ):
        # Than results that are recorded, and appraised again by their verifiers: their ids stay.
        if not demands[younger]:
            del demands[younger]
    digest = sha256_hex(canonical_json(demands))
    return f"tag:glasshouse,2026:policy/{policy.name}#{digest[:16]}"


def _ear_claims(
    checks: list[ClaimCheck],
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
