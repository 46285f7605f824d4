"""Memory that may hold plaintext is overwritten whole, on one core or on several."""

from __future__ import annotations

import threading

import pytest

from glasshouse.sealing import memory
from glasshouse.sealing.memory import overwrite

PART = 4096


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART + 17])
def test_all_of_a_buffer_is_overwritten_and_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch, threads: int, size: int
) -> None:
    monkeypatch.setattr(memory, "_PART", PART)
    around = bytearray(b"\xa5" * (size + 64))
    assert overwrite(memoryview(around)[32 : 32 + size], threads)
    assert around == b"\xa5" * 32 + bytes(size) + b"\xa5" * 32


def test_where_no_thread_is_to_be_had_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(memory, "_PART", PART)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    buffer = bytearray(b"\xa5" * (3 * PART))
    assert overwrite(buffer, threads=2)
    assert not any(buffer)
