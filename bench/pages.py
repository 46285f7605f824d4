"""How long a build takes with many row pages: python bench/pages.py [ROWS ...] (default 1000).

Rows are copies of one reported row under ids of their own, rendered in memory and written by MkDocs to
a temporary folder. Nothing of it can be published: the importer would refuse such rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

from glasshouse.publishing import store
from glasshouse.publishing.store import Publication, read_publication

ROOT = Path(__file__).parents[1]


def many(count: int) -> Publication:
    base = read_publication(ROOT, overlay=False)
    rows = [
        base.artifacts[index % len(base.artifacts)].model_copy(update={"id": f"bench-{index:06d}"})
        for index in range(count)
    ]
    return replace(base, artifacts=(*base.artifacts, *rows), bundles={}, local=frozenset())


def main() -> None:
    for count in [int(text) for text in sys.argv[1:]] or [1000]:
        publication = many(count)
        # MkDocs loads the hook afresh for each configuration; it then finds this reader.
        store.read_publication = lambda _root, publication=publication: publication
        with tempfile.TemporaryDirectory() as out:
            config = load_config(str(ROOT / "mkdocs.yml"), site_dir=out)
            began = time.perf_counter()
            build(config)
            seconds = time.perf_counter() - began
            pages = sum(1 for _ in Path(out).rglob("index.html"))
        print(f"{count} rows: {pages} pages in {seconds:.2f} s, {1000 * seconds / pages:.2f} ms a page")


if __name__ == "__main__":
    main()
