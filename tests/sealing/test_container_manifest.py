"""A manifest that was rewritten by someone who holds the key, or is malformed though it authenticates."""

from __future__ import annotations

import hashlib

import pytest

from glasshouse.canonical import canonical_json, parse_canonical
from glasshouse.sealing import container_keys, layout
from glasshouse.sealing.container import open_package
from glasshouse.sealing.layout import Header, manifest_object
from tests.sealing.tampering import CHUNK, KEY, Sealed, codes_of

RELABELS = {
    "dtype": lambda table: table["tensors"][0].update(dtype="float16"),
    "shape": lambda table: table["tensors"][0].update(shape=[64, 8]),
    "tensor name": lambda table: table["tensors"][0].update(name="u"),
    "file name": lambda table: table["files"][0].update(name="conf.jsom"),
    "tensor order": lambda table: table["tensors"].insert(0, table["tensors"].pop(1)),
    "salt": lambda table: table.update(salt="A" * 43),
    "digest": lambda table: table["tensors"][0].update(digest="0" * 64),
    "extra": lambda table: table.update(extra={"fill": 2}),
}


@pytest.mark.parametrize("relabel", RELABELS)
def test_even_the_key_holder_cannot_relabel_what_others_sealed(sealed, scratch, regions, relabel) -> None:
    """A manifest re-encrypted under the true key: another hash, so another package; and no chunk fits it."""
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    table = parse_canonical(canonical_json(opened.manifest))
    RELABELS[relabel](table)
    manifest = canonical_json(table)
    # Step 1 of a forger: keep the header, put the new manifest under it.
    forged = _with_manifest(sealed, manifest, bytes.fromhex(sealed.hash))
    assert codes_of(scratch, forged, sealed.hash, regions) == ("manifest-hash-mismatch",)
    # Step 2: make the header name the new manifest. What was expected no longer matches ...
    digest = hashlib.sha256(manifest).digest()
    forged = _with_manifest(sealed, manifest, digest)
    assert codes_of(scratch, forged, sealed.hash, regions) == ("manifest-hash-mismatch",)
    # ... and if the expectation were forged as well, the old chunks do not decrypt under it.
    assert codes_of(scratch, forged, digest.hex(), regions) == ("chunk-authentication-failed",)


def _with_manifest(sealed: Sealed, manifest: bytes, digest: bytes) -> bytes:
    key = memoryview(KEY)
    header = Header(CHUNK, len(manifest), digest, container_keys.commitment(key, digest))
    table = manifest_object(header)
    cipher = container_keys.cipher_for(key, digest, table)
    ciphertext = cipher.encrypt(layout.nonce(0), manifest, table.associated_data(header.pack(), 0))
    return header.pack() + ciphertext + sealed.data[sealed.first :]


MALFORMED = {
    "not json": lambda _: b"{",
    "not canonical": lambda table: b" " + canonical_json(table),
    "list": lambda _: b"[]",
    "missing key": lambda table: canonical_json({name: table[name] for name in table if name != "extra"}),
    "unknown key": lambda table: canonical_json(table | {"more": 1}),
    "other format": lambda table: canonical_json(table | {"format": "glasshouse/sealed/v1"}),
    "other chunk size": lambda table: canonical_json(table | {"chunkBytes": CHUNK * 2}),
    "short salt": lambda table: canonical_json(table | {"salt": "AAAA"}),
    "extra is a list": lambda table: canonical_json(table | {"extra": []}),
    "files is a mapping": lambda table: canonical_json(table | {"files": {"a": 1}}),
    "negative size": lambda table: canonical_json(
        table | {"files": [{"name": "a", "bytes": -1, "digest": "0" * 64}], "tensors": []}
    ),
    "boolean size": lambda table: canonical_json(
        table | {"files": [{"name": "a", "bytes": True, "digest": "0" * 64}], "tensors": []}
    ),
    "bytes do not match shape": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"bytes": 1}, *table["tensors"][1:]]}
    ),
    "shape of floats": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"shape": [8.5, 64]}]}
    ),
    "row with more": lambda table: canonical_json(table | {"tensors": [table["tensors"][0] | {"x": 1}]}),
    "short digest": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"digest": "00"}]}
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_manifest_is_refused_though_it_authenticates(sealed, scratch, regions, case) -> None:
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    regions.clear()
    manifest = MALFORMED[case](opened.manifest)
    digest = hashlib.sha256(manifest).digest()
    codes = codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions)
    assert codes in {("manifest-malformed",), ("tensor-malformed",)}
    assert regions == []


@pytest.mark.parametrize(("field", "code"), [("name", "name-malformed"), ("dup", "name-duplicate")])
def test_names_in_an_authentic_manifest_are_checked_too(sealed, scratch, regions, field, code) -> None:
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    row = opened.manifest["files"][0]
    rows = [row | {"name": "../x"}] if field == "name" else [row, row]
    manifest = canonical_json(opened.manifest | {"files": rows})
    digest = hashlib.sha256(manifest).digest()
    assert codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions) == (code,)


def test_a_huge_claim_takes_no_memory(sealed, scratch, regions) -> None:
    """2^52 bytes in an authentic manifest: refused by the file's size, before any region is mapped."""
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    regions.clear()
    row = {"name": "big", "bytes": 2**52, "dtype": "uint8", "shape": [2**52], "digest": "0" * 64}
    manifest = canonical_json(opened.manifest | {"tensors": [row]})
    digest = hashlib.sha256(manifest).digest()
    codes = codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions)
    assert codes == ("container-truncated",)
    assert regions == []
