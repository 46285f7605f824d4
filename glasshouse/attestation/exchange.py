"""The record of one finished exchange, as the broker keeps it and as the bundle holds it (exchange.json)."""

from __future__ import annotations

from dataclasses import dataclass

from glasshouse.codes import Code
from glasshouse.errors import AttestationError

_TEXTS = {
    "ticketSha256": "ticket_sha256",
    "challenge": "challenge",
    "launchToken": "launch_token",
    "evidence": "evidence",
    "ear": "ear",
}


@dataclass(frozen=True)
class Exchange:
    """Every token of an exchange; when it was refused, grant is None and reason_codes is not empty.

    Nothing in it is secret: the key in the grant opens only with the KEM key, which never leaves the pod.
    """

    ticket_sha256: str
    challenge: str
    launch_token: str
    evidence: str
    ear: str
    grant: str | None = None
    reason_codes: tuple[str, ...] = ()

    @property
    def event_name(self) -> str:
        """How the audit log names its end."""
        return "exchange-refused" if self.grant is None else "grant-issued"

    def to_json(self) -> dict[str, str | list[str] | None]:
        """As exchange.json spells it."""
        texts = {name: str(getattr(self, attribute)) for name, attribute in _TEXTS.items()}
        return {**texts, "grant": self.grant, "reasonCodes": list(self.reason_codes)}

    @classmethod
    def from_json(cls, value: object) -> Exchange:
        """Inverse of to_json. Raises AttestationError `malformed-answer` for anything else."""
        if isinstance(value, dict) and set(value) == {*_TEXTS, "grant", "reasonCodes"}:
            texts = {attribute: value[name] for name, attribute in _TEXTS.items()}
            grant, codes = value["grant"], value["reasonCodes"]
            if (
                all(isinstance(text, str) for text in texts.values())
                and (grant is None or isinstance(grant, str))
                and isinstance(codes, list)
                and all(isinstance(code, str) for code in codes)
            ):
                return cls(**texts, grant=grant, reason_codes=tuple(codes))
        raise AttestationError("the record of an exchange is not of its form", codes=[Code.MALFORMED_ANSWER])
