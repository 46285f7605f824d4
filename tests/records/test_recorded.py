"""Bundles of an earlier version verify still: names, ids and defaults of what is recorded do not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.records.bundle import Found
from glasshouse.records.keys import parse_keyring
from glasshouse.records.verify import verify_files

RECORDED = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "recorded-bundles.json").read_text())


@pytest.mark.parametrize("label", RECORDED["bundles"])
def test_a_recorded_bundle_verifies(label: str) -> None:
    files = {name: text.encode() for name, text in RECORDED["bundles"][label].items()}
    keyring = parse_keyring(canonical_json(RECORDED["keyring"]))
    found = verify_files(Found(files, ()), keyring)
    assert found.ok, [check for check in found.checks if not check.ok]
    assert found.status == "verified"
    assert found.require().facts.spec.payload == ("private" if label == "private" else "public")

    name = next(name for name in files if name.endswith("events.jsonl"))
    altered = {**files, name: files[name].replace(b'"readBackZero":true', b'"readBackZero":false', 1)}
    assert not verify_files(Found(altered, ()), keyring).ok
