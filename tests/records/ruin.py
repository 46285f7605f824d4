"""Reading a bundle's files to ruin them, and verifying what must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.errors import VerificationError
from glasshouse.records.keys import Keyring
from glasshouse.records.verify import verify

from .conftest import Made


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(made: Made, folder: Path, keyring: Keyring | None = None) -> dict[str, str]:
    """Failed checks by code, of a verification that must fail."""
    found = verify(folder, made.factory.keyring if keyring is None else keyring)
    assert (found.ok, found.status, found.overhead_pct, found.row) == (False, None, None, None)
    with pytest.raises(VerificationError) as caught:
        found.require()
    assert set(caught.value.codes) == {check.code for check in found.checks if not check.ok}
    return {check.code: check.detail for check in found.checks if not check.ok}
