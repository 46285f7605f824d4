"""Initial weights that a generator makes: made once a run, kept in a file without a name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator

from glasshouse.sealing.layout import TensorSpec

Making = Callable[[], Iterator[tuple[TensorSpec, memoryview]]]


class MadeWeights:
    """What `make` yields, one tensor at a time, so that memory holds one however many there are.

    Sealing goes through them twice and a raw arm once more. The file lies in this machine's temporary
    folder, open to its user alone, and is gone with the last view of it.
    """

    def __init__(self, make: Making) -> None:
        self._make: Making | None = make
        self._specs: list[tuple[TensorSpec, int]] = []
        self._view = memoryview(b"")

    def make(self, check: Callable[[], None] = lambda: None) -> None:
        """Make them now, if they are not: seconds for a large model. Raises OSError for want of room.

        check: called before each tensor; what it raises ends the making, and nothing is kept.
        """
        if self._make is None:
            return
        place, specs = 0, []
        with tempfile.TemporaryFile(prefix="glasshouse-weights-") as file:
            for spec, view in self._make():
                check()
                specs.append((spec, place))
                place += file.write(view)
            file.flush()
            if place:
                self._view = memoryview(mmap.mmap(file.fileno(), place, prot=mmap.PROT_READ))
        self._specs, self._make = specs, None

    def __iter__(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        """Yield (spec, read-only bytes)."""
        self.make()
        for spec, place in self._specs:
            yield spec, self._view[place : place + spec.nbytes]
