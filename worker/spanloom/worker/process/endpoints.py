"""The worker's HTTP endpoints: `/metrics` for Prometheus, `/healthz` and `/readyz` for process managers."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, cast

import structlog

from spanloom.engine.errors import ConfigurationError
from spanloom.worker.process.health import Health

__all__ = ["Endpoints", "Listen", "check_free"]

_log = structlog.get_logger("spanloom.worker")
_CLIENT_SECONDS = 5.0  #: how long a client may take for its request

Answer = tuple[int, str, bytes]  #: status, content type, body


class Listen(NamedTuple):
    """The address at which a worker serves its endpoints.

    The default is this machine only: the endpoints expose names of workflows and hosts, and have no authentication.
    In a container, where probes come from outside, listen on 0.0.0.0.
    """

    port: int
    host: str = "127.0.0.1"


class Endpoints:
    """An HTTP server on threads of its own, one for each request, from start() to stop(). Binds at once."""

    def __init__(self, listen: Listen, health: Health) -> None:
        """Bind the port. Raises ConfigurationError if it is taken, or the host is not an address of this machine."""
        self._health = health
        self._collecting = threading.Lock()  # the Prometheus exporter takes one collection at a time
        paths: dict[str, Callable[[], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": lambda: _as_json(health.liveness(), "alive", "stuck"),
            "/readyz": lambda: _as_json(health.readiness(), "ready", "not ready"),
        }
        self._server = _bound(listen, paths)
        self._thread = threading.Thread(target=self._server.serve_forever, name="spanloom-endpoints", daemon=True)

    def start(self) -> None:
        """Serve requests from now on."""
        self._thread.start()
        host, port = self._server.server_address[:2]
        _log.info("endpoints_ready", host=host, port=port, paths=["/metrics", "/healthz", "/readyz"])

    def stop(self) -> None:
        """Stop serving, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _metrics(self) -> Answer:
        from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

        with self._collecting:
            return 200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)


def check_free(listen: Listen, processes: int) -> None:
    """Raise ConfigurationError if one of `processes` consecutive ports is taken.

    Checked before the start, because a process that fails on its port later is restarted again and again.
    """
    for number in range(processes):
        _bound(listen._replace(port=listen.port + number), {}).server_close()


def _bound(listen: Listen, paths: dict[str, Callable[[], Answer]]) -> _Server:
    try:
        return _Server(listen, paths)
    except OSError as error:
        raise ConfigurationError(
            f"can't serve metrics on {listen.host}:{listen.port} ({error.strerror}); "
            f"give another --metrics-port or --metrics-host, and each worker of a machine a port of its own"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that hangs must not keep a worker that stops

    def __init__(self, listen: Listen, paths: dict[str, Callable[[], Answer]]) -> None:
        self.paths = paths
        self.address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        super().__init__((listen.host, listen.port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own resolves the host's name, which may take long

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("endpoint_failed", client=str(client_address), exc_info=True)  # most often a client that left


class _Handler(BaseHTTPRequestHandler):
    server_version = "spanloom"
    sys_version = ""
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        """Answer one request."""
        answer = cast(_Server, self.server).paths.get(self.path.partition("?")[0])
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


def _as_json(problems: dict[str, str], good: str, bad: str) -> Answer:
    body = {"status": bad if problems else good, "problems": problems}
    return 503 if problems else 200, "application/json", json.dumps(body, ensure_ascii=False).encode() + b"\n"
