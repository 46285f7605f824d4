"""`glasshouse pages --private --out DIR`: the curves of the private jobs in runs/, for this machine's owner.

They lie in a folder of their own that nobody else may read, and in no file under build/ or of the site.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from glasshouse.commands.records import RUNS, find_runs
from glasshouse.commands.terminal import emit, say, writing
from glasshouse.commands.watched_runs import Job, explained
from glasshouse.errors import SealError, UsageError, one_line
from glasshouse.paths import Workspace
from glasshouse.watching.page import index_page, run_page
from glasshouse.watching.words import now_lines


def write(out: Path, workspace: Workspace, *, as_json: bool) -> int:
    """Write a page for each private job whose records are at home, and one that lists them.

    Where one cannot be made, the others are; a line on stderr says which and why, and 1 is returned.
    """
    _refuse_public(out, workspace)
    pages: dict[str, str] = {}
    failed: dict[str, str] = {}
    for found in find_runs(RUNS):
        try:
            job = Job(found)
        except UsageError:
            continue  # no private job, or no run folder of this version
        try:
            if (page := _page(job)) is not None:
                pages[found.run] = page
        except SealError as error:
            failed[found.run] = explained(error).line()
        except Exception as error:  # noqa: BLE001  what one job wrote costs its own page alone
            failed[found.run] = f"its records cannot be drawn: {type(error).__name__}"
    with writing("out", out):
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        if out.stat().st_mode & 0o077:
            raise UsageError(
                "others may look into this folder",
                field="out", value=out, remedy="give a new one, or chmod 700 it",
            )  # fmt: skip
        for name, text in {**pages, "index": index_page(sorted(pages, reverse=True))}.items():
            _write(out / f"{name}.html", text.encode())
    if as_json:
        files = sorted(f"{name}.html" for name in [*pages, "index"])
        emit({"ok": not failed, "files": files, **({"failed": failed} if failed else {})})
    else:
        say(f"{len(pages)} private jobs with curves: {out / 'index.html'}, for your eyes only")
    for name, why in failed.items():
        sys.stderr.write(f"{one_line(f'no page for run {name}: {why}')}\n")
    return 1 if failed else 0


def _page(job: Job) -> str | None:
    """The page of a job; None where none of its records is at home. Raises SealError."""
    for _ in job.new():
        pass
    launches = [
        (f"{leg}-{launch}", watched.shown, now_lines(now))
        for (leg, launch), watched in job.watched.items()
        if (now := watched.now) is not None
    ]
    return run_page(job.found.run, launches) if launches else None


def _refuse_public(out: Path, workspace: Workspace) -> None:
    place = out.resolve()
    for public in (workspace.work / "build", workspace.root / "site"):
        if place.is_relative_to(public.resolve()):
            raise UsageError(
                "what lies there becomes public",
                field="out", value=out, remedy="give a folder outside of build/ and site/",
            )  # fmt: skip


def _write(path: Path, data: bytes) -> None:
    """Write a private file; what was there is replaced."""
    temporary = path.with_name(f".{path.name}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
    temporary.replace(path)
