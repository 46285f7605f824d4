"""Appraisal: every claim, one by one, mutated, removed and doubled, by an attacker who can sign."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glasshouse.attestation.appraise import (
    Answer,
    Appraisal,
    Reference,
    appraise,
    policy_id,
    refusal,
)
from glasshouse.attestation.claims import CLAIMS, SELF_REPORTED, claim_sources, is_kem_key
from glasshouse.attestation.evidence import composite_hash
from glasshouse.attestation.stage import STRICT, honest_claims, synthetic_reference
from glasshouse.attestation.tokens import Binding, Challenge, LaunchToken, Times, Token, thumbprint
from glasshouse.canonical import b64u, canonical_json
from glasshouse.errors import SealError
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes, wrap_key
from glasshouse.spec import Policy

NOW = 1_800_000_000
KEM = kem_public_bytes(generate_kem_key())
NONCE = b64u(b"\x05" * 32)
FULL = synthetic_reference("run", python_version="3.11.7", distributions_sha256="d" * 64)
STANDARD = Policy(
    name="standard",
    freshness_sec=60,
    require_landlock=False,
    require_memfd_secret=False,
    allow_host_key_first_use=True,
    anti_debug_profile="standard",
)


_AS_ISSUED: dict[str, Any] = {}


def _context(
    reference: Reference = FULL, *, launch: dict[str, Any] | None = _AS_ISSUED, **changed: Any
) -> Answer:
    """An honest exchange; `cnf` is the challenge's alone, `launch` holds what differs in the launch token."""
    token = Token("challenge", "", "store", Times(NOW, NOW, NOW + 60), {})
    honest = Binding(*reference.where, nonce=NONCE, cnf={"jkt": thumbprint(b"\x06" * 32)})
    asked = replace(honest, cnf=changed.get("cnf", honest.cnf))
    came = None
    if launch is not None:
        other = {"allocation_id": reference.allocation_id, "manifest_hash": reference.manifest_hash}
        other |= {name: value for name, value in launch.items() if name in other}
        bound = replace(honest, **{name: value for name, value in launch.items() if name not in other})
        came = LaunchToken(token, bound, **other)
    issued = LaunchToken(token, asked, reference.allocation_id, reference.manifest_hash)
    return Answer(Challenge(token, asked, NOW, issued), came, changed.get("received", NOW + 2))


def _honest(reference: Reference = FULL, policy: Policy = STRICT) -> dict[str, Any]:
    claims = honest_claims(reference, policy, nonce=NONCE, iat=NOW + 1, kem_key=KEM).to_json()
    claims.update(eat_profile="tag:glasshouse,2026:eat/v1", event_key=b64u(b"\x06" * 32))
    return _seal(claims)


def _seal(claims: dict[str, Any]) -> dict[str, Any]:
    """Recompute the composite hash, as an attacker on the pod can."""
    return {**claims, "composite_hash": composite_hash(claims)}


def _appraise(claims: dict[str, Any], **changed: Any) -> Appraisal:
    return appraise(claims, FULL, STRICT, _context(**changed))


