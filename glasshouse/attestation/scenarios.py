"""The tamper suite's scenarios: the nine published ones, then what else an attacker could try.

Each names the exact reason codes of its refusal. A scenario refused with one code too many has changed two
things, and then nobody knows which of them was caught.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation import attacks as a
from glasshouse.attestation.http_message import MAX_BODY_BYTES
from glasshouse.attestation.stage import GPU, STRICT, Attack, Scenario
from glasshouse.attestation.tokens import EAR_TYP, GRANT_TYP, public_bytes_of
from glasshouse.canonical import b64u, sha256_hex
from glasshouse.codes import Code

_OTHER = sha256_hex(b"another")


def _case(code: str, what: str, attack: Attack, *codes: str, **setup: Any) -> Scenario:
    return Scenario(code, what, tuple(map(Code, codes or (code,))), attack, setup)


def _new_public_key() -> str:
    return b64u(public_bytes_of(Ed25519PrivateKey.generate()))


PUBLISHED = (
    _case(
        "composite-hash-mismatch",
        "the composite hash is not that of the claims",
        a.set_claims(composite_hash=_OTHER),
    ),
    _case(
        "manifest-hash-mismatch", "another package than the one sealed", a.set_claims(manifest_hash=_OTHER)
    ),
    _case("container-id-mismatch", "evidence from another container", a.set_claims(container_id=_OTHER)),
    _case(
        "stale-timestamp",
        "evidence dated an hour before its challenge",
        a.change_claims(lambda claims: claims.update(iat=claims["iat"] - 3600)),
    ),
    _case("anti-debug-disabled", "a runtime that can be dumped and attached to", a.set_hardening(dumpable=1)),
    _case(
        "runtime-state-spoofed",
        "a runtime that says it is past release",
        a.set_claims(runtime_state="zeroized"),
    ),
    _case(
        "anti-debug-profile-downgrade",
        "profile standard where the policy demands strict",
        a.set_claims(anti_debug_profile="standard"),
    ),
    _case("nonce-replay", "the control's evidence once more", a.replay),
    _case("jwt-claim-mismatch", "the launch token of another launch", a.other_launch_token),
)

CLAIMS = (
    _case("run-mismatch", "evidence for another run", a.set_claims(run="another")),
    _case("leg-mismatch", "evidence for another leg", a.set_claims(leg="s001")),
    _case("launch-mismatch", "evidence for another launch", a.set_claims(launch=2)),
    _case("allocation-id-mismatch", "another rented machine", a.set_claims(allocation_id="another")),
    _case("runtime-hash-mismatch", "another runtime archive", a.set_claims(runtime_sha256=_OTHER)),
    _case("interpreter-hash-mismatch", "another interpreter", a.set_claims(interpreter_sha256=_OTHER)),
    _case("interpreter-not-isolated", "an interpreter without -I", a.set_claims(interpreter_isolated=False)),
    _case("boot-id-mismatch", "the machine was booted again, or is another", a.set_claims(boot_id="another")),
    _case("pid-namespace-mismatch", "another pid namespace", a.set_claims(pid_namespace="pid:[1]")),
    _case(
        "python-version-mismatch",
        "another Python",
        a.set_claims(python_version="3.99.0"),
        python_version="3.11.7",
    ),
    _case(
        "distributions-mismatch",
        "a package that was not installed when the controller looked",
        a.set_claims(distributions_sha256=_OTHER),
        distributions_sha256=sha256_hex(b"distributions"),
    ),
    _case(
        "distributions-not-listed",
        "packages that nobody listed beforehand, under policy strict",
        a.set_claims(),
        policy=STRICT.model_copy(update={"require_distributions": True}),
    ),
    _case(
        "anti-debug-profile-mismatch",
        "another profile than the launch was given, though a stronger one",
        a.set_claims(anti_debug_profile="strict"),
        policy=STRICT.model_copy(update={"anti_debug_profile": "standard"}),
    ),
    _case("image-digest-mismatch", "another image", a.set_claims(image_digest="sha256:" + _OTHER)),
    _case(
        "gpu-mismatch",
        "a slice of the GPU that was rented",
        a.set_claims(gpu={"names": [f"{GPU} MIG 1g.10gb"], "uuids": ["MIG-0"], "driver": "580.00"}),
    ),
    _case("core-dumps-enabled", "core dumps are on", a.set_hardening(core_limit=-1)),
    _case("no-new-privs-missing", "setuid programs still work", a.set_hardening(no_new_privs=False)),
    _case("debugger-attached", "a debugger is attached", a.set_hardening(tracer_pid=4711)),
    _case("subreaper-missing", "orphans escape the supervisor", a.set_hardening(subreaper=False)),
    _case("landlock-missing", "no Landlock under policy strict", a.set_claims(fs="none")),
    _case("landlock-claim-inconsistent", "Landlock without an ABI", a.set_hardening(landlock_abi=0)),
    _case("memfd-secret-missing", "no memfd_secret under policy strict", a.set_hardening(memfd_secret=False)),
    _case(
        "host-key-first-use",
        "the pod's host key was trusted on first use, under policy strict",
        a.set_claims(),
        host_key="first-use",
    ),
    _case(
        "future-timestamp",
        "evidence dated an hour ahead",
        a.change_claims(lambda claims: claims.update(iat=claims["iat"] + 3600)),
    ),
    _case("challenge-expired", "evidence after the challenge expired", a.late_evidence),
    _case("eat-profile-mismatch", "another evidence profile", a.set_claims(eat_profile="tag:other")),
    _case("claim-missing", "a claim left out", a.change_claims(lambda claims: claims.pop("boot_id"))),
    _case("claim-unknown", "a claim too many", a.set_claims(hardware="genuine")),
    _case("claim-malformed", "a claim of another type", a.set_claims(launch=True)),
    _case(
        "hidden-claim",
        "a nested claim shadowed by one with a dotted name",
        a.set_claims(**{"hardening.dumpable": 0}),
        "claim-unknown",
    ),
    _case("event-key-mismatch", "evidence signed by another key than the one that asked", a.other_event_key),
    _case("kem-key-invalid", "a KEM key that is no key", a.set_claims(kem_key=b64u(b"\xff" * 1216))),
    _case("nonce-unknown", "a nonce nobody issued", a.other_nonce),
    _case(
        "evidence-relayed",
        "honest evidence of another pod, for our challenge",
        a.other_evidence,
        "run-mismatch",
        "allocation-id-mismatch",
        "container-id-mismatch",
        "manifest-hash-mismatch",
        "boot-id-mismatch",
    ),
)

SIGNATURES = (
    _case("algorithm-none", "alg none", a.with_header(alg="none"), "algorithm-not-allowed"),
    _case(
        "algorithm-confusion",
        "HS256 keyed with the public key",
        a.forge_jws(a.hs256),
        "algorithm-not-allowed",
    ),
    _case("algorithm-es256", "alg ES256", a.with_header(alg="ES256"), "algorithm-not-allowed"),
    _case("key-id-confusion", "the key id of another key", a.with_header(kid=_OTHER), "key-id-mismatch"),
    _case("key-id-path", "a key id that is a path", a.with_header(kid="../../dev/null"), "key-id-mismatch"),
    _case(
        "token-type-confusion", "evidence typed as an EAR", a.with_header(typ=EAR_TYP), "token-type-mismatch"
    ),
    _case("embedded-key", "a token that brings its own key", a.forge_jws(a.embedded_key), "forbidden-header"),
    _case(
        "key-url",
        "a token that says where its key is",
        a.with_header(jku="http://127.0.0.1/"),
        "forbidden-header",
    ),
    _case(
        "critical-header", "a critical extension", a.with_header(crit=["b64"], b64=False), "forbidden-header"
    ),
    _case(
        "event-key-substitution",
        "the event key exchanged in transit",
        a.unsigned_change("event_key", _new_public_key),
        "evidence-signature-invalid",
    ),
    _case(
        "kem-key-substitution",
        "the KEM key exchanged in transit: the grant would open for a stranger",
        a.unsigned_change("kem_key", lambda: b64u(b"\x01" * 1216)),
        "evidence-signature-invalid",
    ),
    _case("duplicate-claim", "a claim named twice", a.forge_jws(a.duplicate_claim), "malformed-evidence"),
    _case("deep-claim", "500 nested arrays", a.forge_jws(a.deep_claim), "malformed-evidence"),
    _case("oversized-evidence", "30 KB of padding", a.oversized_evidence, "malformed-evidence"),
    _case("forged-launch-token", "a launch token of our own", a.forged_launch_token, "jwt-claim-mismatch"),
)

TICKETS = (
    _case(
        "ticket-in-clear", "the ticket itself instead of its signature", a.clear_ticket, "malformed-request"
    ),
    _case("ticket-unknown", "a request by a key of our own", a.forge_request(a.request_by_a_stranger)),
    _case("ticket-used", "the control's ticket once more", a.used_ticket),
    _case("ticket-stolen", "a ticket for another launch", a.stolen_ticket, "ticket-mismatch"),
    _case("request-replayed", "the same request twice", a.replayed_request, "ticket-used"),
    _case(
        "request-relayed",
        "a request passed on, its challenge answered by keys of our own",
        a.relayed_request,
        "event-key-mismatch",
    ),
    _case(
        "challenge-taken",
        "the same, in the name of the key that asked",
        a.relayed_challenge,
        "evidence-signature-invalid",
    ),
    _case(
        "request-event-key-substitution",
        "an event key of our own in a request that came by",
        a.forge_request(a.request_for_own_event_key),
        "request-signature-invalid",
    ),
    _case(
        "request-by-another-ticket",
        "a request signed by another launch's ticket",
        a.forge_request(a.request_by_another_ticket),
        "request-signature-invalid",
    ),
    _case("request-audience-mismatch", "a request for another broker", a.signed_request(aud=_OTHER)),
    _case("request-too-much", "a claim too many in a request", a.signed_request(iat=1), "malformed-request"),
    _case(
        "request-unsigned",
        "a request with alg none",
        a.forge_request(a.unsigned_request),
        "algorithm-not-allowed",
    ),
    _case(
        "request-type-confusion",
        "a request typed as evidence",
        a.forge_request(a.evidence_as_request),
        "token-type-mismatch",
    ),
    _case("ticket-expired", "a ticket of a quarter of an hour ago", a.late_ticket),
    _case("launch-superseded", "a ticket that a failed launch left behind", a.superseded(asked=False)),
    _case(
        "challenge-superseded",
        "a challenge that a failed launch left unanswered",
        a.superseded(asked=True),
        "launch-superseded",
    ),
    _case("ticket-store-mismatch", "a ticket of a restored backup", a.restored_ticket),
    _case("challenge-store-mismatch", "a challenge of a restored backup", a.restored_backup),
    _case("replay-after-restart", "spent evidence, after a restart", a.replay_after_restart, "nonce-replay"),
    _case("grant-limit-reached", "one grant more than the run was planned for", a.beyond_grant_limit),
)

REQUESTS = (
    _case("malformed-body", "a body that is no JSON", a.raw_body(b"{"), "malformed-request"),
    _case("missing-field", "no launch token", a.raw_body(b'{"evidence":"x"}'), "malformed-request"),
    _case("duplicate-json-keys", "a field named twice", a.duplicate_body, "malformed-request"),
    _case("not-a-number", "NaN in the body", a.raw_body(b'{"evidence":NaN}'), "malformed-request"),
    _case("body-too-large", "a body over the limit", a.raw_body(b" " * (MAX_BODY_BYTES + 1))),
    _case(
        "chunked-body",
        "a chunked body",
        a.raw_body(b"0\r\n\r\n", Transfer_Encoding="chunked", Content_Length=""),
        "length-required",
    ),
    _case("length-missing", "no Content-Length", a.raw_body(b"", Content_Length=""), "length-required"),
    _case("length-negative", "a negative length", a.raw_body(b"", Content_Length="-1"), "length-required"),
    _case(
        "cross-origin-form",
        "a form that a browser posts anywhere",
        a.raw_body(b"{}", Content_Type="text/plain"),
        "unsupported-media-type",
    ),
    _case("malformed-evidence", "evidence that is no JWS", a.raw_body(b'{"evidence":"x","launchToken":"x"}')),
)

ANSWERS = (
    _case("forged-challenge", "a challenge signed by a stranger", a.forged_challenge, "key-id-mismatch"),
    _case(
        "challenge-for-another-key",
        "a challenge that another key's evidence answers, shown to the client",
        a.foreign_challenge,
        "event-key-mismatch",
    ),
    _case(
        "forged-ear",
        "an EAR signed by a stranger",
        a.change_answer(lambda sent, _mine: replace(sent, ear=a.resigned(sent.ear, EAR_TYP))),
        "key-id-mismatch",
    ),
    _case(
        "forged-grant",
        "a grant signed by a stranger",
        a.change_answer(lambda sent, _mine: replace(sent, grant=a.resigned(sent.grant, GRANT_TYP))),
        "key-id-mismatch",
    ),
    _case(
        "broker-key-substitution",
        "the broker's key exchanged",
        a.change_answer(lambda sent, _mine: replace(sent, broker_public=bytes(32))),
        "key-id-mismatch",
    ),
    _case(
        "grant-as-ear",
        "a grant where the EAR belongs",
        a.change_answer(lambda sent, _mine: replace(sent, ear=sent.grant)),
        "token-type-mismatch",
    ),
    _case(
        "ear-mismatch",
        "the EAR of other evidence",
        a.change_answer(lambda sent, mine: replace(sent, evidence=mine.sign(mine.claims()))),
    ),
    _case(
        "grant-info-mismatch", "another challenge in the transcript", a.change_answer(a.another_transcript)
    ),
    _case("ear-expired", "an answer of an hour ago", a.shift_challenge(3600)),
    _case("ear-not-yet-valid", "an answer from the future", a.shift_challenge(-3600)),
)

SCENARIOS = PUBLISHED + CLAIMS + SIGNATURES + TICKETS + REQUESTS + ANSWERS
