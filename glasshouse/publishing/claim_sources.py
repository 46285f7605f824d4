"""Who says what each claim of a row's evidence was held against, by the reference values in its bundle."""

from __future__ import annotations

from pathlib import Path

from glasshouse import host
from glasshouse.attestation.claims import Reference, claim_sources
from glasshouse.canonical import parse_canonical
from glasshouse.errors import GlasshouseError

MAX_REFERENCE_BYTES = 64 << 10
# From the weakest: where launches of one row differ, the row is shown with the weaker one.
SOURCES = {
    "self-reported": "Software on the pod alone: nobody else said what is right, or it is one fixed value",
    "provider-declared": "What the provider said",
    "controller-observed": "What the controller saw or chose itself",
    "broker": "What the broker chose, or computed from the evidence itself",
}

Sourced = tuple[tuple[str, tuple[str, ...]], ...]


def read_claim_sources(bundle: Path) -> Sourced:
    """(source, its claims) of a bundle's protected launches, the weakest first; empty without any."""
    order = list(SOURCES)
    weakest: dict[str, str] = {}
    for path in sorted(bundle.glob("legs/*/reference.json")):
        try:
            reference = Reference.from_dict(parse_canonical(host.read_regular(path, MAX_REFERENCE_BYTES)))
        except (OSError, GlasshouseError, TypeError, ValueError, KeyError):
            continue  # what is wrong with it, verification says
        for claim, source in claim_sources(reference).items():
            known = source if source in SOURCES else "self-reported"  # a local row's may be a stranger's file
            weakest[claim] = min(weakest.get(claim, known), known, key=order.index)
    return tuple(
        (source, claims)
        for source in order
        if (claims := tuple(claim for claim, said in weakest.items() if said == source))
    )
