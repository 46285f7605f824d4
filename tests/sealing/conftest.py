"""One sealed package a module, and the regions that opening it maps."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.sealing import container
from tests.sealing.tampering import Sealed


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return Sealed(tmp_path_factory.mktemp("sealed") / "package")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tampered") / "package"


@pytest.fixture(scope="module")
def regions() -> Iterator[list[mmap.mmap]]:
    """Every region that opening maps, for a look afterwards; the mapping itself is the real one."""
    seen: list[mmap.mmap] = []
    real = container.private_region

    def remember(size: int) -> mmap.mmap:
        seen.append(real(size))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "private_region", remember)
        yield seen
