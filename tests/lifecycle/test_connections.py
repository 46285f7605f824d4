"""A connection that died between two legs is opened anew before the next."""

from __future__ import annotations

import contextlib

import pytest

from glasshouse.codes import Code
from glasshouse.errors import HostKeyMismatch, LegError, OutcomeUnknown, RemoteError, RentalOver
from glasshouse.lifecycle.follow import on_live_connection, reconnect
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


@pytest.mark.parametrize(
    ("errors", "rounds"),
    [
        ([RemoteError("no answer"), OutcomeUnknown("cut")], 3),
        ([RemoteError("no answer")] * 3, 3),
        ([HostKeyMismatch("another key")], 1),  # a stranger is asked once
        ([RentalOver()], 1),
    ],
)
def test_a_pod_is_reached_again_in_rounds_and_a_stranger_is_not(
    pod: Pod, errors: list[RemoteError], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, asked, said = list(errors), [], []

    def answer() -> None:
        asked.append(1)
        if left:
            raise left.pop(0)

    monkeypatch.setattr(pod, "reconnect", answer)
    if isinstance(errors[0], RentalOver):
        with pytest.raises(RentalOver):
            reconnect(pod, said.append)
    elif len(errors) == rounds:
        with pytest.raises(LegError) as error:
            reconnect(pod, said.append)
        stranger = isinstance(errors[0], HostKeyMismatch)
        assert error.value.code == (Code.HOST_KEY_MISMATCH if stranger else Code.POD_UNREACHABLE)
    else:
        reconnect(pod, said.append)
    assert len(asked) == rounds
    assert said == ["connection lost; the leg goes on, reconnecting"]
