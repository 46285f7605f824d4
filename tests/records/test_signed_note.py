from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import VerificationError
from glasshouse.records.keys import KeyEntry, keyid, public_bytes
from glasshouse.records.signed_note import Checkpoint, cosign, key_id, open_note, parse_checkpoint, sign_note

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "signed_note.json").read_text(encoding="utf-8"))
# Both encodings of the Go library start with the signature type, 1.
KEY = Ed25519PrivateKey.from_private_bytes(base64.b64decode(VECTOR["seed"])[1:])
PUBLIC = base64.b64decode(VECTOR["public"])[1:]
SIGNER = KeyEntry(keyid(PUBLIC), "publisher", PUBLIC, "Peter Neumann")
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WITNESS = KeyEntry(
    keyid(public_bytes(WITNESS_KEY)), "witness", public_bytes(WITNESS_KEY), "witness.example/w1"
)
NAME = VECTOR["name"]
CHECKPOINT = Checkpoint("log.example/1", 3, bytes(32))


def refused(note: str, *signers: KeyEntry, witnesses: tuple[KeyEntry, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        open_note(note, NAME, signers or (SIGNER,), witnesses)
    return caught.value.codes


def test_the_go_vector_byte_for_byte() -> None:
    assert public_bytes(KEY) == PUBLIC
    assert key_id(NAME, 1, PUBLIC).hex() == VECTOR["keyId"]
    assert sign_note(VECTOR["text"], NAME, KEY) == VECTOR["note"]
    found = open_note(VECTOR["note"], NAME, [SIGNER])
    assert (found.text, found.signer, found.witnesses) == (VECTOR["text"], SIGNER, ())


def test_the_example_checkpoint() -> None:
    expected = VECTOR["checkpoint"]
    found = parse_checkpoint(expected["text"])
    assert (found.origin, found.size, found.text()) == (
        expected["origin"],
        expected["size"],
        expected["text"],
    )


def test_every_character_of_the_text_counts() -> None:
    note = VECTOR["note"]
    for position in range(len(VECTOR["text"])):
        changed = note[:position] + chr(ord(note[position]) ^ 1) + note[position + 1 :]
        assert refused(changed)


def test_signers_are_known_by_name_and_key() -> None:
    other = KeyEntry(WITNESS.keyid, "publisher", WITNESS.public, "x")
    assert refused(VECTOR["note"], other) == ("note-unsigned",)
    with pytest.raises(VerificationError):
        open_note(VECTOR["note"], "other.example", [SIGNER])


def test_a_known_key_that_did_not_sign_refuses_the_note() -> None:
    blob = base64.b64encode(key_id(NAME, 1, PUBLIC) + bytes(64)).decode()
    assert refused(f"{VECTOR['note']}\u2014 {NAME} {blob}\n") == ("note-signature",)


def test_witnesses_cosign_the_checkpoint() -> None:
    note = cosign(sign_note(CHECKPOINT.text(), NAME, KEY), WITNESS.label, WITNESS_KEY, 1_679_315_147)
    found = open_note(note, NAME, [SIGNER], [WITNESS])
    assert found.witnesses == (WITNESS,)
    assert parse_checkpoint(found.text) == CHECKPOINT
    assert open_note(note, NAME, [SIGNER]).witnesses == ()


def test_a_cosignature_is_for_its_text_and_time() -> None:
    note = cosign(sign_note(CHECKPOINT.text(), NAME, KEY), WITNESS.label, WITNESS_KEY, 5)
    head, _, blob = note.rstrip("\n").rpartition(" ")
    raw = bytearray(base64.b64decode(blob))
    raw[11] ^= 1  # the last byte of the timestamp
    assert refused(f"{head} {base64.b64encode(raw).decode()}\n", witnesses=(WITNESS,)) == ("note-signature",)


def test_a_witness_does_not_stand_in_for_the_log() -> None:
    unsigned = f"{CHECKPOINT.text()}\n"
    note = cosign(f"{unsigned}\u2014 nobody AAAAAAA=\n", WITNESS.label, WITNESS_KEY, 5)
    assert refused(note, witnesses=(WITNESS,)) == ("note-unsigned",)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\nno signature\n",
        "text\n\n\u2014 name\n",
        "text\n\n\u2014 na+me AAAAAAA=\n",
        "text\n\n\u2014 name AAAAAAA\n",
        "text\n\n\u2014 name AAA=\n",
        "te\x01xt\n\n\u2014 name AAAAAAA=\n",
        "text\n\n\u2014 name AAAAAAA=",
        "text\n\n" + "\u2014 name AAAAAAA=\n" * 33,
        "x" * 70_000 + "\n\n\u2014 name AAAAAAA=\n",
    ],
)
def test_malformed_notes(note: str) -> None:
    assert refused(note) == ("note-malformed",)


@pytest.mark.parametrize(
    "text",
    [
        "a\n1\n",
        "a\n01\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n-1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n1\nAAAA\n",
        "\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nextension\n",
    ],
)
def test_malformed_checkpoints(text: str) -> None:
    with pytest.raises(VerificationError):
        parse_checkpoint(text)


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_code(text: str) -> None:
    assert refused(text) in (("note-malformed",), ("note-unsigned",))


def test_what_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="newline"):
        sign_note("no newline", NAME, KEY)
    with pytest.raises(ValueError, match="no spaces"):
        sign_note("text\n", "two words", KEY)
