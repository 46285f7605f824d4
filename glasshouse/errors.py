"""One exception tree. Every error a person can cause or meet is one line: what, field, remedy.

    GlasshouseError             exit 1
    ├── UsageError              exit 2   a bad word on the command line, a bad value in a config
    ├── ProviderError           exit 3   a provider refused, failed, or had no capacity
    │   └── RemoteError         exit 3   the pod could not be reached, or answered wrongly
    │       ├── HostKeyMismatch exit 3   the host that answers is not the one whose key is known
    │       ├── NoRoom          exit 3   this machine's disk has no room for what is to be fetched
    │       ├── OutcomeUnknown  exit 3   the transport died: what ran there may have finished
    │       └── RentalOver      exit 3   the time budgeted for the rental has passed
    ├── CleanupNotProven        exit 4   something of ours may still be running
    ├── LegError                exit 1   a leg ran and failed; carries a reason code
    ├── SealError               exit 1   a sealed container or grant did not open
    ├── AttestationError        exit 1   evidence, token or exchange refused; carries every reason code
    └── VerificationError       exit 1   a bundle, artifact or ledger did not verify; carries every failure

An error that a record or a page explains has a reason code (codes.py): `code`, None where there is none.

This module is part of the archive that runs on the pod: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from glasshouse.codes import Code, known


class GlasshouseError(Exception):
    """Base of all errors raised on purpose.

    `what` says what is wrong, `field` and `value` name where, `remedy` says what to do, `code` is the reason
    code under which a record or a page explains it. None of them may ever hold a secret: messages reach
    terminals, logs and records.
    """

    exit_code = 1
    code: Code | None = None

    def __init__(
        self,
        what: str,
        *,
        field: str | None = None,
        value: object = None,
        remedy: str = "",
        code: Code | None = None,
    ) -> None:
        if code is not None:
            self.code = code
        self.what = what
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(self.line())

    def line(self) -> str:
        """Return the console line, without the leading `error: `.

        Where no field is at fault, the code stands in its place. Control characters are replaced: some
        of what is quoted comes from a pod or a site.
        """
        where = "" if self.code is None else f" (code={self.code})"
        if self.field is not None:
            where = f" ({self.field}={self.value})"
        tail = f": {self.remedy}" if self.remedy else ""
        return one_line(f"{self.what}{where}{tail}")


class UsageError(GlasshouseError):
    """A bad word on the command line or a bad value in a config; nothing was started."""

    exit_code = 2


class ProviderError(GlasshouseError):
    """The provider refused, failed, or had nothing to rent."""

    exit_code = 3


class RemoteError(ProviderError):
    """The pod could not be reached, or answered wrongly."""


class HostKeyMismatch(RemoteError):
    """The host showed a key that is not known to be its own: trying again would ask the same stranger."""

    code: Code = Code.HOST_KEY_MISMATCH


class NoRoom(RemoteError):
    """This machine's disk has no room for what is to be fetched: the pod has done nothing wrong."""

    code: Code = Code.NO_ROOM_AT_HOME


class OutcomeUnknown(RemoteError):
    """The transport died while a command ran: it may have finished, failed, or still run."""


class RentalOver(RemoteError):
    """The time that was budgeted for the rental has passed: nothing more is done on the machine."""

    code: Code = Code.RENTAL_DEADLINE

    def __init__(self) -> None:
        super().__init__(
            "the time that was budgeted for the rental has passed",
            remedy="raise measure.leg_deadline_extra_sec, or send less; `glasshouse plan` says the ceiling",
        )


class CleanupNotProven(GlasshouseError):
    """Something of ours may still exist at the provider."""

    exit_code = 4


class LegError(GlasshouseError):
    """A leg started and did not end well; `code` is the reason code for the record.

    What a pod gives as a code and is none is a fault without a code of its own: runtime-error.
    """

    code: Code

    def __init__(self, what: str, *, code: str, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy, code=known(code, Code.RUNTIME_ERROR))


class _WithCodes(GlasshouseError):
    """Carries every reason; each may name what it is about behind a colon. `code` is the first."""

    def __init__(self, what: str, *, codes: Sequence[str], remedy: str = "") -> None:
        self.codes = tuple(codes)
        first = known(self.codes[0].partition(":")[0], None) if self.codes else None
        super().__init__(what, field="failed", value=",".join(self.codes), remedy=remedy, code=first)


class SealError(_WithCodes):
    """A sealed container or a wrapped key did not open."""


class AttestationError(_WithCodes):
    """Evidence, a token or an exchange was refused; `codes` lists every failed check."""


class VerificationError(_WithCodes):
    """A bundle, artifact or ledger did not verify; `codes` lists every failure."""


def unexpected(error: BaseException) -> str:
    """One line on a fault that was not foreseen, where it must not end what goes on beside it."""
    return one_line(f"unexpected {type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows and does not obey."""
    return harmless(" ".join(text.split()))


def harmless(text: str, keep: str = "") -> str:
    """`text` with U+FFFD in place of what no terminal prints, but for the characters `keep`.

    Some of what we say comes from a pod or a site: escape sequences, C1 controls and marks that turn the
    direction of writing would let it say something else, or reach the clipboard.
    """
    return "".join(char if char.isprintable() or char in keep else "\ufffd" for char in text)
