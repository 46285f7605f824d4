"""Write the site's generated pages and data to a folder, or build the whole site.

  glasshouse pages --site my-site       the site as one reads it: open my-site/index.html
  glasshouse pages --out build/pages    the pages alone, the same bytes that `mkdocs build` takes

Both show what is published and, labelled local, the rows that `glasshouse publish --local` put into build/.

  glasshouse pages --private --out my-jobs     the curves of your private jobs in runs/, for nobody else
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glasshouse.commands.terminal import emit, say, writing
from glasshouse.errors import UsageError
from glasshouse.extras import require
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="where to write the pages")
    where.add_argument("--site", type=Path, metavar="DIR", help="a new or empty folder to build the site in")
    parser.add_argument(
        "--private", action="store_true", help="the curves of the private jobs in runs/ instead"
    )
    parser.add_argument("--committed", action="store_true", help="leave local rows in build/artifacts out")


def run(args: argparse.Namespace) -> int:
    """Check the publication, render it, write it."""
    if args.private:
        return _private(args)
    overlay = False if args.committed else None
    publication = read_publication(args.workspace, overlay=overlay)
    if args.site is not None:
        return _site(args, overlay, len(publication.artifacts))
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


def _private(args: argparse.Namespace) -> int:
    """Write what nobody else is to see."""
    if args.out is None:
        raise UsageError(
            "--private needs a folder of its own", field="out", value="", remedy="give --out DIR"
        )
    require("run", "--private")
    from glasshouse.commands.private_pages import write  # noqa: PLC0415  it needs what opens a seal

    return write(args.out, args.workspace, as_json=args.json)


def _site(args: argparse.Namespace, overlay: bool | None, rows: int) -> int:
    """Build the site with the theme and the hand-written pages."""
    from glasshouse.publishing.build import build  # noqa: PLC0415  MkDocs takes a second to load

    if args.site.exists() and (not args.site.is_dir() or any(args.site.iterdir())):
        raise UsageError(
            "not an empty folder", field="site", value=args.site, remedy="give a new one: MkDocs empties it"
        )
    with writing("site", args.site):
        build(args.workspace, args.site, overlay=overlay)
    if args.json:
        emit({"ok": True, "site": str(args.site), "rows": rows})
    else:
        say(f"the site, with {rows} rows: {args.site / 'index.html'}")
    return 0
