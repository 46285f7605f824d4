"""The warm-up of a run that measures, and how it is undone: what is returned was trained by what is measured.

A session with state() and restore() (session.py) is put back to what it began with, of which a copy is held
meanwhile, each tensor's where the tensor lies, and with it the process's random states (randomness.py), which
its state need not name. Of any other a second one is built from the same files, once
the first is overwritten. Either way a digest says whether the measured stretch begins where the leg began.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Self

from glasshouse.canonical import canonical_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import randomness
from glasshouse.runtime.session import Session, Tensor, restorable
from glasshouse.runtime.wipe import Places, overwrite_staging, overwrite_tensors

Digest = Callable[[Mapping[str, Tensor]], str]


class Beginning:
    """A session, and what it began with.

    It is to hold the only reference to the session while that warms up: a second one may need its memory.
    make: builds another from the same files. digest: of named tensors, salted. kept: host memory that is not
    the session's own to overwrite, such as the package that both are built from.
    """

    def __init__(
        self, session: Session, make: Callable[[], Session], digest: Digest, kept: Places = ()
    ) -> None:
        self.session: Session | None = session
        self._make, self._of, self._kept = make, digest, kept
        self._tensors: dict[str, Tensor] = {}
        self._values: dict[str, Any] = {}
        self._random: dict[str, Any] = {}
        self._digest = _digest(session, digest)
        if restorable(session):
            tensors, values = session.state()
            self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            self._values = dict(values)
            self._random = randomness.taken()

    def undone(self) -> Session:
        """Return a session that stands where the first began; the copy, or the first session, is overwritten.

        Raises LegError(Code.WARMUP_NOT_UNDONE) where it does not stand there, or zeros are not read back.
        """
        session, self.session = self.session, None
        assert session is not None
        if restorable(session):
            session.restore(self._tensors, self._values)
            randomness.put_back(self._random)
            self._wiped([])
        else:
            self._wiped(held_by(session))
            del session
            gc.collect()  # a model and its hooks go round in circles, and hold a device's memory
            session = self._make()
        now = randomness.taken() if self._random else {}
        drawn = any(now.get(name) != state for name, state in self._random.items())
        if drawn or _digest(session, self._of) != self._digest:
            raise LegError("the warm-up could not be undone", code=Code.WARMUP_NOT_UNDONE)
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Overwrite the copy, however the warm-up ended."""
        self._wiped([])

    def _wiped(self, tensors: list[Tensor]) -> None:
        found = overwrite_tensors([*tensors, *self._tensors.values()], self._kept)
        if tensors or self._tensors:
            overwrite_staging()
        self._tensors = {}
        if not all(part.read_back_zero for part in found.values()):
            raise LegError("the warm-up's memory was not read back as zero", code=Code.WARMUP_NOT_UNDONE)


def held_by(session: Session) -> list[Tensor]:
    """Every tensor that a session names: what is trained, its buffers, its data."""
    given = session.given() if hasattr(session, "given") else {}
    return [*session.trainable().values(), *session.buffers(), *given.values()]


def _digest(session: Session, of: Digest) -> str:
    """Digest of all that training goes on from, as far as the session tells it.

    The data are looked at of a session without a state alone: they are drawn anew with it, else they stay.
    """
    tensors: dict[str, Tensor] = dict(session.trainable())
    values: Mapping[str, Any] = {}
    if restorable(session):
        state, values = session.state()
        tensors |= {f"state.{name}": tensor for name, tensor in state.items() if not _is_in(tensor, tensors)}
    elif hasattr(session, "given"):
        tensors |= {f"given.{name}": tensor for name, tensor in session.given().items()}
    stated = hashlib.sha256(canonical_json(dict(values))).hexdigest()
    return of(tensors) + stated


def _is_in(tensor: Tensor, others: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is one of these, seen again: a model's weights are read and hashed once."""
    return any(
        tensor.device == other.device
        and tensor.data_ptr() == other.data_ptr()
        and (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
        for other in others.values()
    )
