from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compose from a folder that is not the checkout; what Hydra drops would show there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
