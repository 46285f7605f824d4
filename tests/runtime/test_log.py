"""What is kept of a leg's log: its beginning, its end, and how much lay between."""

from __future__ import annotations

import os
import threading

from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime.leg import LOG_HEAD_BYTES, LOG_TAIL_BYTES, KeptLog, drain_log


@given(parts=st.lists(st.binary(max_size=30), max_size=20), head=st.integers(0, 40), tail=st.integers(1, 40))
def test_head_and_tail_are_kept_however_it_comes(parts: list[bytes], head: int, tail: int) -> None:
    log = KeptLog(head, tail)
    for part in parts:
        log.feed(part)
    whole = b"".join(parts)
    left_out = len(whole) - head - tail
    if left_out <= 0:
        assert log.text() == whole
    else:
        line = f"\n[{left_out} bytes of the log were left out here]\n".encode()
        assert log.text() == whole[:head] + line + whole[-tail:]


def test_an_empty_log_is_none() -> None:
    log = KeptLog()
    assert not log
    log.feed(b"x")
    assert log


def test_the_end_of_a_long_job_is_there() -> None:
    read_end, write_end = os.pipe()
    log = KeptLog()
    drain = threading.Thread(target=drain_log, args=(read_end, log))
    drain.start()
    with os.fdopen(write_end, "wb") as out:
        for step in range(400_000):
            out.write(b"step %d of many\n" % step)
        out.write(b"Traceback: the reason\n")
    drain.join()
    text = log.text()
    assert text.startswith(b"step 0 of many\n")
    assert text.endswith(b"step 399999 of many\nTraceback: the reason\n")
    assert b" bytes of the log were left out here]\n" in text
    assert len(text) < LOG_HEAD_BYTES + LOG_TAIL_BYTES + 100
