"""The catalogue of reasons: what every code says to a person, with which exit status, and where it can arise.

Rules, errors, `verify`, `show`, the pages and the documentation read it; nothing of it goes to the pod. A new
reason is a member of `codes.Code` and an entry here, in the module of where it arises:

    runs          the run, its rental, its legs; rules; headlines
    attestation   evidence, tokens, the exchange with the broker; sealed files
    records       bundles, a leg's events, keys, ledgers
    publication   rows, the site, what a journey brings home

Caveats, which never exclude a row, have a catalogue of the same form: judgement/caveats.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from glasshouse.codes import Code, known
from glasshouse.reasons import attestation, publication, records, resuming, runs
from glasshouse.reasons.entry import Place, Reason, explained

__all__ = ["GROUPS", "REASONS", "Place", "Reason", "arising", "reason"]

# Each with its heading, in the order in which the page of reasons shows them.
GROUPS: tuple[tuple[str, Mapping[Code, Reason]], ...] = (
    ("Before and beside the legs", runs.BEFORE_LEGS),
    ("How a leg ends", runs.LEGS),
    ("What must hold for a row to count", runs.RULES),
    ("What keeps a row out of a headline", runs.HEADLINES),
    ("What a leg's evidence must show", attestation.CLAIMS),
    ("Tokens that are not of their form", attestation.SIGNED),
    ("Tokens, kind by kind", attestation.TOKENS),
    ("The exchange with the key broker", attestation.EXCHANGE),
    ("Sealed files and their keys", attestation.SEALED),
    ("Files of a bundle", records.FILES),
    ("What the operator signed", records.STATEMENTS),
    ("A leg's exchange, verified again", records.EVIDENCE),
    ("A leg's events", records.EVENTS),
    ("Going on from a checkpoint", resuming.CHECKPOINTS),
    ("Keys and checkpoints", records.KEYS),
    ("Ledgers", records.LEDGERS),
    ("A published row", publication.ROWS),
    ("What is published together", publication.SITE),
    ("What a journey brings home", publication.JOURNEYS),
)
REASONS: Mapping[Code, Reason] = {code: entry for _, group in GROUPS for code, entry in group.items()}

_UNKNOWN = explained("Unknown to this version", "A code that this version does not know.")


def reason(code: str) -> Reason:
    """The entry of a code. A record may hold one of another version, which has an entry that says so."""
    found = known(code.partition(":")[0], None)
    return _UNKNOWN if found is None else REASONS[found]


def arising(*places: Place) -> frozenset[Code]:
    """Codes that can arise at any of the places."""
    return frozenset(code for code, entry in REASONS.items() if set(places) & set(entry.places))
