"""Who says what a row's claims were held against, as its page shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.attestation.claims import CLAIMS, Reference
from glasshouse.attestation.stage import synthetic_reference
from glasshouse.canonical import canonical_json
from glasshouse.paths import Workspace
from glasshouse.publishing.claim_sources import SOURCES, read_claim_sources
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication

from .test_publish import Bundle, Put


def put_reference(bundle: Path, launch: str, reference: Reference) -> None:
    folder = bundle / "legs" / launch
    folder.mkdir(parents=True)
    (folder / "reference.json").write_bytes(canonical_json(reference.to_dict()))


def test_a_published_rows_page_names_the_source_of_every_claim(root: Path, pair: Bundle, put: Put) -> None:
    folder, row = pair
    put(folder)
    publication = read_publication(Workspace.of_source(root))
    shown = dict(publication.claims[row.id])
    assert sorted(claim for claims in shown.values() for claim in claims) == sorted(CLAIMS)
    assert {"run", "boot_id", "manifest_hash"} <= set(shown["controller-observed"])
    assert {"allocation_id", "image_digest"} <= set(shown["provider-declared"])
    assert "eat_nonce" in shown["broker"]
    assert {"clock_skew_sec", "hardening.memfd_secret"} <= set(shown["self-reported"])
    page = render(publication)[f"rows/{row.id}.md"].decode()
    section = page[page.index('id="claims"') : page.index('id="caveats"')]
    assert all(f"<code>{name}</code>" in section for name in (*CLAIMS, *shown))
    reported = next(item for item in publication.artifacts if item.reported is not None)
    assert publication.claims[reported.id] == ()
    assert 'id="claims"' not in render(publication)[f"rows/{reported.id}.md"].decode()


def test_where_launches_differ_the_weaker_source_is_shown(tmp_path: Path) -> None:
    known = replace(synthetic_reference("run"), python_version="3.11.2", distributions_sha256="ab" * 32)
    put_reference(tmp_path, "s000-protected", known)
    alone = dict(read_claim_sources(tmp_path))
    assert "python_version" in alone["controller-observed"]
    put_reference(tmp_path, "s003-protected", replace(known, python_version=None))
    both = dict(read_claim_sources(tmp_path))
    assert "python_version" in both["self-reported"]
    assert "distributions_sha256" in both["controller-observed"]
    assert list(both) == [source for source in SOURCES if source in both]


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"run":1}', b"x" * (65 << 10)])
def test_what_is_no_reference_says_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "legs" / "s000-protected").mkdir(parents=True)
    (tmp_path / "legs" / "s000-protected" / "reference.json").write_bytes(data)
    assert read_claim_sources(tmp_path) == ()


def test_a_source_that_nobody_knows_vouches_for_nothing(tmp_path: Path) -> None:
    known = synthetic_reference("run")
    put_reference(tmp_path, "s000-protected", replace(known, sources={"run": "hardware"}))
    assert "run" in dict(read_claim_sources(tmp_path))["self-reported"]
