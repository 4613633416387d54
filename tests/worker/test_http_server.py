"""The endpoints' server has few threads, and clients that hang or send much keep nobody out."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spanloom.engine.limits import MAX_ENDPOINT_CONNECTIONS, MAX_ENDPOINT_REQUEST_BYTES
from spanloom.worker.process import http_server
from spanloom.worker.process.http_server import HttpServer


@pytest.fixture
def server() -> Iterator[HttpServer]:
    made = HttpServer("127.0.0.1", 0, {"/healthz": lambda: (200, "text/plain", b"alive\n")})
    thread = threading.Thread(target=lambda: made.serve_forever(poll_interval=0.02))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def connected(server: HttpServer, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    if sent:
        client.sendall(sent)
    return client


def answer(server: HttpServer, sent: bytes = b"GET /healthz HTTP/1.0\r\n\r\n") -> bytes:
    with connected(server, sent) as client, client.makefile("rb") as received:
        return received.read()


def test_clients_that_hang_do_not_keep_others_out(server: HttpServer) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        hanging = [stack.enter_context(connected(server, b"GET /hea")) for _ in range(3 * MAX_ENDPOINT_CONNECTIONS)]

        assert answer(server).endswith(b"alive\n")

        assert server.connections <= MAX_ENDPOINT_CONNECTIONS
        assert threading.active_count() - before <= MAX_ENDPOINT_CONNECTIONS + 1
        assert hanging[0].recv(100) == b"", "the oldest one is ended"


def test_a_client_that_sends_a_byte_now_and_then_is_ended(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_ENDPOINT_SECONDS", 0.2)
    with connected(server) as client, pytest.raises(ConnectionError):
        while True:  # each byte comes well within a time limit of one read
            client.sendall(b"x")
            time.sleep(0.02)


def test_no_more_of_a_request_is_read_than_its_bound(server: HttpServer) -> None:
    long = b"GET /healthz HTTP/1.0\r\n" + b"".join(b"h%d: %s\r\n" % (n, b"x" * 1_000) for n in range(50))
    with connected(server, long) as client, client.makefile("rb") as received:
        assert received.readline().startswith(b"HTTP/1.0 200")  # answered before the head has ended
    assert answer(server, b"GET /" + b"x" * (2 * MAX_ENDPOINT_REQUEST_BYTES)) == b""


def test_accepting_pauses_while_no_descriptor_is_free(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    calls: list[int] = []
    accept = server.socket.accept

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(listening, name)

        def accept(self) -> tuple[socket.socket, object]:
            calls.append(1)
            if len(calls) <= 3:
                failed.set()
                raise OSError(errno.EMFILE, "too many open files")
            return accept()

    listening = server.socket
    pauses: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(http_server.time, "sleep", lambda seconds: (pauses.append(seconds), sleep(0.01)))
    monkeypatch.setattr(server, "socket", Failing())

    assert answer(server).endswith(b"alive\n")

    assert failed.is_set()
    assert pauses == [0.25] * 3
