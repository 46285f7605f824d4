"""A fake provider inside the client's process: httpx's own seam, no socket, and the fake's clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import httpx

from glasshouse.providers.fakes.clock import LivingClock
from glasshouse.providers.fakes.service import FakeService, Wire

LATENCY_SEC: Final = 0.2  # of every request; half of it on the way there


class FakeTransport(httpx.BaseTransport):
    """Answers the requests of one httpx client, as the wire would, time-outs included."""

    def __init__(self, service: FakeService) -> None:
        self._service = service

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request. Raises what httpx raises for a time-out and for a cut connection."""
        service, clock = self._service, self._service.cloud.clock
        timeout = float(request.extensions["timeout"]["read"])
        clock.sleep(LATENCY_SEC / 2)
        answer = service.answer(
            request.method,
            request.url.raw_path.decode("ascii"),
            request.headers.get("authorization", ""),
            request.read(),
        )
        clock.sleep(min(LATENCY_SEC / 2 + answer.delay, timeout))
        if answer.delay >= timeout:
            raise httpx.ReadTimeout("nothing came", request=request)
        if answer.cut:
            raise httpx.RemoteProtocolError("the connection was cut", request=request)
        wire = service.wire(answer)
        return httpx.Response(wire.status, headers=wire.headers, stream=_Body(clock, wire))


class _Body(httpx.SyncByteStream):
    def __init__(self, clock: LivingClock, wire: Wire) -> None:
        self._clock, self._wire = clock, wire

    def __iter__(self) -> Iterator[bytes]:
        for wait, piece in self._wire.pieces:
            self._clock.sleep(wait)
            yield piece
