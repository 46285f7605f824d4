"""Which program this is: version, commit, the formats that it writes, and the number of its method."""

from __future__ import annotations

from collections.abc import Sequence

from glasshouse import __version__
from glasshouse.attestation.evidence import EAT_PROFILE
from glasshouse.commands.terminal import emit, say
from glasshouse.errors import UsageError
from glasshouse.judgement.rules import METHOD
from glasshouse.origin import commit
from glasshouse.publishing.artifact import SCHEMA_VERSION
from glasshouse.records.signing import BUNDLE_TYPE, PLAN_TYPE
from glasshouse.sealing.layout import FORMATS


def show(words: Sequence[str]) -> int:
    """Print it; `words` after --version may be --json alone."""
    if list(words) not in ([], ["--json"]):
        raise UsageError(
            "--version takes no arguments but --json",
            field="argument", value=" ".join(words), remedy="leave them out",
        )  # fmt: skip
    formats = {
        "container": ", ".join(FORMATS.values()),
        "evidence": EAT_PROFILE,
        "plan": PLAN_TYPE,
        "bundle": BUNDLE_TYPE,
        "artifact": SCHEMA_VERSION,
    }
    if words:
        emit({"version": __version__, "commit": commit(), "formats": formats, "method": METHOD})
        return 0
    say(f"glasshouse {__version__}")
    say(f"commit     {commit()}")
    for name, value in formats.items():
        say(f"{name:<9}  {value}")
    say(f"method     {METHOD}")
    return 0
