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
from glasshouse.reasons import attestation, publication, records, runs
from glasshouse.reasons.entry import Place, Reason, explained

__all__ = ["REASONS", "Place", "Reason", "arising", "reason", "reason_text"]

GROUPS: tuple[Mapping[Code, Reason], ...] = (
    runs.BEFORE_LEGS,
    runs.LEGS,
    runs.RULES,
    runs.HEADLINES,
    attestation.CLAIMS,
    attestation.SIGNED,
    attestation.TOKENS,
    attestation.EXCHANGE,
    attestation.SEALED,
    records.FILES,
    records.STATEMENTS,
    records.EVIDENCE,
    records.EVENTS,
    records.KEYS,
    records.LEDGERS,
    publication.ROWS,
    publication.SITE,
    publication.JOURNEYS,
)
REASONS: Mapping[Code, Reason] = {code: entry for group in GROUPS for code, entry in group.items()}

_UNKNOWN = explained("Unknown to this version", "A code that this version does not know.")


def reason(code: str) -> Reason:
    """The entry of a code. A record may hold one of another version, which has an entry that says so."""
    found = known(code.partition(":")[0], None)
    return _UNKNOWN if found is None else REASONS[found]


def reason_text(code: str) -> str:
    """Say what a reason code means, for people."""
    return reason(code).text


def arising(*places: Place) -> frozenset[Code]:
    """Codes that can arise at any of the places."""
    return frozenset(code for code, entry in REASONS.items() if set(places) & set(entry.places))
