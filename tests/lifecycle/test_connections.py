"""A connection that died between two legs is opened anew before the next."""

from __future__ import annotations

import contextlib

import pytest

from glasshouse.errors import OutcomeUnknown
from glasshouse.lifecycle.follow import on_live_connection
from glasshouse.remote.pod import Pod


def test_a_forward_and_a_file_on_a_connection_that_died_since(pod: Pod) -> None:
    said: list[str] = []
    pod.drop_transport()
    with contextlib.ExitStack() as until:
        port = on_live_connection(
            pod, lambda: until.enter_context(pod.forward_remote(9)), lambda: said.append("lost")
        )
        assert 0 < port < 65536
        assert said == ["lost"]
        on_live_connection(pod, lambda: pod.put(b"text", "file"), lambda: said.append("again"))
        assert said == ["lost"]
    pod.drop_transport()
    on_live_connection(pod, lambda: pod.put(b"text", "other"), lambda: said.append("again"))
    assert said == ["lost", "again"]


def test_what_fails_on_the_new_connection_too_is_said(pod: Pod) -> None:
    def dies() -> None:
        pod.drop_transport()
        pod.run(["true"])

    with pytest.raises(OutcomeUnknown):
        on_live_connection(pod, dies, lambda: None)
