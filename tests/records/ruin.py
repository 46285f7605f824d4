"""Reading a bundle's files to ruin them, and verifying what must fail."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.tokens import (
    CHALLENGE_TYP,
    GRANT_TYP,
    LAUNCH_TYP,
    grant_info,
    key_id,
    public_bytes_of,
    sign_jws,
)
from glasshouse.canonical import b64u, b64u_decode, canonical_json, parse_json, sha256_hex
from glasshouse.errors import VerificationError
from glasshouse.records.bundle import ENVELOPE, PLAN, RECORD
from glasshouse.records.keys import Keyring
from glasshouse.records.signing import BUNDLE_TYPE, sign_statement
from glasshouse.records.verify import verify

from .conftest import Made
from .factory import Factory


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resign(factory: Factory, folder: Path, files: Mapping[str, bytes], **predicate: Any) -> None:
    """Make `folder` hold `files` alone, under a fresh, valid signature over whatever they say."""
    content = {name: data for name, data in files.items() if name != ENVELOPE}
    statement = {
        "run": parse_json(content[RECORD])["run"],
        "recordSha256": sha256_hex(content[RECORD]),
        "planSha256": sha256_hex(content[PLAN]),
        "createdAt": 1.0,
    } | predicate
    digests = {name: sha256_hex(data) for name, data in content.items()}
    content[ENVELOPE] = sign_statement(factory.operator, BUNDLE_TYPE, statement, digests)
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def failed(made: Made, folder: Path, keyring: Keyring | None = None) -> dict[str, str]:
    """Failed checks by code, of a verification that must fail."""
    found = verify(folder, made.factory.keyring if keyring is None else keyring)
    assert (found.ok, found.status, found.overhead_pct, found.row) == (False, None, None, None)
    with pytest.raises(VerificationError) as caught:
        found.require()
    assert set(caught.value.codes) == {check.code for check in found.checks if not check.ok}
    return {check.code: check.detail for check in found.checks if not check.ok}


def asked_by(exchange: bytes, broker: Ed25519PrivateKey, **cnf: Any) -> bytes:
    """A recorded exchange as who holds the broker's key can forge it: for cnf=..., or for nobody's key.

    Challenge, launch token and grant are signed again, and the grant is bound to them.
    """
    found: dict[str, Any] = parse_json(exchange)
    challenge, launch = _claims(found["challenge"]), _claims(found["launchToken"])
    for claims in (challenge, launch):
        del claims["cnf"]
        claims.update(cnf)
    found["launchToken"] = sign_jws(launch, broker, LAUNCH_TYP)
    challenge["launch_token"] = found["launchToken"]
    found["challenge"] = sign_jws(challenge, broker, CHALLENGE_TYP)
    where = (challenge["run"], challenge["leg"], challenge["launch"])
    texts = {"challenge": found["challenge"], "launch_token": found["launchToken"]}
    texts |= {"evidence": found["evidence"], "ear": found["ear"]}
    info = grant_info(key_id(public_bytes_of(broker)), *where, **texts)
    found["grant"] = sign_jws({**_claims(found["grant"]), "info": b64u(info)}, broker, GRANT_TYP)
    return canonical_json(found)


def _claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = parse_json(b64u_decode(token.split(".")[1]))
    return claims
