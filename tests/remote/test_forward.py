"""The pod reaches a port here, and only while it is let."""

from __future__ import annotations

import http.server
import socketserver
import threading
from collections.abc import Iterator

import pytest

from glasshouse.remote.forward import MAX_CONNECTIONS
from glasshouse.remote.pod import Pod

CLIENT = """
import hashlib, http.client, os, sys
from concurrent.futures import ThreadPoolExecutor
port, count, size = map(int, sys.argv[1:])
def post(number):
    body = os.urandom(size)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/echo", body=body)
    answer = connection.getresponse()
    back = answer.read()
    connection.close()
    return answer.status == 200 and back == body[::-1]
with ThreadPoolExecutor(count) as pool:
    print(sum(pool.map(post, range(count))))
"""

KNOCK = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).close()
except OSError:
    sys.exit(7)
"""

HOLD = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as held:
    try:
        held.recv(1)
    except ConnectionResetError:
        pass  # as good an end as any
"""


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))[::-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def carried(pod: Pod, port: int, count: int, size: int) -> int:
    result = pod.run([pod.endpoint.python, "-I", "-c", CLIENT, str(port), str(count), str(size)])
    assert result.exit == 0, result.stderr
    return int(result.stdout)


def test_http_goes_both_ways_concurrently(pod: Pod, web_port: int) -> None:
    with pod.forward_remote(web_port) as port:
        assert carried(pod, port, 1, 10) == 1
        assert carried(pod, port, 10, 600_000) == 10


def test_the_port_closes_with_the_forward_and_no_thread_stays(pod: Pod, web_port: int) -> None:
    with pod.forward_remote(web_port) as port:
        knock = [pod.endpoint.python, "-I", "-c", KNOCK, str(port)]
        assert pod.run(knock).exit == 0
    assert pod.run(knock).exit == 7
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("forward")] == []


def test_a_forward_can_be_opened_again(pod: Pod, web_port: int) -> None:
    for _ in range(2):
        with pod.forward_remote(web_port) as port:
            assert carried(pod, port, 2, 1000) == 2


def test_a_connection_still_open_at_the_end_is_closed(pod: Pod, web_port: int) -> None:
    with pod.forward_remote(web_port) as port:
        thread = threading.Thread(
            target=lambda: ended.append(pod.run([pod.endpoint.python, "-I", "-c", HOLD, str(port)]).exit)
        )
        ended: list[int] = []
        thread.start()
        thread.join(0.7)
        assert thread.is_alive()
    thread.join(5)
    assert ended == [0]


def test_nobody_listening_here_ends_the_connection_there(pod: Pod) -> None:
    with pod.forward_remote(1) as port:
        read = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1))"
        assert pod.run([pod.endpoint.python, "-I", "-c", read, str(port)]).stdout == b"b''\n"


MANY = """
import socket, sys, time
port, count = map(int, sys.argv[1:])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
for sock in held:
    sock.sendall(b"slow")
print(sum(sock.recv(100) == b"begun: first line|slow" and sock.recv(1) == b"" for sock in held))
# Not one of them is closed here before the next ones come; what was carried takes a moment to be cleared.
served = 0
for tries in range(1200):
    late = socket.create_connection(("127.0.0.1", port))
    held.append(late)
    try:
        late.sendall(b"late")
        served += late.recv(100) == b"begun: first line|late"
    except OSError:
        pass
    if served == count:
        break
    time.sleep(0.05 * (tries > count))
print(served)
"""


def test_each_connection_begins_with_what_it_is_given_and_one_held_open_holds_no_place(pod: Pod) -> None:
    """Whoever is asked here answers and closes; a pod that keeps its own end open keeps nobody out."""

    class Asked(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            said = b""
            while len(said) < len(b"first line|slow"):
                said += self.request.recv(100)
            self.request.sendall(b"begun: " + said)

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 2 * MAX_CONNECTIONS  # with five, connections made at once are reset

    with Server(("127.0.0.1", 0), Asked) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            with pod.forward_remote(server.server_address[1], b"first line|") as port:
                argv = [pod.endpoint.python, "-I", "-c", MANY, str(port), str(MAX_CONNECTIONS)]
                result = pod.run(argv, timeout=60)
        finally:
            server.shutdown()
            thread.join()
    assert result.stdout.split() == [b"%d" % MAX_CONNECTIONS] * 2, result.stderr


def test_leaving_after_a_dropped_connection_is_quiet(pod: Pod, web_port: int) -> None:
    with pod.forward_remote(web_port) as port:
        assert carried(pod, port, 1, 10) == 1
        pod.drop_transport()
    pod.reconnect()
    with pod.forward_remote(web_port) as port:
        assert carried(pod, port, 1, 10) == 1
