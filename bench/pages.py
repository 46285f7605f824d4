"""How long a build takes with many row pages: python bench/pages.py [ROWS ...] (default 1000).

Rows are copies of reported rows under ids of their own, each entered in a log, rendered in memory and
written by MkDocs to a temporary folder. Nothing of it can be published: the importer would refuse such rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mkdocs.commands.build import build
from mkdocs.config import load_config

from glasshouse.canonical import canonical_json
from glasshouse.paths import Workspace
from glasshouse.publishing import publication_files
from glasshouse.publishing.artifact import Artifact, artifact_sha256
from glasshouse.publishing.logs import PublishedLogs
from glasshouse.publishing.publication_files import Publication, read_publication
from glasshouse.publishing.published_log import check_log
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes
from glasshouse.records.ledger import parse_leaves, sign_checkpoint

ROOT = Path(__file__).parents[1]


def many(count: int) -> Publication:
    base = read_publication(Workspace.of_source(ROOT), overlay=False)
    rows = [
        base.artifacts[index % len(base.artifacts)].model_copy(update={"id": f"bench-{index:06d}"})
        for index in range(count)
    ]
    return replace(
        base, artifacts=(*base.artifacts, *rows), bundles={}, local=frozenset(), logs=entered(rows)
    )


def entered(rows: list[Artifact]) -> PublishedLogs:
    """A log of these rows, signed by a key of its own."""
    key = Ed25519PrivateKey.generate()
    entry = KeyEntry(keyid(public_bytes(key)), "publisher", public_bytes(key), "bench")
    lines = [
        canonical_json(
            {"serial": serial, "kind": "reported", "time": 0.0, "row": row.id,
             "artifactSha256": artifact_sha256(row)}
        )
        for serial, row in enumerate(rows)
    ]  # fmt: skip
    data = b"".join(line + b"\n" for line in lines)
    log = check_log(data, sign_checkpoint(parse_leaves(data), key), Keyring((entry,)))
    return PublishedLogs((log,))


def main() -> None:
    current: dict[str, Publication] = {}
    publication_files.read_publication = lambda _workspace: current["publication"]
    for count in [int(text) for text in sys.argv[1:]] or [1000]:
        publication = many(count)
        # MkDocs loads the hook once a process; it finds this reader.
        current["publication"] = publication
        with tempfile.TemporaryDirectory() as out:
            config = load_config(str(ROOT / "mkdocs.yml"), site_dir=out)
            began, cpu = time.perf_counter(), time.process_time()
            build(config)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            pages = sum(1 for _ in Path(out).rglob("index.html"))
        each = 1000 * seconds / pages
        print(f"{count} rows: {pages} pages in {seconds:.2f} s, {each:.2f} ms a page; CPU {cpu:.2f} s")


if __name__ == "__main__":
    main()