# For each claim, another value of the right type, and the exact codes it is refused with.
MUTATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "eat_profile": ("tag:other", ("eat-profile-mismatch",)),
    "eat_nonce": (b64u(bytes(32)), ("nonce-mismatch",)),
    "iat": (NOW - 1, ("stale-timestamp",)),
    "run": ("other", ("run-mismatch",)),
    "leg": ("s001", ("leg-mismatch",)),
    "launch": (2, ("launch-mismatch",)),
    "allocation_id": ("other", ("allocation-id-mismatch",)),
    "container_id": ("0" * 64, ("container-id-mismatch",)),
    "manifest_hash": ("0" * 64, ("manifest-hash-mismatch",)),
    "runtime_sha256": ("0" * 64, ("runtime-hash-mismatch",)),
    "interpreter_sha256": ("0" * 64, ("interpreter-hash-mismatch",)),
    "interpreter_isolated": (False, ("interpreter-not-isolated",)),
    "python_version": ("3.11.8", ("python-version-mismatch",)),
    "distributions_sha256": ("0" * 64, ("distributions-mismatch",)),
    "boot_id": ("other", ("boot-id-mismatch",)),
    "pid_namespace": ("pid:[1]", ("pid-namespace-mismatch",)),
    "image_digest": ("", ("image-digest-mismatch",)),
    "runtime_state": ("released", ("runtime-state-spoofed",)),
    "anti_debug_profile": ("standard", ("anti-debug-profile-downgrade",)),
    "hardening": ({}, ("claim-missing",)),
    "hardening.dumpable": (1, ("anti-debug-disabled",)),
    "hardening.core_limit": (-1, ("core-dumps-enabled",)),
    "hardening.no_new_privs": (False, ("no-new-privs-missing",)),
    "hardening.tracer_pid": (1, ("debugger-attached",)),
    "hardening.landlock_abi": (0, ("landlock-claim-inconsistent",)),
    "hardening.memfd_secret": (False, ("memfd-secret-missing",)),
    "hardening.subreaper": (False, ("subreaper-missing",)),
    "fs": ("none", ("landlock-missing",)),
    "gpu": ({"names": ["other"], "uuids": [], "driver": ""}, ("gpu-mismatch",)),
    "event_key": (b64u(b"\x07" * 32), ("event-key-mismatch",)),
    "composite_hash": ("0" * 64, ("composite-hash-mismatch",)),
}

# The documented exception: nothing to hold these against, so another well-formed value passes when the
# event key signs it. The KEM key is the attester's own choice; the event key says whose it is.
UNCONSTRAINED: dict[str, Any] = {
    "clock_skew_sec": 5000,
    "hardening.swap_total_kib": 1,
    "kem_key": b64u(b"\x07" * 1216),
}


