"""Labels of keys: what a person is shown beside a fingerprint, so no two machines' may read alike.

A label is plain ASCII. Two are the same to a reader when what is left of them is, without case, spaces and
signs, and with letters and digits that look alike taken for one another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from glasshouse.errors import UsageError

_FORM: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 .,'()+&/_\-]{0,78}[A-Za-z0-9.)])?")
_ALIKE: Final = (("rn", "m"), ("vv", "w"), ("cl", "d"))
_SAME: Final = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "2": "z", "8": "b"})
_OURS: Final = re.compile(r"(?:this|these|local|glasshouse(?:ledger)?)\b", re.IGNORECASE)


def skeleton(label: str) -> str:
    """What a reader tells a label by."""
    text = unicodedata.normalize("NFKD", label).casefold()
    text = "".join(char for char in text if char.isascii() and char.isalnum())
    # The day in a date is no look-alike of a letter: numbers stay, letters among digits do not.
    words = re.findall(r"[0-9]{2,}|(?:[a-z]|[0-9](?![0-9]))+", text)
    said = "".join(word if word.isdigit() and len(word) > 1 else word.translate(_SAME) for word in words)
    for pair, one in _ALIKE:
        said = said.replace(pair, one)
    return said


def require_label(label: str, field: str, taken: Iterable[str]) -> str:
    """Return a label that no reader takes for one of `taken`; UsageError names what another is like."""
    if _FORM.fullmatch(label) is None or "  " in label:
        raise UsageError(
            "not a label", field=field, value=ascii(label[:80]),
            remedy="give 1 to 80 letters, digits, single spaces and . , ' ( ) + & / _ -, a letter first",
        )  # fmt: skip
    if _OURS.match(label) and not label.lower().startswith("glasshouse "):
        raise UsageError(
            "a label that begins so reads as if the program said it", field=field, value=label,
            remedy="give the name of the machine or of who keeps it",
        )  # fmt: skip
    for other in taken:
        if skeleton(other) == skeleton(label):
            raise UsageError(
                "another machine's keys have that label, or one that reads like it",
                field=field,
                value=label,
                remedy=f"give one that nobody takes for {other!a}",
            )
    return label
