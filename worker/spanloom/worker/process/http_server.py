"""The HTTP server of a worker's endpoints: few threads, and bounds on a request's size and time."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast

import structlog

from spanloom.engine.limits import MAX_ENDPOINT_CONNECTIONS, MAX_ENDPOINT_REQUEST_BYTES, MAX_ENDPOINT_SECONDS

__all__ = ["Answer", "HttpServer"]

_log = structlog.get_logger("spanloom.worker")
_PAUSE_SECONDS = 0.25  # after accept() failed: while no descriptor is free it fails at once, again and again
_PLACE_SECONDS = 1.0  # until the thread of a connection that was ended has ended

Answer = tuple[int, str, bytes]  #: status, content type, body


class HttpServer(ThreadingHTTPServer):
    """A server of GET requests, each on a thread of its own, of MAX_ENDPOINT_CONNECTIONS at most.

    A further connection takes the place of the oldest, so that clients that hang don't keep others out.
    """

    daemon_threads = True
    block_on_close = False  # a client that hangs must not keep a worker that stops
    request_queue_size = 2 * MAX_ENDPOINT_CONNECTIONS

    def __init__(self, host: str, port: int, paths: dict[str, Callable[[], Answer]]) -> None:
        """Bind the port. Raises OSError."""
        self.paths = paths
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._changed = threading.Condition()
        self._since: dict[Any, float] = {}  # open connections, the oldest first
        self._failing = False
        super().__init__((host, port), _Handler)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._since)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own resolves the host's name, which may take long

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; pause after a failure."""
        try:
            accepted = super().get_request()
        except OSError as error:
            if not self._failing:
                _log.warning("endpoints_cant_accept", error=str(error))
            self._failing = True
            time.sleep(_PAUSE_SECONDS)
            raise
        self._failing = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread. The oldest one is ended if there are too many."""
        with self._changed:
            if len(self._since) >= MAX_ENDPOINT_CONNECTIONS:
                _end(next(iter(self._since)))
                self._changed.wait_for(lambda: len(self._since) < MAX_ENDPOINT_CONNECTIONS, timeout=_PLACE_SECONDS)
            if len(self._since) < MAX_ENDPOINT_CONNECTIONS:
                self._since[request] = time.monotonic()
                super().process_request(request, client_address)
                return
        self.shutdown_request(request)  # all are being answered

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._since.pop(request, None)
            self._changed.notify_all()

    def service_actions(self) -> None:
        """End the connections that are too old: a client may send a byte now and then."""
        with self._changed:
            for request, since in tuple(self._since.items()):
                if time.monotonic() - since < MAX_ENDPOINT_SECONDS:
                    break
                _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug(
            "endpoint_failed", client=str(client_address), error=repr(sys.exception())
        )  # most often a client that left


def _end(request: socket.socket) -> None:
    """End a connection; the thread that reads from it ends then."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended


class _LimitedReader:
    """The head of a request, of MAX_ENDPOINT_REQUEST_BYTES at most. A line that is not whole is not read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MAX_ENDPOINT_REQUEST_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._stream.readline(self._left if limit < 0 else min(limit, self._left))
        self._left -= len(line)
        return line if line.endswith(b"\n") else b""

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    server_version = "spanloom"
    sys_version = ""
    timeout = MAX_ENDPOINT_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile = cast(Any, _LimitedReader(cast(BinaryIO, self.rfile)))

    def do_GET(self) -> None:
        """Answer one request."""
        answer = cast(HttpServer, self.server).paths.get(self.path.partition("?")[0])
        if answer is None:
            status, kind, body = 404, "text/plain; charset=utf-8", b"/metrics, /healthz, /readyz\n"
        else:
            status, kind, body = answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""
