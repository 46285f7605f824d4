"""Write the site's generated pages and data to a folder: the same bytes that `mkdocs build` takes.

glasshouse pages --out build/pages
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glasshouse.commands.terminal import emit, say, writing
from glasshouse.publishing.pages import render
from glasshouse.publishing.store import read_publication


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--committed", action="store_true", help="leave local rows in build/artifacts out")


def run(args: argparse.Namespace) -> int:
    """Check the publication, render it, write it."""
    publication = read_publication(args.workspace, overlay=False if args.committed else None)
    pages = render(publication)
    with writing("out", args.out):
        for name, content in pages.items():
            path = args.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if args.json:
        emit({"ok": True, "files": sorted(pages)})
    else:
        say(f"{len(pages)} files in {args.out}, from {len(publication.artifacts)} rows")
    return 0
