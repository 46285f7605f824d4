"""What a padded container is filled up to: one of few sizes, which say little about its content.

Padmé (Nikitin, Barman, Lueks, Underwood, Hubaux, Ford: Reducing Metadata Leakage from Encrypted Files and
Communication with PURBs, PoPETs 2019(4), section 4, doi:10.2478/popets-2019-0056) allows the sizes that are
floating-point numbers with a mantissa no longer than their exponent. Of all sizes up to M bytes, O(log log M)
bits are told. Below a floor all sizes are one; above it at most 3.2 % are added (12 % without one).

How much padding a container has follows from the rest of it and is written down nowhere: none can be wrong.
"""

from __future__ import annotations

from glasshouse.sealing.layout import TAG, SealedObject

FLOOR = 64 << 10  # bytes of the smallest padded container
MANIFEST_FLOOR = 4 << 10  # of the smallest padded manifest, whose size stands in the header


def padme(size: int) -> int:
    """Return the least size of Padmé's that is not below `size` bytes."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    free = exponent - exponent.bit_length()  # how many last bits have to be zero; none of small sizes
    mask = (1 << max(free, 0)) - 1
    return (size + mask) & ~mask


def padded_manifest(text: bytes) -> bytes:
    """Return a manifest, followed by zero bytes up to a padded size."""
    return text.ljust(padme(max(len(text), MANIFEST_FLOOR)), b"\0")


def manifest_text(padded: bytes) -> bytes | None:
    """Undo `padded_manifest`; None where that did not make these bytes."""
    text = padded.rstrip(b"\0")
    return text if padded_manifest(text) == padded else None


def padding_objects(first: int, nbytes: int, chunk_bytes: int) -> tuple[SealedObject, ...]:
    """Describe what fills up a container of `nbytes` bytes: zeros, in objects of one chunk each.

    `first`: index of the first of them. There is always one: with its tag the content's end cannot be moved.
    """
    room = padme(max(nbytes + TAG, FLOOR)) - nbytes
    count = -(-room // (chunk_bytes + TAG))
    size, longer = divmod(room - TAG * count, count)
    return tuple(
        SealedObject("padding", first + at, "", "", (), size + (at < longer), chunk_bytes)
        for at in range(count)
    )
