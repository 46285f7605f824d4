"""Ask a person before what they typed becomes public for ever, having shown it as it will stand there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from glasshouse.errors import UsageError, harmless
from glasshouse.records.secrets import require_public


def confirm_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --yes."""
    parser.add_argument(
        "--yes", action="store_true", help="the words were read as they will stand: publish them, do not ask"
    )


def confirmed(
    text: str,
    field: str,
    *,
    yes: bool,
    shown_as: str = "",
    interactive: bool | None = None,
    ask: Callable[[str], str] = input,
) -> str:
    """Return words as they will be published (one line), once they were searched, shown and confirmed.

    shown_as: the line in which they will stand; "" for the words alone. yes: do not ask. interactive: whether
    somebody can answer; None looks at stdin. Raises UsageError where they hold what must not become public,
    where nobody can be asked, and where the answer is no.
    """
    words = require_public(" ".join(text.split()), field)
    sys.stderr.write(f"published, for ever, as: {harmless(shown_as or words)}\n")
    if yes:
        return words
    if not (sys.stdin.isatty() if interactive is None else interactive):
        raise UsageError(
            "nobody is there to confirm it",
            field=field,
            value="(shown above)",
            remedy="read it, and add --yes",
        )
    sys.stderr.write("publish it so? [y/N] ")
    sys.stderr.flush()
    try:
        answer = ask("")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(
            "it was not confirmed", field=field, value="(shown above)", remedy="nothing was entered"
        )
    return words
