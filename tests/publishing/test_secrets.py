from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import b64u, canonical_json
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, artifact_bytes
from glasshouse.records.secrets import environment_secrets, require_clean, scan_file
from glasshouse.records.signing import sign_statement
from glasshouse.records.verify import VerifiedRow

# Made-up values of the right shape, one for each way in which a secret has been seen to leak.
CANARIES = [
    ("private-key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ("private-key", "-----BEGIN PRIVATE KEY-----\nMC4CAQ"),
    ("bearer-token", "Authorization: Bearer abcdef0123456789abcdef"),
    ("api-token", "rpa_ABCDEFGHIJKLMNOP0123456789"),
    ("api-token", "hf_abcdefghijklmnopqrstuvwx"),
    ("api-token", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
    ("api-token", "AKIAABCDEFGHIJKLMNOP"),
    ("tunnel-url", "https://brave-fox-12.ngrok-free.app/v1"),
    ("tunnel-url", "abc.trycloudflare.com"),
    ("tunnel-url", "x7k2-8000.proxy.runpod.net"),
    ("tunnel-url", "ssh4.vast.ai"),
    ("url-credentials", "postgresql://operator:hunter2@db/state"),
    ("private-path", "/root/.config/glasshouse/keys"),
    ("private-path", "could not open /home/ada/project/secret.py"),
    ("private-path", "C:\\Users\\ada"),
    ("private-path", "key=~/.ssh/id_ed25519"),
    ("ip-address", "connected to 203.0.113.9:40022"),
    ("ip-address", "203.0.113.9"),
    ("ip-address", "[2001:db8::1]:22"),
    ("host-and-port", "gpu-box.example.org:2222"),
    ("account", "ada@example.org"),
    ("account", "ada@sha256"),
    ("ssh-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMoxE1Zc8n"),
    ("credential", "api_key=0123456789abcdef"),
    ("credential", "password: correct-horse"),
    ("token", "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4eXoifQ.c2lnbmF0dXJl"),
]


@pytest.mark.parametrize(("code", "canary"), CANARIES)
def test_every_canary_is_found_and_its_field_named_but_never_its_value(code: str, canary: str) -> None:
    data = canonical_json({"a": [{"detail": f"x {canary} y"}]})
    found = scan_file("artifacts/x.json", data)
    assert (code, "artifacts/x.json.a[0].detail") in {(item.code, item.where) for item in found}
    with pytest.raises(VerificationError) as caught:
        require_clean({"artifacts/x.json": data}, known=())
    assert canary not in str(caught.value)
    assert "artifacts/x.json.a[0].detail" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["apiKey", "api_key", "password", "clientSecret", "access_token", "authorization"]
)
def test_a_field_named_like_a_secret_is_found(name: str) -> None:
    found = scan_file("x.json", canonical_json({name: "whatever"}))
    assert ("credential", f"x.json.{name}") in {(item.code, item.where) for item in found}


def test_values_of_the_environment_are_found_wherever_they_stand() -> None:
    known = environment_secrets({"RUNPOD_API_KEY": "zq81kfm2xw07", "HOME": "/nowhere", "SHORT_KEY": "abc"})
    assert known == ("zq81kfm2xw07",)
    for data in (
        canonical_json({"a": "prefix-zq81kfm2xw07"}),
        b'{"b":"zq81kfm2xw07"}\n',
        b"plain zq81kfm2xw07",
    ):
        assert "environment-secret" in {
            item.code for item in scan_file("legs/x/events.jsonl", data, known=known)
        }


def test_secrets_inside_envelopes_and_tokens_are_found() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    statement = {"spec": {"provider": {"host": "203.0.113.9"}}}
    envelope = sign_statement(Ed25519PrivateKey.generate(), "tag:glasshouse,2026:plan/v1", statement, {})
    assert any(
        item.code == "ip-address" and item.where.endswith("predicate.spec.provider.host")
        for item in scan_file("plan.dsse.json", envelope)
    )
    body = base64.urlsafe_b64encode(json.dumps({"cwd": "/root/x"}).encode()).rstrip(b"=").decode()
    token = canonical_json({"evidence": f"eyJhbGciOiJFZERTQSJ9.{body}.c2lnbmF0dXJl"})
    found = {item.code for item in scan_file("legs/s000-protected/exchange.json", token)}
    assert found == {"private-path"}  # tokens belong there, paths do not


def test_real_bundles_and_artifacts_are_clean(
    pair: tuple[Path, VerifiedRow], signed: Artifact, reported: tuple[Artifact, ...]
) -> None:
    files: dict[str, bytes] = dict(pair[1].files)
    files |= {f"{row.id}.json": artifact_bytes(row) for row in (signed, *reported)}
    require_clean(files, known=())


def test_numbers_that_look_alike_are_not_taken_for_addresses() -> None:
    harmless: Any = {
        "driver": "570.86.15",
        "loss": "7.152557e-08",
        "version": "2.13.0",
        "image": f"runpod/pytorch@sha256:{'ab' * 32}",
        "t": "12:30",
        "n": 3.5,
    }
    assert scan_file("x.json", canonical_json(harmless)) == ()


@pytest.mark.parametrize("prefix", ["sk-", "hf_", "-sk-", "rpa_"])
def test_what_is_random_may_spell_a_tokens_beginning(prefix: str) -> None:
    """A signature is any 86 characters; one in some hundred thousand begins as a provider's token does."""
    header, claims = b64u(b'{"alg":"EdDSA"}'), b64u(b'{"leg":"s001"}')
    signature = f"{prefix}{'A1b2' * 22}"[:86]
    line = canonical_json({"head": "ab" * 32, "sig": signature}) + b"\n"
    assert scan_file("legs/s001-protected/heads.jsonl", line) == ()
    for size in (1494, 1622):
        assert scan_file("grant.json", canonical_json({"enc": f"{prefix}{'A1b2' * 410}"[:size]})) == ()
    exchange = canonical_json({"ear": f"{header}.{claims}.{signature}"})
    assert scan_file("legs/s001-protected/exchange.json", exchange) == ()


@pytest.mark.parametrize("size", [19, 40, 51, 85, 87, 164])
def test_a_token_of_another_length_is_found_also_behind_a_signed_one(size: int) -> None:
    token = f"sk-{'A1b2' * 50}"[:size]
    header, claims = b64u(b'{"alg":"EdDSA"}'), b64u(b'{"leg":"s001"}')
    (found,) = scan_file("heads.jsonl", canonical_json({"sig": token}) + b"\n")
    assert found.code == "api-token"
    for text in (f"{header}.{claims}.{'A' * 86} {token}", f"{header}.{claims}.{token}"):
        codes = {item.code for item in scan_file("legs/a/exchange.json", canonical_json({"ear": text}))}
        assert "api-token" in codes


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "unit", ["a.", "a-", "1.", "x.y", "ssh-", "a@", "a+", "[0:", "://a:", "eyJaaaaaaaa.", "secret.", "token "]
)
def test_a_text_that_someone_else_chose_takes_no_time_by_its_length(unit: str) -> None:
    # A pod may write so much in one field. Where time grows with the square, this takes hours.
    scan_file("x.json", canonical_json({"a": unit * ((1 << 20) // len(unit))}))