def _with(claims: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(claims)
    outer, _, inner = name.partition(".")
    if inner:
        changed[outer][inner] = value
    else:
        changed[outer] = value
    return changed


def _without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    changed = copy.deepcopy(claims)
    outer, _, inner = name.partition(".")
    del (changed[outer] if inner else changed)[inner or outer]
    return changed


def test_honest_claims_are_affirmed() -> None:
    appraisal = _appraise(_honest())
    assert appraisal.codes == ()
    assert appraisal.ok
    assert appraisal.ear_claims["submods"]["runtime"]["ear.status"] == "affirming"


def test_every_claim_is_either_constrained_or_listed() -> None:
    assert set(MUTATIONS) | set(UNCONSTRAINED) == set(CLAIMS)
    assert not set(MUTATIONS) & set(UNCONSTRAINED)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_claim_is_refused_although_signed(name: str) -> None:
    value, codes = MUTATIONS[name]
    changed = _with(_honest(), name, value)
    if name != "composite_hash":
        changed = _seal(changed)
    assert _appraise(changed).codes == codes


@pytest.mark.parametrize("name", sorted(set(CLAIMS) - {"composite_hash"}))
def test_a_claim_changed_in_transit_breaks_the_composite(name: str) -> None:
    value = UNCONSTRAINED[name] if name in UNCONSTRAINED else MUTATIONS[name][0]
    assert "composite-hash-mismatch" in _appraise(_with(_honest(), name, value)).codes


@pytest.mark.parametrize("name", UNCONSTRAINED)
def test_the_documented_exceptions_pass_when_signed(name: str) -> None:
    assert _appraise(_seal(_with(_honest(), name, UNCONSTRAINED[name]))).ok


@pytest.mark.parametrize("name", CLAIMS)
def test_a_missing_claim_is_refused(name: str) -> None:
    changed = _without(_honest(), name)
    if name != "composite_hash":
        changed = _seal(changed)
    assert _appraise(changed).codes == ("claim-missing",)


@pytest.mark.parametrize("where", ["", "hardening."])
def test_an_unknown_claim_is_refused(where: str) -> None:
    assert _appraise(_seal(_with(_honest(), f"{where}tdx_quote", "x"))).codes == ("claim-unknown",)


def test_a_dotted_claim_does_not_stand_in_for_a_nested_one() -> None:
    claims = _without(_honest(), "hardening.dumpable")
    assert _appraise(_seal({**claims, "hardening.dumpable": 0})).codes == ("claim-unknown",)


def _of_another_type() -> list[tuple[str, object]]:
    honest = _honest()
    pairs = []
    for name in CLAIMS:
        current = honest["hardening"][name[10:]] if name.startswith("hardening.") else honest[name]
        values: list[object] = [None, [], "\n", True, 7, {"a": 1}]
        pairs += [(name, value) for value in values if type(value) is not type(current)]
    return pairs


@pytest.mark.parametrize(("name", "value"), _of_another_type())
def test_a_claim_of_another_type_is_refused(name: str, value: object) -> None:
    changed = _with(_honest(), name, value)
    if name != "composite_hash":
        changed = _seal(changed)
    assert "claim-malformed" in _appraise(changed).codes


@pytest.mark.parametrize("value", [1.0, 1e3])
def test_a_float_claim_is_refused(value: float) -> None:
    codes = _appraise({**_honest(), "launch": value}).codes
    assert codes == ("claim-malformed", "composite-hash-mismatch")


def test_every_failed_check_is_listed() -> None:
    claims = {**_honest(), "run": "x", "boot_id": "x", "fs": "none", "iat": NOW + 3600}
    codes = _appraise(_seal(claims)).codes
    assert codes == ("future-timestamp", "run-mismatch", "boot-id-mismatch", "landlock-missing")


@pytest.mark.parametrize("name", ["run", "leg", "launch", "allocation_id", "manifest_hash", "nonce", "cnf"])
def test_a_launch_token_that_differs_is_refused(name: str) -> None:
    appraisal = appraise(_honest(), FULL, STRICT, _context(launch={name: "other"}))
    assert appraisal.codes == ("jwt-claim-mismatch",)
    assert any(name in check.detail for check in appraisal.checks if not check.ok)


def test_a_launch_token_that_did_not_verify_is_refused() -> None:
    assert _appraise(_honest(), launch=None).codes == ("jwt-claim-mismatch",)


@pytest.mark.parametrize(
    ("iat", "received", "codes"),
    [
        (NOW, NOW, ()),
        (NOW + 59, NOW + 59, ()),
        (NOW, NOW + 59, ()),
        (NOW + 2, NOW, ()),
        (NOW + 3, NOW, ("future-timestamp",)),
        (NOW - 1, NOW, ("stale-timestamp",)),
        (NOW + 60, NOW + 60, ("challenge-expired",)),
        (NOW, NOW + 61, ("challenge-expired", "stale-timestamp")),
    ],
)
def test_freshness_is_by_the_brokers_clock(iat: int, received: int, codes: tuple[str, ...]) -> None:
    claims = _seal({**_honest(), "iat": iat, "clock_skew_sec": 86_400})
    assert _appraise(claims, received=received).codes == codes


@pytest.mark.parametrize("source", ["created", "pinned", "provider-log", "first-use", "unheard-of"])
def test_host_key_source(source: str) -> None:
    reference = synthetic_reference("run", host_key=source)
    known = source in ("created", "pinned", "provider-log")
    strict = appraise(_honest(reference), reference, STRICT, _context(reference))
    assert strict.codes == (() if known else ("host-key-first-use",))
    relaxed = appraise(_honest(reference, STANDARD), reference, STANDARD, _context(reference))
    assert relaxed.ok
    status = relaxed.ear_claims["submods"]["runtime"]["ear.status"]
    assert status == ("affirming" if known else "warning")


@pytest.mark.parametrize(("name", "value"), [("fs", "none"), ("hardening.memfd_secret", False)])
def test_policy_standard_warns_where_strict_refuses(name: str, value: object) -> None:
    claims = _seal(_with(_honest(FULL, STANDARD), name, value))
    appraisal = appraise(claims, FULL, STANDARD, _context())
    assert appraisal.ok
    assert appraisal.ear_claims["submods"]["runtime"]["ear.status"] == "warning"


def test_a_stronger_profile_than_demanded_is_another_launch() -> None:
    claims = _seal({**_honest(FULL, STANDARD), "anti_debug_profile": "strict"})
    assert appraise(claims, FULL, STANDARD, _context()).codes == ("anti-debug-profile-mismatch",)


@pytest.mark.parametrize("profile", ["", "STRICT", "none"])
def test_an_unknown_profile_is_a_downgrade(profile: str) -> None:
    for policy in (STRICT, STANDARD):
        claims = _seal({**_honest(FULL, policy), "anti_debug_profile": profile})
        assert appraise(claims, FULL, policy, _context()).codes == ("anti-debug-profile-downgrade",)


@pytest.mark.parametrize("gpu", [{}, {"names": [], "uuids": [], "driver": ""}])
def test_a_rented_gpu_must_be_there(gpu: dict[str, Any]) -> None:
    assert _appraise(_seal({**_honest(), "gpu": gpu})).codes == ("gpu-mismatch",)


def test_one_wrong_gpu_of_many_is_refused() -> None:
    names = [FULL.gpu_name, "NVIDIA RTX A4000"]
    claims = {**_honest(), "gpu": {"names": names, "uuids": [], "driver": ""}}
    assert _appraise(_seal(claims)).codes == ("gpu-mismatch",)


@pytest.mark.parametrize(
    "kem_key",
    [
        b"\xff" * 1216,  # coefficients of q and more: FIPS 203 section 7.2
        KEM[:1184] + bytes(32),  # the X25519 points of low order (RFC 7748 section 6.1)
        KEM[:1184] + b"\x01" + bytes(31),
        KEM[:1184] + bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        KEM[:1184] + bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_a_kem_key_that_cannot_be_wrapped_to_is_refused_before_any_key_is_opened(kem_key: bytes) -> None:
    with pytest.raises(SealError):
        wrap_key(b"\x01" * 32, kem_key, b"info")
    assert _appraise(_seal({**_honest(), "kem_key": b64u(kem_key)})).codes == ("kem-key-invalid",)


@given(place=st.integers(0, 767), coefficient=st.integers(0, 4095), seed=st.binary(min_size=32, max_size=32))
@example(place=0, coefficient=3328, seed=bytes(32))
@example(place=767, coefficient=3329, seed=bytes(32))
def test_the_check_of_an_encapsulation_key_is_the_librarys(place: int, coefficient: int, seed: bytes) -> None:
    packed = bytearray(KEM[:1152])
    at = 3 * (place // 2)
    pair = int.from_bytes(packed[at : at + 3], "little")
    pair = pair & ~(0xFFF << 12 * (place % 2)) | coefficient << 12 * (place % 2)
    packed[at : at + 3] = pair.to_bytes(3, "little")
    raw = bytes(packed) + seed
    try:
        MLKEM768PublicKey.from_public_bytes(raw)
        accepted = True
    except ValueError:
        accepted = False
    assert is_kem_key(b64u(raw + KEM[1184:])) is accepted is (coefficient < 3329)


@pytest.mark.parametrize("size", [0, 1184, 1215, 1217, 2432])
def test_a_kem_key_of_another_length_is_none(size: int) -> None:
    assert not is_kem_key(b64u((KEM * 2)[:size]))


@pytest.mark.parametrize("policy", [STRICT, STANDARD])
@pytest.mark.parametrize("name", [None, *MUTATIONS])
def test_hardware_is_never_claimed(policy: Policy, name: str | None) -> None:
    claims = _honest(FULL, policy)
    if name is not None:
        claims = _with(claims, name, MUTATIONS[name][0])
    for appraisal in (
        appraise(claims, FULL, policy, _context()),
        refusal(("malformed-evidence",), FULL, policy, _context()),
    ):
        vector = appraisal.ear_claims["submods"]["runtime"]["ear.trustworthiness-vector"]
        assert vector["hardware"] == 0
        assert vector["runtime-opaque"] == 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_refusal_is_contraindicated_and_holds_no_grant(name: str) -> None:
    ear = _appraise(_seal(_with(_honest(), name, MUTATIONS[name][0]))).ear_claims
    runtime = ear["submods"]["runtime"]
    if name != "composite_hash":
        assert runtime["ear.status"] == "contraindicated"
        assert max(runtime["ear.trustworthiness-vector"].values()) >= 96
    assert set(ear) == {
        "eat_profile",
        "eat_nonce",
        "ear.verifier-id",
        "submods",
        "ear.glasshouse.run",
        "ear.glasshouse.leg",
        "ear.glasshouse.launch",
    }
    canonical_json(ear, floats=False)


def test_sources_name_every_claim() -> None:
    sources = claim_sources(FULL)
    assert set(sources) == set(CLAIMS)
    assert sources["allocation_id"] == "provider-declared"
    assert sources["boot_id"] == "controller-observed"
    assert sources["python_version"] == "controller-observed"
    bare = claim_sources(synthetic_reference("run", gpu_name=None))
    assert {name for name in SELF_REPORTED if bare[name] != "self-reported"} == set()
    for check in _appraise(_honest()).checks:
        assert check.source in {"controller-observed", "provider-declared", "self-reported", "broker"}


def test_reference_survives_json() -> None:
    assert Reference.from_dict(FULL.to_dict()) == FULL


def test_policy_id_changes_with_what_is_demanded() -> None:
    relaxed = STRICT.model_copy(update={"require_landlock": False})
    assert policy_id(STRICT) != policy_id(relaxed)


def test_a_policy_that_results_were_recorded_under_keeps_its_id() -> None:
    """A demand that is younger than it and that it does not make is not in it."""
    assert policy_id(STRICT) == "tag:glasshouse,2026:policy/strict#90d3e9d49b429a0e"
    for younger in (
        "require_distributions",
        "require_confined_reads",
        "refuse_execs",
        "require_witnessed_checkpoints",
    ):
        assert policy_id(STRICT.model_copy(update={younger: True})) != policy_id(STRICT)


@pytest.mark.parametrize(
    ("reference", "demanded", "codes"),
    [
        (FULL, True, ()),
        (synthetic_reference("run"), True, ("distributions-not-listed",)),
        (synthetic_reference("run"), False, ()),
    ],
)
def test_what_is_installed_may_have_to_be_listed_beforehand(
    reference: Reference, demanded: bool, codes: tuple[str, ...]
) -> None:
    policy = STRICT.model_copy(update={"require_distributions": demanded})
    appraisal = appraise(_honest(reference, policy), reference, policy, _context(reference))
    assert appraisal.codes == codes
    executables = appraisal.ear_claims["submods"]["runtime"]["ear.trustworthiness-vector"]["executables"]
    assert executables == (96 if codes else 2)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(CLAIMS)) | st.text(max_size=4), _JSON, max_size=5))
def test_appraisal_is_total(changes: dict[str, Any]) -> None:
    """No claim, whatever it holds, makes the Verifier fall over: it answers, and says no."""
    claims = {**_honest(), **changes}
    appraisal = _appraise(claims)
    assert appraisal.ok == (canonical(claims) == canonical(_honest()))
    assert appraisal.ok == (not appraisal.codes)


def canonical(claims: dict[str, Any]) -> object:
    return repr(sorted(claims.items()))
