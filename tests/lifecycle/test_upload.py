"""The package reaches the pod whole, also over a connection that dies on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glasshouse.errors import OutcomeUnknown
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.setup import UPLOAD, upload
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod

SIZE = 24_000_000


class Cutting(Screen):
    """Cuts the pod's connection when it is told of progress, `times` times."""

    def __init__(self, pod: Pod, times: int) -> None:
        super().__init__(quiet=True)
        self._pod = pod
        self._left = times
        self.warned: list[str] = []
        self.told: list[str] = []

    def progress(self, text: str, *, plain: bool = True) -> None:
        self.told.append(text)
        if self._left and self._pod.connected:
            self._left -= 1
            self._pod.drop_transport()

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_it_goes_on_from_what_arrived(endpoint: Endpoint, tmp_path: Path) -> None:
    source, target = tmp_path / "package", Path(endpoint.workdir) / "pod" / "package"
    source.write_bytes(os.urandom(SIZE))
    with Pod(endpoint) as pod:
        screen = Cutting(pod, 1)
        upload(pod, source, str(target), screen)
    assert target.read_bytes() == source.read_bytes()
    assert len(screen.warned) == 1
    assert screen.told[-1] == "uploading 24 of 24 MB"


def test_it_gives_up_in_the_end(endpoint: Endpoint, tmp_path: Path) -> None:
    source, target = tmp_path / "package", Path(endpoint.workdir) / "pod" / "package"
    source.write_bytes(os.urandom(SIZE))
    with Pod(endpoint) as pod:
        screen = Cutting(pod, UPLOAD.tries)
        with pytest.raises(OutcomeUnknown):
            upload(pod, source, str(target), screen)
    assert len(screen.warned) == UPLOAD.tries - 1
    assert not target.exists()
