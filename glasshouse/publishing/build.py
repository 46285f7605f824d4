"""Build the whole site: what `mkdocs build --strict` does in a source tree, wherever the program lies."""

from __future__ import annotations

import os
from pathlib import Path

from mkdocs.commands.build import build as build_with_mkdocs
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

from glasshouse.errors import GlasshouseError
from glasshouse.paths import PACKAGE, Workspace
from glasshouse.publishing.hook import OVERLAY_CHOICE

HOOK = PACKAGE / "publishing" / "hook.py"


def build(workspace: Workspace, out: Path, *, overlay: bool | None = None) -> None:
    """Write the site of a workspace to `out`, which MkDocs empties first; overlay as for read_publication.

    Raises GlasshouseError.
    """
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # the theme's, about another program
    try:
        config = load_config(
            str(workspace.root / "mkdocs.yml"),
            site_dir=str(out.resolve()),
            hooks=[str(HOOK)],
            watch=[],
            strict=True,
        )
        config.extra[OVERLAY_CHOICE] = overlay
        build_with_mkdocs(config)
    except (MkDocsException, SystemExit) as error:
        raise GlasshouseError(
            f"MkDocs did not build the site: {str(error).strip() or type(error).__name__}",
            field="site",
            value=out,
            remedy="what it said stands above",
        ) from error
